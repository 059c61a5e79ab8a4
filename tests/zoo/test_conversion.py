"""The converter: what it reads, what it writes, what it refuses."""

import hashlib
import json
import zlib
from pathlib import Path

import pytest
import torch
from reference_weights import key_shapes, mmsegmentation_state_dict
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

import ccnet_hf  # noqa: F401  registers the Auto classes
from ccnet_hf.recipes import RECIPES
from ccnet_hf.zoo import convert_checkpoint, mmsegmentation_key
from ccnet_hf.zoo.convert import main


VARIANT = "ccnet-r50-voc12aug-512x512-20k"
NUM_LABELS = 21


def constant_state_dict(depth: int = 50, num_labels: int = NUM_LABELS) -> dict[str, torch.Tensor]:
    """A checkpoint of a few kilobytes: every tensor is one number, expanded to its shape."""
    return {
        key: torch.zeros(shape, dtype=torch.int64) if key.endswith("tracked") else torch.tensor(0.01).expand(shape)
        for key, shape in key_shapes(depth, num_labels)
    }


@pytest.mark.parametrize("depth", [50, 101])
def test_reference_keys_are_the_listed_ones(depth, shared_dir):
    listed = json.loads((shared_dir / "reference" / f"keys_r{depth}.json").read_text())
    expected = [(key, tuple(7 if size == "num_classes" else size for size in shape)) for key, shape in listed]
    assert list(key_shapes(depth, 7)) == expected


@pytest.mark.parametrize(("depth", "num_labels", "documented_crc"), [(50, 19, 0x9323D0FA), (101, 150, 0x6F270E34)])
def test_every_tensor_arrives(depth, num_labels, documented_crc, converted_folder):
    source, crc = mmsegmentation_state_dict(depth, num_labels), 0
    for tensor in source.values():
        crc = zlib.crc32(tensor.numpy().tobytes(), crc)
    assert crc == documented_crc, "these are not the weights of the golden files"

    model = AutoModelForSemanticSegmentation.from_pretrained(converted_folder(depth))
    converted = {mmsegmentation_key(key): tensor for key, tensor in model.state_dict().items()}
    assert len(converted) == len(model.state_dict())
    assert converted.keys() == source.keys()
    for key, tensor in source.items():
        assert torch.equal(converted[key].reshape(tensor.shape), tensor), key


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.checkpoint_file])
def test_config_and_processor_of_every_variant_survive_saving(name, tmp_path):
    config, processor = RECIPES[name].config(), RECIPES[name].image_processor()
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == config.to_dict() | {
        "_name_or_path": ""
    }
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


class TestForms:
    """One state dict in every form that mmsegmentation, DistributedDataParallel and PyTorch have written it."""

    @pytest.mark.parametrize("form", ["wrapped", "bare", "parallel", "legacy", "hashed"])
    def test_form(self, form, tmp_path):
        expected = constant_state_dict()
        content = {
            "bare": expected,
            "parallel": {f"module.{key}": tensor for key, tensor in expected.items()},
        }.get(form, {"meta": {"mmseg_version": "0.5.0", "CLASSES": ("a",)}, "state_dict": expected, "optimizer": {}})
        checkpoint, output = tmp_path / "checkpoint.pth", tmp_path / "new" / "folder"
        torch.save(content, checkpoint, _use_new_zipfile_serialization=form != "legacy")
        if form == "hashed":
            digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
            checkpoint = checkpoint.rename(tmp_path / f"ccnet_20200616_142517-{digest[:8]}.pth")
        assert main(["--variant", VARIANT, "--checkpoint", str(checkpoint), "--output", str(output)]) == 0

        model = AutoModelForSemanticSegmentation.from_pretrained(output)
        assert model.config.id2label[15] == "person"
        weight = model.state_dict()["model.head.input_projection.convolution.weight"]
        assert torch.equal(weight, expected["decode_head.convs.0.conv.weight"])
        assert [path.name for path in output.parent.iterdir()] == ["folder"]


