"""The converter: what it reads, what it writes, what it refuses."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import zlib
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from reference_weights import key_shapes, mmsegmentation_state_dict
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from ccnet_hf import CCNetForSemanticSegmentation, CCNetImageProcessor
from ccnet_hf.errors import InputError
from ccnet_hf.files import exclusive
from ccnet_hf.recipes import RECIPES, get_recipe
from ccnet_hf.zoo import convert_checkpoint, mmsegmentation_key
from ccnet_hf.zoo.convert import main


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


def names(folder: Path) -> list[str]:
    """What a folder holds, but for the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


class TestForms:
    """One state dict in every form that mmsegmentation, DistributedDataParallel and PyTorch have written it."""

    @pytest.mark.parametrize("form", ["wrapped", "bare", "parallel", "legacy", "hashed"])
    def test_form(self, form, small_variant, small_checkpoint, tmp_path):
        expected = small_checkpoint
        content = {
            "bare": expected,
            "parallel": {f"module.{key}": tensor for key, tensor in expected.items()},
        }.get(form, {"meta": {"mmseg_version": "0.5.0", "CLASSES": ("a",)}, "state_dict": expected, "optimizer": {}})
        checkpoint, output = tmp_path / "checkpoint.pth", tmp_path / "new" / "folder"
        torch.save(content, checkpoint, _use_new_zipfile_serialization=form != "legacy")
        if form == "hashed":
            digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
            checkpoint = checkpoint.rename(tmp_path / f"ccnet_20200616_142517-{digest[:8]}.pth")
        assert main(["--variant", small_variant, "--checkpoint", str(checkpoint), "--output", str(output)]) == 0

        model = AutoModelForSemanticSegmentation.from_pretrained(output)
        assert model.config.id2label[11] == "person"
        weight = model.state_dict()["model.head.input_projection.convolution.weight"]
        assert torch.equal(weight, expected["decode_head.convs.0.conv.weight"])
        assert names(output.parent) == ["folder"]


def test_other_classes(small_variant, small_checkpoint, tmp_path, capsys):
    checkpoint, output = tmp_path / "checkpoint.pth", tmp_path / "folder"
    classifiers = {key: tensor[:5].clone() for key, tensor in small_checkpoint.items() if ".conv_seg." in key}
    torch.save(small_checkpoint | classifiers, checkpoint)
    arguments = ["--variant", small_variant, "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main(arguments) == 1
    assert "5 classes" in capsys.readouterr().err
    assert not output.exists()

    output.mkdir()  # an empty folder is as good as none
    assert main([*arguments, "--num_labels", "5"]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    assert model.config.num_labels == len(model.config.id2label) == 5
    assert model.config.align_corners
    assert AutoImageProcessor.from_pretrained(output).palette is None


def test_other_classes_are_not_reduced(tmp_path, monkeypatch):
    """As the variant's own are, whose benchmark counts from 1."""
    written = []
    monkeypatch.setattr(CCNetForSemanticSegmentation, "save_pretrained", lambda model, folder: None)
    monkeypatch.setattr(CCNetImageProcessor, "save_pretrained", lambda processor, folder: written.append(processor))
    torch.save(mmsegmentation_state_dict(50, 19), tmp_path / "checkpoint.pth")
    convert_checkpoint("ccnet-r50-ade20k", tmp_path / "checkpoint.pth", tmp_path / "folder", num_labels=19)
    assert get_recipe("ccnet-r50-ade20k").image_processor().do_reduce_labels
    assert not written[0].do_reduce_labels and written[0].palette is None


def test_two_entries_are_not_merged(small_variant, small_checkpoint, tmp_path):
    key = "decode_head.convs.0.conv.weight"
    torch.save(small_checkpoint | {f"module.{key}": torch.zeros_like(small_checkpoint[key])}, tmp_path / "double.pth")
    with pytest.raises(ValueError, match="differ in nothing but a leading 'module"):
        convert_checkpoint(small_variant, tmp_path / "double.pth", tmp_path / "folder")


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_the_log_of_a_training_is_left_out(new_format, small_variant, small_checkpoint, tmp_path, monkeypatch):
    """mmengine saves its message hub, objects of its own class with NumPy arrays in them, beside the weights."""

    class HistoryBuffer:
        def __init__(self):
            self.max_length, self._log_history, self._count_history = 1000000, np.arange(3.0), np.ones(3)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    checkpoint = tmp_path / "checkpoint.pth"
    content = {
        "meta": {"iter": 40000, "dataset_meta": {"classes": ("road",)}},
        "state_dict": small_checkpoint,
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer()},
            "runtime_info": {"best_score": np.float64(79.4)},
            "resumed_keys": OrderedDict(),
        },
    }
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer
        torch.save(content, checkpoint, _use_new_zipfile_serialization=new_format)
    convert_checkpoint(small_variant, checkpoint, tmp_path / "folder")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "folder")
    assert torch.equal(model.classifier.bias, small_checkpoint["decode_head.conv_seg.bias"])


