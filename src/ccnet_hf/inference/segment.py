"""The command that segments images and videos: overlays and label maps, and a table of the fractions of classes."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import huggingface_hub.utils.logging
import numpy as np
import torch
import transformers.utils.logging
from PIL import Image
from tqdm import tqdm

from ccnet_hf.command import run_command
from ccnet_hf.data.images import check_max_pixels, read_image
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.files import atomic_file, check_writable
from ccnet_hf.inference.images import find_images, unique_stems
from ccnet_hf.inference.instances import InstancePredictor
from ccnet_hf.inference.overlap import WriteBehind, read_ahead
from ccnet_hf.inference.predictor_arguments import PredictorArguments
from ccnet_hf.inference.segment_instances import segment_instances
from ccnet_hf.inference.segment_video import rounds_note, segment_video
from ccnet_hf.inference.video import VIDEO_SUFFIXES
from ccnet_hf.visualization import class_shares, colorize, complete_palette, format_share, overlay


# By file: how much is compressed. At the lowest level an overlay takes a quarter of the usual time, for files a fifth
# to a third larger.
COMPRESSION = {"overlay": 1, "labels": 6}


@dataclass(kw_only=True)
class SegmentArguments(PredictorArguments):
    images: list[str] = field(
        metadata={
            "positional": True,
            "metavar": "IMAGE_OR_VIDEO",
            "help": "images, folders of images, patterns, or videos (.mp4, .mov, .mkv, ...)",
        }
    )
    output_dir: str = field(
        metadata={
            "metavar": "DIR",
            "help": "folder for NAME_overlay.png and NAME_labels.png of every image, NAME_overlay.mp4 of every video",
        }
    )
    compile: bool = field(default=False, metadata={"help": "as --runtime compile; pays off with many images"})
    skip_corrupt: bool = field(
        default=False, metadata={"help": "go on after an unreadable image, and count them at the end"}
    )
    max_image_pixels: int | None = field(
        default=None, metadata={"help": "largest image that is read, in pixels, 0: any; default: 178956970"}
    )

    def __post_init__(self):
        if self.compile and self.runtime not in (None, "compile"):
            raise InputError(f"--compile is --runtime compile, which {self.runtime!r} is not")
        if self.compile:
            self.runtime = "compile"


def segment(arguments: SegmentArguments) -> None:
    """Segment images and videos with a CCNet: an overlay with a legend and a label map (pixel = class id) for each
    image, a tinted video for each video."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()

    check_max_pixels(arguments.max_image_pixels)
    output_dir = Path(arguments.output_dir)
    paths = find_images(arguments.images, exclude=output_dir)
    check_writable(output_dir)
    predictor = arguments.load_predictor()
    if isinstance(predictor, InstancePredictor):
        named = list(zip(paths, unique_stems(paths), strict=True))
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        if videos:
            raise InputError(f"{videos[0]}: instances are found in images, not in videos")
        segment_instances(predictor, named, output_dir, arguments.skip_corrupt, arguments.max_image_pixels)
        return
    if note := rounds_note(predictor):
        print(note)
    config = predictor.config
    class_names = [config.id2label[label] for label in range(config.num_labels)]
    if len(class_names) > 256:
        raise InputError(
            f"label maps are written as 8-bit images, which hold 256 classes; the model has {len(class_names)}"
        )
    palette = complete_palette(predictor.image_processor.palette, len(class_names))

    finished, skipped, num_frames = [], [], 0
    weights = np.zeros(len(class_names))  # of every class: its pixels, at most so many as there are

    def count(label_map: np.ndarray) -> None:
        nonlocal weights
        weights += label_map.size * class_shares(label_map, len(class_names))

    named = list(zip(paths, unique_stems(paths), strict=True))
    videos = [(path, stem) for path, stem in named if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [pair for pair in named if pair not in videos]

    def read(named: tuple[Path, str]) -> tuple[Image.Image, Callable[[], Callable[[], torch.Tensor]]]:
        path, _ = named
        image = read_image(path, arguments.max_image_pixels)
        with _enough_memory(path, image):
            return image, predictor.steps(image)

    def write(image: Image.Image, make_label_map: Callable[[], torch.Tensor], path: Path, stem: str) -> None:
        with _enough_memory(path, image):
            label_map = make_label_map().cpu().numpy()
        count(label_map)
        results = {"overlay": overlay(image, label_map, palette, class_names), "labels": colorize(label_map, palette)}
        for name, result in results.items():
            with atomic_file(output_dir / f"{stem}_{name}.png") as unfinished:
                result.save(unfinished, compress_level=COMPRESSION[name])

    bar = tqdm(total=len(images), desc="segmenting", unit="image", disable=None if images else True)
    with bar, WriteBehind() as writer, closing(read_ahead(read, images)) as readings:
        for (path, stem), reading in readings:
            try:
                image, compute = reading.result()
            except InputError as error:
                if not arguments.skip_corrupt:
                    raise
                skipped.append(str(error))
            else:
                with _enough_memory(path, image):
                    make_label_map = compute()
                writer.submit(write, image, make_label_map, path, stem)
                finished.append(time.perf_counter())
            bar.update()

    for path, stem in videos:
        try:
            num_frames += segment_video(predictor, path, output_dir / f"{stem}_overlay.mp4", palette, count)
        except InputError as error:
            if not arguments.skip_corrupt:
                raise
            skipped.append(str(error))

    if weights.any():
        print(share_table(class_names, weights / weights.sum()))
    if num_frames:
        print(f"\n{_counted(num_frames, 'frame')} segmented, results in {output_dir}")
    if finished:
        # The first image also waits for what libraries prepare once; it says nothing of the others.
        passed = [later - earlier for earlier, later in pairwise(finished)]
        speed = f"{median(passed):.2f} s each after the first, " if passed else ""
        print(f"\n{_counted(len(finished))} segmented, {speed}results in {output_dir}")
    for path, stem in named:
        if stem != path.stem:
            print(f"{path} is called {stem} there, because another file has its name")
    if skipped:
        print(f"{_counted(len(skipped), 'file' if videos else 'image')} skipped:", *skipped, sep="\n  ")
    if not finished and not num_frames:
        raise InputError("no image could be read" if images else "no video could be read")


def share_table(class_names: Sequence[str], shares: Sequence[float]) -> str:
    """Classes present and their fraction of the pixels, largest first, in aligned columns."""
    rows = sorted(((share, name) for share, name in zip(shares, class_names, strict=True) if share > 0), reverse=True)
    width = max([len("class"), *(len(name) for _, name in rows)])
    lines = [f"{'class':{width}}  {'share':>7}"]
    lines += [f"{name:{width}}  {format_share(share):>7}" for share, name in rows]
    return "\n".join(lines)


def _enough_memory(path: Path, image: Image.Image) -> AbstractContextManager[None]:
    return enough_memory(f"{path} ({image.width}x{image.height} pixels)", "--mode slide needs less")


def _counted(number: int, what: str = "image") -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def main(argv: Sequence[str] | None = None, prog: str = "segment.py") -> int:
    return run_command(SegmentArguments, segment, argv, prog)