def test_other_classes(tmp_path, capsys):
    checkpoint, output = tmp_path / "checkpoint.pth", tmp_path / "folder"
    torch.save(constant_state_dict(num_labels=5), checkpoint)
    arguments = ["--variant", VARIANT, "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main(arguments) == 1
    assert "5 classes" in capsys.readouterr().err
    assert not output.exists()

    output.mkdir()  # an empty folder is as good as none
    assert main([*arguments, "--num_labels", "5"]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    assert model.config.num_labels == len(model.config.id2label) == 5
    assert model.config.align_corners is RECIPES[VARIANT].config().align_corners
    assert AutoImageProcessor.from_pretrained(output).palette is None


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def without(key: str) -> dict[str, torch.Tensor]:
    state_dict = constant_state_dict()
    del state_dict[key]
    return state_dict


NAN = torch.tensor(float("nan")).expand(64)
BAD_CONTENTS = {
    "missing": (lambda: without("decode_head.cca.gamma.scale"), "missing: decode_head.cca.gamma.scale"),
    "left over": (lambda: constant_state_dict() | {"decode_head.extra": NAN}, "left over: decode_head.extra"),
    "foreign": (lambda: {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "left over: layer1.0.conv1.weight"),
    "other depth": (lambda: constant_state_dict(depth=101), "left over: backbone.layer3.10."),
    "shape": (lambda: constant_state_dict() | {"backbone.stem.1.bias": torch.zeros(63)}, "has shape (63,)"),
    "scalar classifier": (lambda: constant_state_dict() | {"decode_head.conv_seg.weight": torch.zeros(())}, "classes"),
    "nan": (lambda: constant_state_dict() | {"backbone.layer1.0.bn1.weight": NAN}, "bn1.weight holds NaN"),
    "infinity": (lambda: constant_state_dict() | {"backbone.layer1.0.bn1.bias": 1 / torch.zeros(64)}, "infinity"),
    "sparse": (lambda: constant_state_dict() | {"backbone.stem.1.bias": torch.ones(32).to_sparse()}, "plain tensor"),
    "no tensors": (lambda: {"state_dict": {"epoch": 3}}, "'epoch' is no plain tensor"),
    "empty": (dict, "no state dict"),
    "a list": (lambda: [torch.zeros(3)], "no state dict"),
}


class TestRefusal:
    """One line on stderr, exit status 1, nothing written."""

    def refuse(self, capsys, checkpoint: Path, variant: str = VARIANT) -> str:
        folder = checkpoint.parent
        before = sorted(folder.iterdir())
        output = folder / "deep" / "output"
        assert main(["--variant", variant, "--checkpoint", str(checkpoint), "--output", str(output)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert sorted(folder.iterdir()) == before
        return captured.err

    @pytest.mark.filterwarnings("ignore:.*[Ss]parse")
    @pytest.mark.parametrize("case", BAD_CONTENTS)
    def test_content(self, case, tmp_path, capsys):
        make, reason = BAD_CONTENTS[case]
        torch.save(make(), tmp_path / "checkpoint.pth")
        assert reason in self.refuse(capsys, tmp_path / "checkpoint.pth")

    @pytest.mark.parametrize("new_format", [True, False])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_truncated_file(self, share, new_format, tmp_path, capsys):
        path = tmp_path / "checkpoint.pth"
        torch.save(constant_state_dict(), path, _use_new_zipfile_serialization=new_format)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "damaged" in self.refuse(capsys, path)

    @pytest.mark.parametrize("content", [b"not a pickle", b"\x80\x02.", b"<html>404</html>", bytes(1000)])
    def test_no_checkpoint(self, content, tmp_path, capsys):
        (tmp_path / "checkpoint.pth").write_bytes(content)
        assert "damaged" in self.refuse(capsys, tmp_path / "checkpoint.pth")

    @pytest.mark.parametrize("new_format", [True, False])
    def test_code_in_the_pickle_is_not_run(self, new_format, tmp_path, capsys):
        path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
        content = {"meta": Malicious(trace), "state_dict": constant_state_dict()}
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        assert "its pickle asks for" in self.refuse(capsys, path)
        assert not trace.exists()

    def test_wrong_hash(self, tmp_path, capsys):
        path = tmp_path / "ccnet_r50-d8_512x512_20k_voc12aug_20200617_193212-fad81784.pth"
        torch.save(constant_state_dict(), path)
        message = self.refuse(capsys, path)
        assert "fad81784" in message and hashlib.sha256(path.read_bytes()).hexdigest()[:8] in message

    def test_missing_file(self, tmp_path, capsys):
        assert "absent.pth" in self.refuse(capsys, tmp_path / "absent.pth")

    def test_folder_for_a_file(self, tmp_path, capsys):
        (tmp_path / "folder.pth").mkdir()
        assert "folder.pth" in self.refuse(capsys, tmp_path / "folder.pth")

    @pytest.mark.parametrize("variant", ["ccnet-r50", "ccnet-mobilenetv2-camvid"])
    def test_wrong_variant(self, variant, tmp_path, capsys):
        torch.save(constant_state_dict(), tmp_path / "checkpoint.pth")
        assert variant in self.refuse(capsys, tmp_path / "checkpoint.pth", variant)

    def test_output_in_use(self, tmp_path, capsys):
        torch.save(constant_state_dict(), tmp_path / "checkpoint.pth")
        output = tmp_path / "output"
        output.mkdir()
        (output / "mine.txt").write_text("keep")
        arguments = ["--variant", VARIANT, "--checkpoint", str(tmp_path / "checkpoint.pth"), "--output", str(output)]
        assert main(arguments) == 1
        assert "exists" in capsys.readouterr().err
        assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(self, folder):
        raise OSError(28, "No space left on device")

    torch.save(constant_state_dict(), tmp_path / "checkpoint.pth")
    monkeypatch.setattr("ccnet_hf.image_processing_ccnet.CCNetImageProcessor.save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(VARIANT, tmp_path / "checkpoint.pth", tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_wrong_argument(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--variant", VARIANT])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