@pytest.mark.parametrize("recurrence", [0, 1, 3])
def test_recurrence(recurrence, small_variant, small_checkpoint, tmp_path):
    torch.save(small_checkpoint, tmp_path / "checkpoint.pth")
    arguments = ["--variant", small_variant, "--checkpoint", str(tmp_path / "checkpoint.pth")]
    assert main([*arguments, "--recurrence", str(recurrence), "--output", str(tmp_path / "folder")]) == 0
    model, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert model.config.recurrence == recurrence
    assert (model.model.head.attention is None) == (recurrence == 0)
    assert not info["missing_keys"] and not info["unexpected_keys"]


NAN = torch.tensor(float("nan")).expand(64)
STEM_BIAS, CLASSIFIER = "backbone.stem.1.bias", "decode_head.conv_seg.weight"
# what replaces entries of a good checkpoint (None: nothing does), and the reason to give
BAD_ENTRIES = {
    "missing": ({"decode_head.cca.gamma.scale": None}, "missing: decode_head.cca.gamma.scale"),
    "left over": ({"decode_head.extra": NAN}, "left over: decode_head.extra"),
    "long name": ({"x" * 100_000: NAN}, "left over: xxxxx"),
    "odd name": ({"a\nb\ud800": NAN}, "left over: a\\nb"),
    "shape": ({STEM_BIAS: torch.zeros(63)}, "has shape (63,)"),
    "scalar classifier": ({CLASSIFIER: torch.zeros(())}, "classes"),
    "nan": ({"backbone.stem.7.weight": NAN}, "stem.7.weight holds NaN"),
    "infinity": ({"backbone.stem.7.bias": 1 / torch.zeros(64)}, "stem.7.bias holds NaN or infinity"),
    "integers": ({STEM_BIAS: torch.ones(32, dtype=torch.int64)}, "holds torch.int64"),
    "counter": ({"backbone.stem.1.num_batches_tracked": torch.tensor(1.0)}, "holds torch.float32"),
    "sparse": ({STEM_BIAS: torch.ones(32).to_sparse()}, "plain tensor"),
    "complex": ({STEM_BIAS: torch.ones(32, dtype=torch.complex64)}, "plain tensor"),
    "meta": ({STEM_BIAS: torch.ones(32, device="meta")}, "plain tensor"),
}
BAD_CONTENTS = {
    "foreign": ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "left over: layer1.0.conv1.weight"),
    "no tensors": ({"state_dict": {"epoch": 3}}, "'epoch' is no plain tensor"),
    "empty": ({}, "no state dict"),
    "empty state dict": ({"state_dict": {}}, "no state dict"),
    "an array": ({"backbone.stem.0.weight": np.ones(3)}, "no plain tensor"),
    "a list": ([torch.zeros(3)], "no state dict"),
}


