"""The command from images to files, with a tiny CCNet, good input and bad."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetImageProcessor, CCNetResNetConfig
from ccnet_hf.inference import Predictor
from ccnet_hf.inference import segment as segment_module
from ccnet_hf.inference.segment import SegmentArguments, main, share_table


SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "segment.py"
CLASSES = ["road", "sidewalk", "sky", "tree"]
PALETTE = [[128, 64, 128], [244, 35, 232], [70, 130, 180], [107, 142, 35]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    backbone = CCNetResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], stem_size=8, out_features=["stage3", "stage4"]
    )
    config = CCNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        query_key_size=4,
        auxiliary_channels=8,
        initializer_range=1.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: label for label, name in enumerate(CLASSES)},
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    CCNetForSemanticSegmentation(config).half().save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}, palette=PALETTE).save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, make_image) -> Path:
    """An empty working folder but for a good image, `street.png`."""
    monkeypatch.chdir(tmp_path)
    make_image(40, 60).save("street.png")
    return tmp_path


def run(checkpoint: Path, *arguments: str) -> int:
    return main([*arguments, "--model_name_or_path", str(checkpoint), "--output_dir", "out", "--device", "cpu"])


def reads(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_overlay_and_label_map_are_what_the_predictor_says(checkpoint, here, capsys):
    assert run(checkpoint, "street.png") == 0
    assert sorted(path.name for path in (here / "out").iterdir()) == ["street_labels.png", "street_overlay.png"]
    model = CCNetForSemanticSegmentation.from_pretrained(checkpoint, dtype=torch.float32)
    label_map = Predictor(model, CCNetImageProcessor.from_pretrained(checkpoint)).label_map(Image.open("street.png"))
    labels = Image.open("out/street_labels.png")
    assert labels.mode == "P" and labels.getpalette()[:12] == np.ravel(PALETTE).tolist()
    assert (np.asarray(labels) == label_map.numpy()).mean() > 0.999
    assert Image.open("out/street_overlay.png").height > 40
    output = capsys.readouterr()
    assert output.err == ""
    assert "\n1 image segmented, results in out\n" in output.out
    shares = {CLASSES[label]: 100 * (np.asarray(labels) == label).mean() for label in np.unique(labels)}
    for name, share in shares.items():
        assert re.search(rf"^{name} +{share:.1f} %$|^{name} +<0.1 %$", output.out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "slide", "--crop_size", "32", "32", "--stride", "24", "24"],
        ["--scales", "0.5", "1.0", "1.5", "--flip"],
        ["--dtype", "bfloat16"],
        ["--dtype", "float16"],
    ],
    ids=lambda options: options[0],
)
def test_options(checkpoint, here, options):
    assert run(checkpoint, "street.png", *options) == 0
    assert reads("out/street_labels.png").shape == (40, 60)


@pytest.mark.parametrize("runtime", ["auto", "eager", "onnx", "openvino"])
def test_runtimes_say_what_the_model_says(checkpoint, here, runtime):
    for package in {"onnx": ["onnxruntime", "onnxscript"], "openvino": ["openvino"]}.get(runtime, []):
        pytest.importorskip(package)
    assert run(checkpoint, "street.png", "--runtime", runtime) == 0
    model = CCNetForSemanticSegmentation.from_pretrained(checkpoint, dtype=torch.float32)
    label_map = Predictor(model, CCNetImageProcessor.from_pretrained(checkpoint)).label_map(Image.open("street.png"))
    assert (reads("out/street_labels.png") == label_map.numpy()).mean() > 0.999


def test_a_runtime_that_is_not_there_is_one_line(checkpoint, here, capsys, monkeypatch):
    monkeypatch.setattr("ccnet_hf.deployment.machine.find_spec", lambda name: None)
    assert run(checkpoint, "street.png", "--runtime", "openvino") == 1
    assert "pip install 'ccnet-hf[export]'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(checkpoint, "street.png", "--runtime", "openvino", "--compile")
    assert "error: --compile is --runtime compile, which 'openvino' is not" in capsys.readouterr().err


def test_the_first_image_says_nothing_of_the_speed(checkpoint, here, monkeypatch, capsys):
    for name in ("b.png", "c.png", "d.png"):
        shutil.copy("street.png", name)
    clock = iter([100.0, 100.25, 100.75, 101.5])  # when each image is done
    monkeypatch.setattr(segment_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert run(checkpoint, "street.png", "b.png", "c.png", "d.png") == 0
    assert "\n4 images segmented, 0.50 s each after the first, results in out\n" in capsys.readouterr().out


def test_folders_patterns_and_equal_names(checkpoint, here, make_image, capsys):
    for index, name in enumerate(["one/street.png", "one/road.jpg", "two/street.png", "two/deep/alley.png"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        make_image(20 + index, 30).save(name)
    assert run(checkpoint, "street.png", "one", "two/**/*.png") == 0
    heights = {path.name: reads(str(path)).shape[0] for path in Path("out").glob("*_labels.png")}
    assert heights == {
        "street_labels.png": 40,
        "road_labels.png": 21,
        "street_2_labels.png": 20,
        "alley_labels.png": 23,
        "street_3_labels.png": 22,
    }
    output = capsys.readouterr().out
    assert "5 images segmented" in output
    assert "one/street.png is called street_2 there" in output


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode(checkpoint, here, mode):
    image = Image.open("street.png")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save("odd.tif")
    assert run(checkpoint, "odd.tif") == 0
    assert reads("out/odd_labels.png").shape == (40, 60)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (3, 500)])
def test_narrow_images(checkpoint, here, size):
    Image.new("RGB", size, (90, 120, 150)).save("narrow.png")
    assert run(checkpoint, "narrow.png") == 0
    assert Image.open("out/narrow_labels.png").size == size


def test_rotated_images_come_out_upright(checkpoint, here):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("street.png").save("turned.jpg", exif=exif)
    assert run(checkpoint, "turned.jpg") == 0
    assert reads("out/turned_labels.png").shape == (60, 40)


def test_without_a_palette_colours_are_made_up(checkpoint, here):
    folder = here / "model"
    shutil.copytree(checkpoint, folder)
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    assert run(folder, "street.png") == 0
    palette = Image.open("out/street_labels.png").getpalette()[:12]
    assert len({tuple(palette[index : index + 3]) for index in range(0, 12, 3)}) == 4
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}, palette=PALETTE[:1]).save_pretrained(folder)
    assert run(folder, "street.png") == 0  # of the classes before a fine-tuning
    assert Image.open("out/street_labels.png").getpalette()[:12] == palette


def test_label_maps_of_eight_bits_are_promised_beforehand(checkpoint, here, capsys):
    names = {str(label): f"class {label}" for label in range(300)}
    model = CCNetForSemanticSegmentation.from_pretrained(
        checkpoint, id2label=names, semantic_loss_ignore_index=-100, ignore_mismatched_sizes=True
    )
    model.save_pretrained(here / "model")
    shutil.copy(checkpoint / "preprocessor_config.json", here / "model")
    capsys.readouterr()
    assert run(here / "model", "street.png") == 1
    assert "8-bit images, which hold 256 classes; the model has 300" in capsys.readouterr().err
    assert not Path("out").exists()


def fails(capsys, message: str) -> None:
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(f"error: [^\n]*{message}[^\n]*\n", output.err), output.err


def truncate(path: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "inputs, message",
    [
        (["gone.png"], "no such file or folder: gone.png"),
        (["street.png", "*.gif"], r"no file matches \*.gif"),
        (["empty"], "no images in folder empty"),
        (["text.png"], r"text.png: cannot be read \(it is not an image in "),
        (["street.png", "--mode", "slide"], "needs crop_size and stride"),
        (["street.png", "--crop_size", "8", "8"], "belong to mode 'slide'"),
        (["street.png", "--scales", "0"], "scales must be positive"),
        (["street.png", "--device", "gpu"], "unknown device 'gpu'"),
        (["street.png", "--device", "cuda:99"], "cannot use device cuda:99"),
        (["out"], "both input and output folder"),
    ],
)
def test_bad_input_is_answered_in_one_line(checkpoint, here, capsys, inputs, message):
    Path("empty").mkdir()
    Path("out").mkdir()
    Path("text.png").write_text("no image")
    assert main(["--model_name_or_path", str(checkpoint), "--output_dir", "out", "--device", "cpu", *inputs]) == 1
    fails(capsys, message)
    assert not list(Path("out").iterdir())


def test_a_truncated_image_is_named(checkpoint, here, capsys):
    shutil.copy("street.png", "cut.png")
    truncate("cut.png")
    assert run(checkpoint, "cut.png") == 1
    fails(capsys, "cut.png: cannot be read .*truncated")


def test_corrupt_images_can_be_skipped(checkpoint, here, capsys):
    Path("text.png").write_text("no image")
    shutil.copy("street.png", "cut.png")
    truncate("cut.png")
    assert run(checkpoint, "text.png", "cut.png", "street.png", "--skip_corrupt") == 0
    output = capsys.readouterr().out
    assert "1 image segmented" in output and "2 images skipped:" in output
    assert "text.png: cannot be read (it is not" in output and "cut.png: cannot be read" in output
    assert run(checkpoint, "text.png", "--skip_corrupt") == 1
    assert "no image could be read" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file(checkpoint, here, capsys):
    Path("out").touch()
    assert run(checkpoint, "street.png") == 1
    fails(capsys, "out")


def test_a_folder_that_cannot_be_written_is_found_before_the_work(checkpoint, here, capsys, full_disk, monkeypatch):
    monkeypatch.setattr(SegmentArguments, "load_predictor", None)
    with full_disk(1000):
        assert run(checkpoint, "street.png") == 1
    fails(capsys, "out cannot be written: file too large")
    assert not Path("out").exists()


def test_a_full_disk_leaves_complete_images_only(checkpoint, here, make_image, capsys, full_disk):
    Image.effect_noise((200, 200), 100).save("noise.png")
    with full_disk(10_000):
        assert run(checkpoint, "street.png", "noise.png") == 1
    fails(capsys, "noise_overlay.png cannot be written: file too large")
    assert sorted(path.name for path in Path("out").iterdir()) == ["street_labels.png", "street_overlay.png"]
    assert run(checkpoint, "street.png", "noise.png") == 0
    assert len(list(Path("out").iterdir())) == 4


KILLED = """
import os, signal, sys
from PIL import Image
from ccnet_hf.inference.segment import main
save, count = Image.Image.save, 0
def save_half(image, file, **options):
    global count
    save(image, file, **options)
    count += 1
    if count == 3:
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
Image.Image.save = save_half
main(sys.argv[1:])
"""


def test_a_kill_leaves_complete_images_only(checkpoint, here):
    shutil.copy("street.png", "other.png")
    command = [sys.executable, "-c", KILLED, "street.png", "other.png", "--model_name_or_path", str(checkpoint)]
    killed = subprocess.run([*command, "--output_dir", "out", "--device", "cpu"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in Path("out").glob("[!.]*")) == ["street_labels.png", "street_overlay.png"]
    assert run(checkpoint, "street.png", "other.png") == 0
    for name in ("overlay", "labels"):
        assert Path(f"out/street_{name}.png").read_bytes() == Path(f"out/other_{name}.png").read_bytes()


def test_two_processes_write_into_one_folder(checkpoint, here):
    shutil.copy("street.png", "other.png")
    command = [sys.executable, str(SCRIPT), "street.png", "--model_name_or_path", str(checkpoint), "--output_dir"]
    with subprocess.Popen([*command, "out", "--device", "cpu"], stdout=subprocess.DEVNULL) as process:
        assert run(checkpoint, "street.png", "other.png") == 0
        assert process.wait(300) == 0
    results = sorted(path.name for path in Path("out").iterdir())
    assert results == [f"{stem}_{name}.png" for stem in ("other", "street") for name in ("labels", "overlay")]
    for name in ("overlay", "labels"):
        assert Path(f"out/street_{name}.png").read_bytes() == Path(f"out/other_{name}.png").read_bytes()


def break_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no such model folder: model"),
        (lambda folder: (folder / "config.json").unlink(), "model holds no config.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "ccn'),
            "model/config.json cannot be read: Unterminated string",
        ),
        (lambda folder: break_config(folder, model_type="segformer"), "'segformer', not 'ccnet'"),
        (lambda folder: break_config(folder, recurrence=-1), "model/config.json cannot be read: .*recurrence"),
        (lambda folder: break_config(folder, recurrence="two"), "model/config.json cannot be read: .*recurrence"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model holds no model.safetensors"),
        (lambda folder: truncate(str(folder / "model.safetensors")), "model/model.safetensors cannot be read: "),
        (drop_tensor, "weights are missing, classifier.weight"),
        (lambda folder: break_config(folder, hidden_size=24), r"shape .* in model.safetensors, .* by config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "model holds no preprocessor_config.json"),
    ],
)
def test_a_bad_model_folder_is_answered_in_one_line(checkpoint, here, capsys, damage, message):
    folder = here / "model"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    assert run(Path("model"), "street.png") == 1
    fails(capsys, message)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: .*IMAGE"),
        (["street.png", "--mode", "sliding"], "sliding"),
        (["street.png", "--scales", "half"], "half"),
        (["street.png", "--colour", "red"], "--colour"),
    ],
)
def test_wrong_arguments_exit_with_status_2(checkpoint, here, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        run(checkpoint, *arguments)
    assert exit_.value.code == 2
    fails(capsys, message)


def test_switches_may_stand_before_images(checkpoint, here):
    assert run(checkpoint, "--flip", "street.png") == 0


def test_the_script_in_a_process_of_its_own(checkpoint, here):
    """No library says anything, and a failure leaves one line, no traceback."""
    command = [sys.executable, str(SCRIPT), "--model_name_or_path", str(checkpoint), "--output_dir", "out"]
    good = subprocess.run([*command, "--device", "cpu", "street.png"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("class ")
    bad = subprocess.run([*command, "gone.png"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", "error: no such file or folder: gone.png\n")


def test_share_table_is_sorted_and_aligned():
    assert share_table(["a", "long name", "absent"], [0.25, 0.75, 0.0]).splitlines() == [
        "class        share",
        "long name   75.0 %",
        "a           25.0 %",
    ]


def test_images_above_the_limit_name_the_option_that_allows_them(checkpoint, here, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert run(checkpoint, "street.png") == 1
    error = capsys.readouterr().err
    assert "street.png: cannot be read (Image size (2400 pixels) exceeds limit of 2000" in error
    assert "--max_image_pixels allows larger images, 0 any" in error
    assert run(checkpoint, "street.png", "--max_image_pixels", "-1") == 1
    assert "max_image_pixels must be a number of pixels" in capsys.readouterr().err
    assert run(checkpoint, "street.png", "--max_image_pixels", "0") == 0
    monkeypatch.undo()
    assert reads(str(here / "out" / "street_labels.png")).shape == (40, 60)
