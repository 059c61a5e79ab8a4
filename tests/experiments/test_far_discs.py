"""Does the attention in the trunk of Mask R-CNN do what it is for? What each form can see, and that it is learned."""

from functools import partial

import pytest
import torch
from transformers import set_seed

from ccnet_hf.experiments import far_discs as experiment
from ccnet_hf.experiments import far_marks
from ccnet_hf.experiments.far_discs import FAR, NUM_DISCS, PARTS, SIDE, SQUARE, far_discs
from ccnet_hf.experiments.far_marks_dataset import COLOURS


@pytest.mark.parametrize(("recurrence", "seen"), [(0, 1), (1, 2), (2, 3)])
def test_of_which_discs_another_colour_of_the_mark_changes_the_class(monkeypatch, recurrence, seen):
    """Without training: whether there is a way from the mark to the scores of a disc at all."""
    images, labels, parts = far_discs(24, torch.Generator().manual_seed(0))
    monkeypatch.setattr(experiment, "COLOURS", {name: [value + 1 for value in COLOURS[name]] for name in COLOURS})
    other, *_ = far_discs(24, torch.Generator().manual_seed(0))
    set_seed(0)
    model = experiment.build_model(recurrence).double().eval()
    if recurrence:
        torch.nn.init.constant_(model.backbone.stages[0].attention.gamma, 1.0)
    corners = [experiment.center_to_corners_format(label["boxes"]).double() * SIDE for label in labels]
    with torch.no_grad():
        logits = [class_logits(model, pixels.double(), corners) for pixels in (images, other)]
    changed = (logits[0] != logits[1]).any(dim=1).tolist()
    flat = [part for its_parts in parts for part in its_parts]
    for index, part in enumerate(PARTS):
        its_changed = [change for change, its_part in zip(changed, flat, strict=True) if its_part == part]
        assert its_changed and sum(its_changed) == (len(its_changed) if index < seen else 0), part


def class_logits(model, images, boxes):
    model(images)  # tells the heads the strides
    maps = model.backbone(images).feature_maps
    features = model.fpn({str(level): feature for level, feature in enumerate(maps)})
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, boxes, [(SIDE, SIDE)] * len(images))
    return heads.box_predictor(heads.box_head(pooled))[0]


def test_the_images_are_what_their_labels_say():
    images, labels, parts = far_discs(20, torch.Generator().manual_seed(1))
    again, *_ = far_discs(20, torch.Generator().manual_seed(1))
    assert torch.equal(images, again)
    assert {int(label["class_labels"][0]) for label in labels} == {1, 2, 3}
    found = set()
    for image, label, its_parts in zip(images, labels, parts, strict=True):
        (class_label,) = set(label["class_labels"].tolist())
        colour = torch.tensor(list(COLOURS.values())[class_label - 1])
        mark = (image == colour[:, None, None]).all(dim=0)
        assert int(mark.sum()) == SQUARE**2
        top, left = mark.nonzero().amin(dim=0).tolist()
        assert 1 <= len(its_parts) == len(label["boxes"]) == len(label["masks"]) <= NUM_DISCS
        assert int(label["masks"].sum(dim=0).max()) == 1
        assert its_parts[0] == "marked" and "marked" not in its_parts[1:]
        for mask, (x, y, *_), part in zip(label["masks"], label["boxes"] * SIDE, its_parts, strict=True):
            assert (image[:, mask & ~mark] == 1).all() and mask[int(y), int(x)]
            rows, columns = (mask.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
            down = max(top - int(rows[-1]) - 1, int(rows[0]) - top - SQUARE, 0)
            across = max(left - int(columns[-1]) - 1, int(columns[0]) - left - SQUARE, 0)
            smaller, larger = sorted((down, across))
            if part is not None:  # the gaps of the discs themselves are no whole pixels
                assert {"marked": larger == 0, "in line": smaller <= 1 and larger >= FAR}.get(part, smaller >= FAR)
            found.add(part)
    assert found == {*PARTS, None}


def test_the_command_writes_table_and_image(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "score", partial(experiment.score, num_examples=4))
    arguments = ["--instances", "--output_dir", str(tmp_path), "--seeds", "0", "--recurrences", "0", "2"]
    assert far_marks.main([*arguments, "--max_train_steps", "1"]) == 0
    table = (tmp_path / "far_marks.md").read_text()
    assert table == capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()] == ["recurrence", "---", "0", "2"]
    assert [cell.strip() for cell in table.splitlines()[0].split("|")[2:-1]] == ["found", *PARTS, "gamma"]
    assert (tmp_path / "far_marks.png").stat().st_size > 1000
    assert far_marks.main([*arguments, "--num_frames", "2"]) == 1
    assert "--num_frames is of clips" in capsys.readouterr().err


def test_a_score_counts_discs_that_are_found_and_right():
    """A model that knows the truth, and one that takes every disc for the first class."""
    _, labels, parts = far_discs(30, torch.Generator().manual_seed(experiment._TEST_SEED))
    flat = [part for its_parts in parts for part in its_parts]
    classes = torch.cat([label["class_labels"] for label in labels]).tolist()

    class Oracle:
        def __init__(self, classify):
            self.classify, self.calls = classify, iter(labels)

        def __call__(self, pixel_values):
            label = next(self.calls)
            boxes, number = label["boxes"], len(label["boxes"])
            scores = torch.linspace(0.9, 0.5, number)
            outputs = {"pred_boxes": boxes, "scores": scores, "class_labels": self.classify(label["class_labels"])}
            # Behind them a detection of every disc with a lower score and another class, and padding.
            outputs = {
                "pred_boxes": torch.cat([boxes, boxes, torch.zeros(3, 4)]),
                "scores": torch.cat([scores, scores / 2, torch.zeros(3)]),
                "class_labels": torch.cat([outputs["class_labels"], torch.zeros(number + 3, dtype=torch.int64)]),
            }
            return type("Outputs", (), {name: value[None] for name, value in outputs.items()})

    assert experiment.score(Oracle(lambda truth: truth), 30) == {"found": 1.0} | dict.fromkeys(PARTS, 1.0)
    scores = experiment.score(Oracle(torch.ones_like), 30)
    for part in PARTS:
        its_classes = [label for label, its_part in zip(classes, flat, strict=True) if its_part == part]
        assert scores[part] == pytest.approx(its_classes.count(1) / len(its_classes))


@pytest.mark.nightly
def test_two_rounds_learn_what_lies_elsewhere():
    """Minutes: the control without attention stays at chance."""
    scores = {}
    for recurrence in (0, 2):
        set_seed(0)
        model = experiment.build_model(recurrence)
        experiment.train(model, steps=800, seed=0)
        scores[recurrence] = experiment.score(model)
    assert scores[2]["found"] > 0.95 and scores[2]["elsewhere"] > 0.95
    assert scores[0]["found"] > 0.95 and scores[0]["marked"] > 0.95 and scores[0]["elsewhere"] < 0.5
