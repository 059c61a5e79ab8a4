"""Pictures of the page for the documentation, taken in a browser: `python -m ccnet_hf.demo.screenshots`."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ccnet_hf.command import run_command
from ccnet_hf.data.images import read_image
from ccnet_hf.demo.demo_arguments import SAMPLES, DemoArguments
from ccnet_hf.demo.server import running
from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file, check_writable
from ccnet_hf.inference.images import find_images
from ccnet_hf.inference.video import VideoWriter


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


CHROMIUM = "/usr/bin/chromium"
# In a container, and without asking anyone for anything.
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
_SIZES = {"": (1280, 720), "_phone": (390, 844)}  # width and height in pixels by the end of the name of the file
_PIXEL = (0.55, 0.42)  # whose attention is shown: fractions of the width and the height of the sample
_FLAT_COLORS = 64  # of a screenshot, that are kept as they are
_PATIENCE = 300_000  # milliseconds


@dataclass(kw_only=True)
class ScreenshotArguments:
    output_dir: str = field(default="docs/images", metadata={"help": "folder for demo_segment.png and the others"})
    browser: str = field(default=CHROMIUM, metadata={"help": "program of a Chromium"})


def take_screenshots(arguments: ScreenshotArguments) -> None:
    """Write pictures of the three tabs of the web page, as a desk and as a phone show them."""
    output_dir = Path(arguments.output_dir)
    check_writable(output_dir)
    (sample, *_) = find_images([str(SAMPLES)])
    with (
        open_browser(arguments.browser) as browser,
        running(DemoArguments(host="127.0.0.1")) as (_, address),
        tempfile.TemporaryDirectory() as folder,
    ):
        video = Path(folder) / "street.mp4"
        _write_pan(read_image(sample), video)
        for end, (width, height) in _SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(_PATIENCE)
            open_page(page, address)
            _save(page, output_dir / f"demo_segment{end}.png")
            page.get_by_role("tab", name="Attention").click()
            click_on(page, *_PIXEL)
            _save(page, output_dir / f"demo_attention{end}.png")
            page.get_by_role("tab", name="Video").click()
            page.locator("#video input[type=file]").set_input_files(video)
            page.locator("#video video").wait_for()
            page.locator("#segment-video").click()
            page.locator("#tinted video").wait_for()
            _save(page, output_dir / f"demo_video{end}.png")
            page.close()
    print(f"screenshots in {output_dir}")


@contextmanager
def open_browser(program: str = CHROMIUM) -> Iterator["Browser"]:
    """A headless Chromium.

    Raises:
        InputError: there is none.
        ModuleNotFoundError: playwright is not installed.
    """
    from playwright.sync_api import sync_playwright

    if not os.access(program, os.X_OK):
        raise InputError(f"there is no browser at {program}; Debian's package chromium has one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def open_page(page: "Page", address: str) -> None:
    """Open the page and wait until the sample is segmented."""
    page.goto(address)
    wait_for_image(page, "#overlay img")


def click_on(page: "Page", x: float, y: float) -> None:
    """Click on a pixel of the picture in the second tab, by fractions of its width and height; wait for the views."""
    wait_for_image(page, "#attended img")
    image = page.locator("#attended img")
    box = image.bounding_box()
    image.click(position={"x": x * box["width"], "y": y * box["height"]})
    page.locator("#weights img").first.wait_for()


def wait_for_image(page: "Page", selector: str) -> None:
    """Wait for an image, which browsers fetch only when it is about to be seen."""
    image = page.locator(selector)
    image.wait_for(state="attached")
    image.scroll_into_view_if_needed()
    page.wait_for_function("selector => document.querySelector(selector)?.naturalWidth > 0", arg=selector)
    page.evaluate("scrollTo(0, 0)")


def _save(page: "Page", path: Path) -> None:
    """Save the whole page in 256 colours, with which it takes a third of the bytes."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # until nothing fades in or out
    image = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    with atomic_file(path) as unfinished:
        _with_few_colors(image).save(unfinished, format="PNG", optimize=True)


def _with_few_colors(image: Image.Image) -> Image.Image:
    """An RGB image in 256 colours: flat areas keep their own, of which there are few, and photographs share the
    others."""
    pixels = np.asarray(image)
    flat = np.ones(pixels.shape[:2], dtype=bool)
    for step in (1, 2):
        for axis in (0, 1):
            flat &= (np.roll(pixels, step, axis) == pixels).all(axis=-1)
    colors, counts = np.unique(pixels[flat], axis=0, return_counts=True)
    colors = colors[np.argsort(-counts)][:_FLAT_COLORS]
    others = image.quantize(256 - len(colors)).getpalette()[: 3 * (256 - len(colors))]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors.ravel().tolist() + others)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def _write_pan(image: Image.Image, path: Path, num_frames: int = 6) -> None:
    """A video that looks at the upper part of an image from left to right."""
    height = image.height // 2
    width = min(image.width, height * 4 // 3) // 2 * 2
    with VideoWriter(path, Fraction(4)) as writer:
        for number in range(num_frames):
            left = (image.width - width) * number // (num_frames - 1)
            writer.write(image.crop((left, 0, left + width, height // 2 * 2)))


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.demo.screenshots") -> int:
    return run_command(ScreenshotArguments, take_screenshots, argv, prog)


if __name__ == "__main__":
    raise SystemExit(main())
