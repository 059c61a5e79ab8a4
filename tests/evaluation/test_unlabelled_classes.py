"""What is said about classes without a labelled pixel."""

import pytest

from ccnet_hf.evaluation.report import unlabelled_classes


NAMES = ["road", "sky", "tree", "car", "person"]


@pytest.mark.parametrize(
    ("counts", "num_ignored", "counted", "line"),
    [
        ([3, 1, 1, 1, 1], 9, "", None),
        ([0, 0, 0, 0, 0], 0, "", None),
        ([3, 0, 1, 1, 1], 0, "", "no pixel is labelled 1 (sky)"),
        ([3, 0, 0, 1, 1], 5, "", "no pixel is labelled 1 (sky), 2 (tree); 50.0 % are 255, which is ignored"),
        ([0, 1, 1, 0, 1], 0, "of 64 label maps", "no pixel of 64 label maps is labelled 0 (road), 3 (car)"),
        (
            [81, 0, 0, 0, 0],
            19,
            "",
            "no pixel is labelled 1 (sky), 2 (tree), 3 (car) and 1 more; 19.0 % are 255, which is ignored (of masks "
            "of 0 and 255, 255 has to become 1)",
        ),
    ],
)
def test_classes_without_a_pixel_are_named_in_one_line(counts, num_ignored, counted, line):
    assert unlabelled_classes(counts, num_ignored, 255, NAMES, counted) == line
