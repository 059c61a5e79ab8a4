"""The way back to mmsegmentation."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from reference_weights import mmsegmentation_state_dict
from tiny_models import tiny_backbone_config, tiny_model

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.zoo import convert_checkpoint, export_checkpoint
from ccnet_hf.zoo.__main__ import main


def same_bytes(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return (found.dtype, found.shape, found.numpy().tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.numpy().tobytes(),
    )


def converted(variant: str, state_dict: dict[str, torch.Tensor], tmp_path: Path, **options) -> Path:
    torch.save({"state_dict": state_dict}, tmp_path / "source.pth")
    convert_checkpoint(variant, tmp_path / "source.pth", tmp_path / "folder", **options)
    return tmp_path / "folder"


def test_full_size_there_and_back(converted_folder, tmp_path, capsys):
    output = tmp_path / "new" / "exported.pth"
    assert main(["export", str(converted_folder(50)), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    found, expected = torch.load(output, weights_only=True), mmsegmentation_state_dict(50, 19)
    assert found.keys() == {"meta", "state_dict"}
    assert found["state_dict"].keys() == expected.keys()
    assert all(same_bytes(found["state_dict"][key], tensor) for key, tensor in expected.items())
    # each tensor once, and not the storage of its neighbours with it
    assert output.stat().st_size < 1.01 * sum(tensor.nbytes for tensor in expected.values()) + 1e6
    for classes, palette in (
        (found["meta"]["CLASSES"], found["meta"]["PALETTE"]),
        (found["meta"]["dataset_meta"]["classes"], found["meta"]["dataset_meta"]["palette"]),
    ):
        assert (len(classes), classes[0], classes[18]) == (19, "road", "bicycle")
        assert (len(palette), palette[0], palette[18]) == (19, [128, 64, 128], [119, 11, 32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_keep_their_bytes(dtype, small_variant, small_checkpoint, tmp_path):
    source = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor + 5 for key, tensor in small_checkpoint.items()
    }
    export_checkpoint(converted(small_variant, source, tmp_path), tmp_path / "exported.pth")
    found = torch.load(tmp_path / "exported.pth", weights_only=True)["state_dict"]
    assert found.keys() == source.keys()
    assert all(same_bytes(found[key], tensor) for key, tensor in source.items())


def test_mixed_dtypes_are_widened_without_loss(small_variant, small_checkpoint, tmp_path):
    source = dict(small_checkpoint)
    source["decode_head.conv_seg.weight"] = source["decode_head.conv_seg.weight"].half()
    export_checkpoint(converted(small_variant, source, tmp_path), tmp_path / "exported.pth")
    found = torch.load(tmp_path / "exported.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(found[key], tensor.to(found[key].dtype)) for key, tensor in source.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}


def test_an_exported_file_converts_again(small_variant, small_checkpoint, tmp_path):
    folder = converted(small_variant, small_checkpoint, tmp_path)
    export_checkpoint(folder, tmp_path / "exported.pth")
    convert_checkpoint(small_variant, tmp_path / "exported.pth", tmp_path / "again")
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_category_consistent_projection_stays_behind(tmp_path):
    """It takes part in training alone."""
    model = tiny_model(num_labels=19, category_consistent_loss_weight=0.5)
    plain = tiny_model(num_labels=19)
    for name, folder in ((model, "with"), (plain, "without")):
        name.save_pretrained(tmp_path / folder)
        CCNetImageProcessor().save_pretrained(tmp_path / folder)
        export_checkpoint(tmp_path / folder, tmp_path / f"{folder}.pth")
    files = [torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("with", "without")]
    assert files[0]["state_dict"].keys() == files[1]["state_dict"].keys()


def test_classes_without_a_palette(small_variant, small_checkpoint, tmp_path):
    """mmsegmentation asks for the palette wherever there are classes, so it gets colours that differ."""
    folder = converted(small_variant, small_checkpoint, tmp_path)
    processor = CCNetImageProcessor.from_pretrained(folder)
    processor.palette = None
    processor.save_pretrained(folder)
    export_checkpoint(folder, tmp_path / "exported.pth")
    meta = torch.load(tmp_path / "exported.pth", weights_only=True)["meta"]
    assert meta["PALETTE"] == meta["dataset_meta"]["palette"]
    assert len({tuple(colour) for colour in meta["PALETTE"]}) == len(meta["CLASSES"]) == 19


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path / "folder")
    CCNetImageProcessor().save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_folder, tmp_path, capsys, full_disk):
    capsys.readouterr()
    arguments = ["export", str(tiny_folder), "--output", str(tmp_path / "exported.pth")]
    with full_disk(20_000):
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "exported.pth cannot be written: the disk is full or fails" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert main(arguments) == 0 and torch.load(tmp_path / "exported.pth", weights_only=True)["state_dict"]


def test_a_place_that_cannot_be_written_is_found_before_the_work(tiny_folder, tmp_path, capsys, full_disk):
    (tiny_folder / "model.safetensors").unlink()  # not read by then
    capsys.readouterr()
    with full_disk(1000):
        assert main(["export", str(tiny_folder), "--output", str(tmp_path / "new" / "exported.pth")]) == 1
    assert "exported.pth cannot be written: file too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_kill_leaves_no_file(tiny_folder, tmp_path, monkeypatch):
    def save_half(content, file):
        Path(file).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", save_half)
    arguments = (tiny_folder, tmp_path / "exported.pth")
    process = multiprocessing.get_context("fork").Process(target=export_alone, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "exported.pth").exists()
    monkeypatch.undo()
    export_checkpoint(*arguments)
    assert torch.load(tmp_path / "exported.pth", weights_only=True)["state_dict"]


def test_two_exports_into_one_file(tiny_folder, tmp_path):
    """Each writes under a name of its own; the file is the one or the other."""
    arguments = (tiny_folder, tmp_path / "exported.pth")
    processes = [multiprocessing.get_context("fork").Process(target=export_alone, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert 0 in [process.exitcode for process in processes]
    assert torch.load(tmp_path / "exported.pth", weights_only=True)["state_dict"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported.pth", "folder"]


def export_alone(*arguments):
    torch.set_num_threads(1)  # the threads of the parent are not there
    export_checkpoint(*arguments)


class TestRefusal:
    def refuse(self, capsys, folder: Path, output: Path) -> str:
        capsys.readouterr()
        assert main(["export", str(folder), "--output", str(output)]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"head_activation": "leaky_relu"}, "head_activation='leaky_relu'"),
            ({"attention_activation": "leaky_relu"}, "attention_activation='leaky_relu'"),
            ({"backbone_config": tiny_backbone_config(pooled_shortcut=True)}, "pooled_shortcut=True"),
            ({"query_key_size": 3}, "query_key_size=3"),
            ({"recurrence": 0}, "recurrence=0"),
            ({"backbone_config": tiny_backbone_config(stem_type="conv7")}, "backbone_config.stem_type='conv7'"),
            ({"backbone_config": tiny_backbone_config(batch_norm_eps=0)}, "backbone_config.batch_norm_eps=0"),
            ({"backbone_config": tiny_backbone_config(attention_stage="stage3")}, "attention_stage='stage3'"),
        ],
    )
    def test_what_mmsegmentation_cannot_compute(self, fields, reason, tmp_path, capsys):
        tiny_model(**fields).save_pretrained(tmp_path / "folder")
        CCNetImageProcessor().save_pretrained(tmp_path / "folder")
        assert reason in self.refuse(capsys, tmp_path / "folder", tmp_path / "exported.pth")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_another_backbone(self, tmp_path, capsys):
        folder = Path(__file__).parents[2] / "checkpoints" / "ccnet-mobilenetv2-camvid"
        pytest.importorskip("timm")
        assert "'timm_backbone'" in self.refuse(capsys, folder, tmp_path / "exported.pth")

    def test_a_file_that_exists(self, tmp_path, capsys):
        (tmp_path / "mine.pth").write_text("keep")
        assert "exists" in self.refuse(capsys, tmp_path, tmp_path / "mine.pth")
        assert (tmp_path / "mine.pth").read_text() == "keep"

    @pytest.mark.parametrize("damage", ["absent", "empty", "no weights", "cut weights", "foreign", "list", "nested"])
    def test_no_model(self, damage, tmp_path, capsys):
        folder = tmp_path / "folder"
        if damage != "absent":
            folder.mkdir()
        if damage in ("no weights", "cut weights"):
            tiny_model().save_pretrained(folder)
            CCNetImageProcessor().save_pretrained(folder)
            weights = folder / "model.safetensors"
            content = weights.read_bytes()
            weights.unlink()
            if damage == "cut weights":
                weights.write_bytes(content[: len(content) // 2])
        if damage == "foreign":
            (folder / "config.json").write_text(json.dumps({"model_type": "segformer"}))
        if damage == "list":
            (folder / "config.json").write_text("[1, 2]")
        if damage == "nested":
            (folder / "config.json").write_text("[" * 100_000)
        message = self.refuse(capsys, folder, tmp_path / "exported.pth")
        assert str(folder) in message
        assert not (tmp_path / "exported.pth").exists()