class TestRefusal:
    """One line on stderr, exit status 1, nothing written."""

    @pytest.fixture
    def refuse(self, small_variant, capsys):
        def refuse(checkpoint: Path, variant: str = small_variant) -> str:
            folder = checkpoint.parent
            before = sorted(folder.iterdir())
            output = folder / "deep" / "output"
            assert main(["--variant", variant, "--checkpoint", str(checkpoint), "--output", str(output)]) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
            assert len(captured.err) < 3000
            assert sorted(folder.iterdir()) == before
            return captured.err

        return refuse

    @pytest.mark.filterwarnings("ignore:.*[Ss]parse")
    @pytest.mark.parametrize("case", BAD_ENTRIES)
    def test_entry(self, case, refuse, small_checkpoint, tmp_path):
        change, reason = BAD_ENTRIES[case]
        content = {key: value for key, value in (small_checkpoint | change).items() if value is not None}
        torch.save(content, tmp_path / "checkpoint.pth")
        assert reason in refuse(tmp_path / "checkpoint.pth")

    @pytest.mark.parametrize("case", BAD_CONTENTS)
    def test_content(self, case, refuse, tmp_path):
        content, reason = BAD_CONTENTS[case]
        torch.save(content, tmp_path / "checkpoint.pth")
        assert reason in refuse(tmp_path / "checkpoint.pth")

    def test_other_depth(self, refuse, tmp_path):
        """At full size; every tensor is one number, expanded to its shape, so that the file stays small."""
        state_dict = {
            key: torch.zeros(shape, dtype=torch.int64) if key.endswith("tracked") else torch.tensor(0.1).expand(shape)
            for key, shape in key_shapes(101, 21)
        }
        torch.save(state_dict, tmp_path / "checkpoint.pth")
        message = refuse(tmp_path / "checkpoint.pth", "ccnet-r50-voc12aug-512x512-20k")
        assert "left over: backbone.layer3.10." in message and "more" in message

    @pytest.mark.parametrize("new_format", [True, False])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_truncated_file(self, share, new_format, refuse, small_checkpoint, tmp_path):
        path = tmp_path / "checkpoint.pth"
        torch.save(small_checkpoint, path, _use_new_zipfile_serialization=new_format)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "damaged" in refuse(path)

    @pytest.mark.parametrize("content", [b"not a pickle", b"\x80\x02.", b"<html>404</html>", bytes(1000)])
    def test_no_checkpoint(self, content, refuse, tmp_path):
        (tmp_path / "checkpoint.pth").write_bytes(content)
        assert "damaged" in refuse(tmp_path / "checkpoint.pth")

    @pytest.mark.parametrize("new_format", [True, False])
    def test_code_in_the_pickle_is_not_run(self, new_format, refuse, small_checkpoint, tmp_path):
        path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
        content = {"meta": Malicious(trace), "state_dict": small_checkpoint}
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        assert "its pickle asks for" in refuse(path)
        assert not trace.exists()

    def test_wrong_hash(self, refuse, small_checkpoint, tmp_path):
        path = tmp_path / "ccnet_r50-d8_512x512_20k_voc12aug_20200617_193212-fad81784.pth"
        torch.save(small_checkpoint, path)
        message = refuse(path)
        assert "fad81784" in message and hashlib.sha256(path.read_bytes()).hexdigest()[:8] in message

    def test_missing_file(self, refuse, tmp_path):
        assert "absent.pth" in refuse(tmp_path / "absent.pth")

    def test_folder_for_a_file(self, refuse, tmp_path):
        (tmp_path / "folder.pth").mkdir()
        assert "folder.pth" in refuse(tmp_path / "folder.pth")

    @pytest.mark.parametrize("variant", ["ccnet-r50", "ccnet-mobilenetv2-camvid"])
    def test_wrong_variant(self, variant, refuse, small_checkpoint, tmp_path):
        torch.save(small_checkpoint, tmp_path / "checkpoint.pth")
        assert variant in refuse(tmp_path / "checkpoint.pth", variant)

    def test_output_in_use(self, small_variant, small_checkpoint, tmp_path, capsys):
        torch.save(small_checkpoint, tmp_path / "checkpoint.pth")
        output = tmp_path / "output"
        output.mkdir()
        (output / "mine.txt").write_text("keep")
        arguments = [
            "--variant",
            small_variant,
            "--checkpoint",
            str(tmp_path / "checkpoint.pth"),
            "--output",
            str(output),
        ]
        assert main(arguments) == 1
        assert "exists" in capsys.readouterr().err
        assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    small_variant, small_checkpoint, tmp_path, capsys, full_disk
):
    torch.save(small_checkpoint, tmp_path / "checkpoint.pth")
    arguments = ["--variant", small_variant, "--checkpoint", str(tmp_path / "checkpoint.pth")]
    arguments += ["--output", str(tmp_path / "output")]
    with full_disk(80_000):  # configuration and code still fit, the weights do not
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "output cannot be written: the disk is full or fails" in error and error.count("\n") == 1
    assert names(tmp_path) == ["checkpoint.pth"]
    assert main(arguments) == 0


def test_two_conversions_into_one_folder(small_variant, small_checkpoint, tmp_path):
    """One of them is refused, and the other one completes."""
    torch.save(small_checkpoint, tmp_path / "checkpoint.pth")
    arguments = (small_variant, tmp_path / "checkpoint.pth", tmp_path / "output")
    with exclusive(tmp_path / "output"), pytest.raises(InputError, match=r"another process is writing .*output"):
        convert_checkpoint(*arguments)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=convert_alone, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert sorted(process.exitcode for process in processes) == [0, 3, 3]
    assert names(tmp_path) == ["checkpoint.pth", "output"]
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "output")


def convert_alone(*arguments):
    torch.set_num_threads(1)  # the threads of the parent are not there
    try:
        convert_checkpoint(*arguments)
    except InputError as error:
        assert "another process is writing" in str(error) or "exists; name a new folder" in str(error)
        os._exit(3)


@pytest.mark.parametrize("option", [["--num_labels", "0"], ["--num_labels", "-3"], ["--recurrence", "-1"]])
def test_impossible_values_are_one_line(option, small_variant, small_checkpoint, tmp_path, capsys):
    torch.save(small_checkpoint, tmp_path / "checkpoint.pth")
    arguments = ["--variant", small_variant, "--checkpoint", str(tmp_path / "checkpoint.pth"), *option]
    assert main([*arguments, "--output", str(tmp_path / "output")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and option[0].strip("-") in error


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_while_it_writes(number, small_variant, small_checkpoint, tmp_path):
    """The folder is not there, and the next conversion clears up what is."""
    torch.save(small_checkpoint, tmp_path / "checkpoint.pth")

    def convert_and_die():
        torch.set_num_threads(1)  # the threads of the parent are not there
        # the processor is saved after the model
        CCNetImageProcessor.save_pretrained = lambda self, folder: os.kill(os.getpid(), number)
        convert_checkpoint(small_variant, tmp_path / "checkpoint.pth", tmp_path / "output")

    process = multiprocessing.get_context("fork").Process(target=convert_and_die)
    process.start()
    process.join(300)
    assert process.exitcode == -number
    assert not (tmp_path / "output").exists()
    (unfinished,) = tmp_path.glob(".output.*.unfinished")
    assert (unfinished / "model.safetensors").is_file()
    convert_checkpoint(small_variant, tmp_path / "checkpoint.pth", tmp_path / "output")
    assert names(tmp_path) == ["checkpoint.pth", "output"]
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "output")
