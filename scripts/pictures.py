"""Draw the pictures of README.md and docs/ again, into docs/images: `python scripts/pictures.py [NAME...] [--all]`.

Without names, those that take minutes at most on a CPU. `far_discs` and `shapes` are drawn by trainings of about
twelve minutes each, and only when they are named or with `--all`; screenshots need the extra `demo` and a browser.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from transformers import set_seed

from ccnet_hf.benchmark.growth_points import Point
from ccnet_hf.cli import main as run
from ccnet_hf.demo.demo_arguments import EMBEDDED_CHECKPOINT
from ccnet_hf.experiments import far_marks as experiment
from ccnet_hf.experiments.far_marks_dataset import far_marks
from ccnet_hf.files import atomic_file
from ccnet_hf.inference.attend import draw_figure
from ccnet_hf.inference.attention import attend


ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SAMPLE = ROOT / "examples" / "street.jpg"


def save(picture: Image.Image, name: str) -> None:
    with atomic_file(IMAGES / f"{name}.png") as unfinished:
        picture.save(unfinished, "PNG", optimize=True)


def command(*words: str | Path) -> None:
    """Run one of the package's commands; ends the script where it fails."""
    if status := run([str(word) for word in words]):
        raise SystemExit(status)


def street_overlay(folder: Path) -> None:
    command("segment", SAMPLE, "--model_name_or_path", EMBEDDED_CHECKPOINT, "--output_dir", folder)
    with Image.open(folder / "street_overlay.png") as picture:
        save(picture.convert("RGB"), "street_overlay")


def attention(folder: Path) -> None:
    drawn = folder / "attention.png"
    command("attend", SAMPLE, "--point", "300,200", "--model_name_or_path", EMBEDDED_CHECKPOINT, "--output", drawn)
    with Image.open(drawn) as picture:
        save(picture.convert("RGB").quantize(256), "attention")


def far_marks_(folder: Path) -> None:
    command("far_marks", "--output_dir", folder)
    shutil.copy(folder / "far_marks.png", IMAGES)


def attention_far_marks(folder: Path) -> None:
    """The attention of a pixel at the left edge, by a model that has learned far marks."""
    set_seed(0)
    model = experiment.build_model(recurrence=2)
    experiment.train(model, steps=150, seed=0)
    images, _, corners = far_marks(1, torch.Generator().manual_seed(3))
    image = to_pil_image(((images[0] + 1) / 3).clamp(0, 1))
    # In another row than the mark, at the edge.
    row = (int(corners[0, 0]) + image.height // 2) % image.height
    found = attend(model, images, (2, row), (image.height, image.width))
    save(draw_figure(image, (2, row), found).quantize(256), "attention_far_marks")


def draw_growth(blocks: dict[str, list[Point]], time: str) -> Image.Image:
    from ccnet_hf.benchmark import growth_figure  # here, so that --help needs no extra

    return growth_figure.draw_growth(blocks, time)


def growth(folder: Path) -> None:
    """From the numbers in docs/measurements.md, which take an hour to measure."""
    text = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    section = text[text.index("## Growth with the image") :]
    names = re.search(r"^\| image \| (.+) \|$", section, re.M)[1].split(" | ")[:3]
    blocks: dict[str, list[Point]] = {name: [] for name in names}
    for row in re.findall(r"^\| (\d+x\d+) \| (.+) \|$", section, re.M):
        height, width = map(int, row[0].split("x"))
        numbers = [float(number) if number.strip() else None for number in row[1].split("|")]
        for name, milliseconds, mebibytes in zip(names, numbers[:3], numbers[3:], strict=True):
            if milliseconds is not None:  # it fitted into memory
                blocks[name].append(Point(name, height, width, [milliseconds / 1000], int(mebibytes * 2**20)))
    save(draw_growth(blocks, "processor time"), "growth")


def far_discs(folder: Path) -> None:
    command(
        *("far_marks", "--instances", "--seeds", "0", "--recurrences", "2", "0"),
        *("--max_train_steps", "800", "--output_dir", folder),
    )
    shutil.copy(folder / "far_marks.png", IMAGES / "far_discs.png")


def shapes(folder: Path) -> None:
    command("shapes", "--output_dir", folder, "--max_train_steps", "500")
    shutil.copy(folder / "trained" / "predictions.png", IMAGES / "shapes.png")


def screenshots(folder: Path) -> None:
    """Of the web page, in a browser."""
    if importlib.util.find_spec("ccnet_hf.demo") is None:
        print("screenshots: this version has no web page")
        return
    subprocess.run([sys.executable, "-m", "ccnet_hf.demo.screenshots", "--output_dir", str(IMAGES)], check=True)


PICTURES: dict[str, Callable[[Path], None]] = {
    "street_overlay": street_overlay,
    "attention": attention,
    "far_marks": far_marks_,
    "attention_far_marks": attention_far_marks,
    "growth": growth,
    "screenshots": screenshots,
}
LONG: dict[str, Callable[[Path], None]] = {"far_discs": far_discs, "shapes": shapes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join([*PICTURES, *LONG])}")
    parser.add_argument("--all", action="store_true", help="also those that take long")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - (PICTURES | LONG).keys():
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    for name in arguments.names or [*PICTURES, *(LONG if arguments.all else [])]:
        with tempfile.TemporaryDirectory() as folder:
            (PICTURES | LONG)[name](Path(folder))
        print(f"{name}: drawn")
    if not (arguments.names or arguments.all):
        print(f"left out, because each takes a training of about twelve minutes: {', '.join(LONG)} (--all)")


if __name__ == "__main__":
    main()
