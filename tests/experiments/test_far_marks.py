"""Does recurrent criss-cross attention do what it is for? The experiment in short, and what each form can see."""

import pytest
import torch
from transformers import set_seed

from ccnet_hf.experiments import far_marks as experiment
from ccnet_hf.experiments.far_marks_dataset import COLOURS, SIDE, SQUARE, far_marks, far_marks_clips, parts
from ccnet_hf.inference import predict_logits
from ccnet_hf.models import layers_ccnet


@pytest.fixture
def one_thread():
    """Small tensors: a second thread only costs, and the result shall not depend on the machine's number of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without_attention(query, key, value):
    return value


def test_two_rounds_learn_what_lies_elsewhere(one_thread):
    """Fails with recurrence 0 or 1, and with any operator that does not carry the mark through the image."""
    set_seed(0)
    model = experiment.build_model(recurrence=2)
    experiment.train(model, steps=100, seed=0)
    assert experiment.score(model, num_examples=24)["elsewhere"] > 0.95


@pytest.mark.parametrize(
    "recurrence, operator, seen",
    [
        (0, None, {"near"}),
        (1, None, {"near", "in line"}),
        (2, None, {"near", "in line", "elsewhere"}),
        (2, without_attention, {"near"}),
    ],
    ids=["none", "one round", "two rounds", "two rounds of the identity"],
)
def test_where_another_colour_of_the_mark_changes_anything(monkeypatch, recurrence, operator, seen):
    """Without training: whether there is a way from the mark to a pixel at all."""
    if operator is not None:

        def one_round(query, key, value, gamma, residual):
            return gamma * operator(query, key, value) + residual

        monkeypatch.setattr(layers_ccnet, "criss_cross_attention_round", one_round)
    set_seed(0)
    model = experiment.build_model(recurrence).double().eval()
    if recurrence:
        torch.nn.init.constant_(model.model.head.attention.gamma, 1.0)
    images, _, corners = far_marks(12, torch.Generator().manual_seed(0))
    other = images.clone()
    for image, (top, left) in zip(other, corners.tolist(), strict=True):
        image[:, top : top + SQUARE, left : left + SQUARE] += 1.0
    changed = (predict_logits(model, other) != predict_logits(model, images)).any(dim=1)
    shares = {part: changed[mask].float().mean().item() for part, mask in parts(corners).items()}
    for part, share in shares.items():
        assert share > 0.5 if part in seen else share == 0, shares


def test_the_images_are_what_their_labels_say():
    images, labels, corners = far_marks(20, torch.Generator().manual_seed(1))
    again = far_marks(20, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip((images, labels, corners), again, strict=True))
    assert labels.unique().tolist() == [0, 1, 2]
    for image, label, (top, left) in zip(images, labels, corners.tolist(), strict=True):
        mark = image[:, top : top + SQUARE, left : left + SQUARE].flatten(1)
        colour = torch.tensor(list(COLOURS.values())[label[0, 0]])
        assert (mark == colour[:, None]).all() and (label == label[0, 0]).all()


def test_parts_by_distance_pixel_by_pixel():
    corners = torch.tensor([[0, 30], [61, 72]])
    masks = parts(corners)
    for index, (top, left) in enumerate(corners.tolist()):
        rows, columns = range(top, top + SQUARE), range(left, left + SQUARE)
        for row in range(0, SIDE, 3):
            for column in range(0, SIDE, 3):
                down = min(abs(row - r) for r in rows)
                across = min(abs(column - c) for c in columns)
                expected = {
                    "near": max(down, across) <= 8,
                    "in line": (down == 0 and across >= 32) or (across == 0 and down >= 32),
                    "elsewhere": down >= 32 and across >= 32,
                }
                assert {part: bool(mask[index, row, column]) for part, mask in masks.items()} == expected


def test_the_command_writes_table_and_image(tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path / "out"), "--seeds", "0", "1", "--recurrences", "0", "2"]
    assert experiment.main([*arguments, "--max_train_steps", "1"]) == 0
    table = (tmp_path / "out" / "far_marks.md").read_text()
    assert table == capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()] == ["recurrence", "---", "0", "2"]
    assert (tmp_path / "out" / "far_marks.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recurrences", "-1"], "--recurrences must be at least 0, got -1"),
        (["--seeds", "0", "-2"], "--seeds must be at least 0, got -2"),
        (["--max_train_steps", "0"], "--max_train_steps must be at least 1, got 0"),
        (["--output_dir", "file/folder"], "file/folder cannot be written: not a directory"),
    ],
)
def test_bad_input_is_one_line_before_any_training(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(experiment, "train", lambda *arguments: pytest.fail("it trains"))
    assert experiment.main(["--output_dir", "out", *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys, full_disk, monkeypatch):
    monkeypatch.setattr(experiment, "build_model", None)
    with full_disk(1000):
        assert experiment.main(["--output_dir", str(tmp_path / "out")]) == 1
    assert "out cannot be written: file too large" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_half(tmp_path, capsys, full_disk, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *arguments: None)
    monkeypatch.setattr(experiment, "score", lambda model: {"near": 1.0})
    with full_disk(5000):
        assert experiment.main(["--output_dir", str(tmp_path), "--seeds", "0", "--recurrences", "0"]) == 1
    assert "far_marks.png cannot be written: file too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["far_marks.md"]


def test_a_mark_in_another_frame_takes_three_rounds():
    """Without training: whether there is a way from a mark in the first frame to a pixel of the last one."""
    clips, labels, corners = far_marks_clips(1, 3, torch.Generator().manual_seed(0))
    assert clips.shape == (1, 3, 3, SIDE, SIDE) and labels.shape == (1, 3, SIDE, SIDE) and len(labels.unique()) == 1
    top, left = corners[0].tolist()
    other = clips.double()
    other[0, 0, :, top : top + SQUARE, left : left + SQUARE] += 1
    regions = {part: mask[0] for part, mask in parts(corners).items()}
    seen = {1: (True, False, False), 2: (True, True, False), 3: (True, True, True)}
    for recurrence, expected in seen.items():
        set_seed(0)
        model = experiment.build_model(recurrence, for_clips=True).double().eval()
        torch.nn.init.constant_(model.model.head.attention.gamma, 0.5)
        with torch.no_grad():
            logits = [model(pixel_values_videos=one).logits[-1] for one in (clips.double(), other)]
        changed = torch.nn.functional.interpolate(
            (logits[0] != logits[1]).any(0)[None, None].double(), SIDE, mode="nearest"
        )[0, 0].bool()
        found = tuple(bool(changed[regions[part]].any()) for part in ("near", "in line", "elsewhere"))
        assert found == expected
