"""Does a head bring the context that a backbone lacks? What each form can see, and that the experiment runs."""

import pytest
import torch
from tiny_dataset import write_dataset
from transformers import set_seed

from ccnet_hf.experiments.short_reach import CONTEXTS, main
from ccnet_hf.experiments.short_reach_training import build_model


pytest.importorskip("timm")


def test_how_far_the_convolutions_see():
    model = build_model("convolutions").double().eval()
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    model(image).logits[0, :, 16, 16].sum().backward()
    seen = image.grad.abs().sum(dim=(0, 1, 2)).nonzero()
    assert (16 * 8 - seen.min(), seen.max() - 16 * 8) == (57, 57)


@pytest.mark.parametrize(
    ("context", "sees"),
    [("convolutions", []), ("1 round", ["row"]), ("2 rounds", ["row", "corner"]), ("non-local", ["row", "corner"])],
)
def test_what_a_position_sees(context, sees):
    """Without training: a change of far pixels in its rows, and of those in none of its rows and columns."""
    set_seed(0)
    model = build_model(context).double().eval()
    assert len(model.model.backbone._backbone.blocks) == 3
    if CONTEXTS[context] != 0:
        torch.nn.init.constant_(model.model.head.attention.gamma, 1.0)
    image = torch.randn(1, 3, 192, 192, dtype=torch.float64)
    changed = {"row": (slice(0, 16), slice(160, 192)), "corner": (slice(160, 192), slice(160, 192))}
    with torch.no_grad():
        before = model(image).logits[0, :, 0, 0]
        for part, pixels in changed.items():
            other = image.clone()
            other[(..., *pixels)] += 1
            assert (model(other).logits[0, :, 0, 0] != before).any() == (part in sees), part


def test_the_experiment_runs_and_writes_its_table(tmp_path):
    write_dataset(tmp_path / "frames", train=4, validation=1)
    arguments = ["--dataset_name", str(tmp_path / "frames"), "--test_split", "validation", "--seeds", "0"]
    arguments += ["--output_dir", str(tmp_path), "--max_train_steps", "2"]
    assert main([*arguments, "--contexts", "non-local"]) == 0
    header, _, *rows = (tmp_path / "short_reach.md").read_text().splitlines()
    assert header.startswith("| context | mIoU by seed |")
    assert [row.split(" | ")[0] for row in rows] == ["| non-local"]
    assert all(0 <= float(row.split(" | ")[2]) <= 100 for row in rows)
