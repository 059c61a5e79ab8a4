"""Clips of the labelled frames of videos: which frames follow each other, and the last of them as an example."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision import tv_tensors

from ccnet_hf.data.dataset_arguments import DatasetArguments, segmentation_dataset
from ccnet_hf.data.loading import CorruptExample, SegmentationDataset
from ccnet_hf.errors import InputError, reading


if TYPE_CHECKING:
    import datasets
    from transformers import BaseImageProcessor, PreTrainedConfig


# A gap this many times the usual one between the frames of a sequence is a cut: CamVid's are 30 frames, but for 28
# and some of 29 and 31; its cuts have 270 and 1950.
_CUT = 1.5


def find_runs(names: Sequence[str]) -> list[list[int]]:
    """The runs of frames that follow each other, without a cut or another sequence between.

    Args:
        names: of the frames, the sequence and the number of the frame in it: `0001TP_006690`, `Seq05VD_f00030`.

    Returns:
        Indices into `names` for each run, in the order of the frames.

    Raises:
        InputError: a name has no number at its end, or two frames have one.
    """
    sequences: dict[str, list[tuple[int, int]]] = {}
    for index, name in enumerate(names):
        found = re.fullmatch(r"(.*?)_?[A-Za-z]?(\d+)", name)
        if found is None:
            raise InputError(f"{name}: the names of a video's frames end with their numbers, as 0001TP_006690")
        sequences.setdefault(found[1], []).append((int(found[2]), index))
    runs = []
    for sequence, frames in sequences.items():
        frames.sort()
        gaps = [after - before for (before, _), (after, _) in pairwise(frames)]
        if 0 in gaps:
            raise InputError(f"{sequence} has two frames with the number {frames[gaps.index(0)][0]}")
        usual = median(gaps) if gaps else 0
        runs.append([frames[0][1]])
        for gap, (_, index) in zip(gaps, frames[1:], strict=True):
            if gap > _CUT * usual:
                runs.append([])
            runs[-1].append(index)
    return runs


class ClipDataset(SegmentationDataset):
    """Clips of frames with label maps: every frame once as the last one of a clip of it and those before.

    A clip never crosses a cut or a sequence. At the start of a run it begins with its first frame several times, all
    but one of them without labels. Arguments and examples are those of `SegmentationDataset`, `image` (T, 3, H, W) and
    `label` (T, H, W) with one transform for all frames; and:

    Args:
        num_frames: T, of every clip.

    Raises:
        InputError: the split is a stream, or has no `name` that tells the sequence and the number of a frame.
    """

    def __init__(self, dataset: datasets.Dataset, *args: Any, num_frames: int, **options: Any):
        super().__init__(dataset, *args, **options)
        if self.streamed:
            raise InputError(
                "clips need the frames before a frame, which a stream does not keep: not with --streaming"
            )
        if "name" not in dataset.column_names:
            raise InputError(f"{self.source} has no column 'name', which tells the sequence and the number of a frame")
        with reading(self.source):
            names = dataset["name"][:]
        self.num_frames = num_frames
        self.runs = find_runs(names)
        self._places = {index: (run, place) for run in self.runs for place, index in enumerate(run)}

    @staticmethod
    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As [`SegmentationDataset.collate`], with `pixel_values_videos` (B, T, 3, H, W) and `labels` (B, T, H, W)."""
        batch = SegmentationDataset.collate(examples)
        return {"pixel_values_videos": batch.pop("pixel_values"), **batch}

    def clip(self, index: int) -> list[int]:
        """The frames of the clip whose last one is `index`, repeated at the start of a run."""
        run, place = self._places[index]
        return [run[max(0, place + step)] for step in range(1 - self.num_frames, 1)]

    def frame(self, index: int) -> tuple[Any, np.ndarray, str, bool]:
        """One frame: RGB image, label map (H, W) uint8, name, and whether the label map was turned with the image."""
        return self._decode(self._row(index), index)

    def __getitem__(self, key: int | tuple) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        corrupt: list[str] = []
        for place, _ in self._candidates(index):
            try:
                decoded = {frame: self.frame(frame) for frame in dict.fromkeys(self.clip(place))}
                break
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                corrupt.append(str(error))
        else:
            raise InputError(f"no example is readable; the first: {corrupt[0]}")
        frames = self.clip(place)
        sizes = sorted({decoded[frame][1].shape for frame in frames})
        if len(sizes) > 1:
            raise InputError(f"the frames of a clip must have one size, got {sizes} up to {decoded[place][2]}")
        images = np.stack([np.asarray(decoded[frame][0]) for frame in frames])
        labels = np.stack([decoded[frame][1] for frame in frames])
        for number, frame in enumerate(frames[:-1]):
            if frame == frames[number + 1]:
                labels[number] = self.ignore_index  # a frame that is repeated counts once
        image = tv_tensors.Image(torch.from_numpy(images).permute(0, 3, 1, 2))
        label = tv_tensors.Mask(torch.from_numpy(labels))
        image, label = self._transformed(image, label, epoch, index)
        names = [decoded[frame][2] for frame in dict.fromkeys(frames)]
        turned = any(decoded[frame][3] for frame in frames)
        return {"image": image, "label": label, "name": names[-1], "corrupt": corrupt, "turned": turned}


def clip_dataset(
    arguments: DatasetArguments,
    examples: datasets.Dataset,
    config: PreTrainedConfig,
    image_processor: BaseImageProcessor,
    transform: Any = None,
    seed: int = 0,
) -> ClipDataset:
    """The clips of a split for a model, as `segmentation_dataset` its images."""
    further = {"dataset_class": ClipDataset, "num_frames": config.num_frames}
    return segmentation_dataset(arguments, examples, config, image_processor, transform, seed, **further)
