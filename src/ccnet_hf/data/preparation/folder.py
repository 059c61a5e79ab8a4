"""A folder of images and a folder of masks as a Hugging Face dataset."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq
from huggingface_hub import HfApi

from ccnet_hf.data.archives import RawFile, check_sources, close_archives, list_files, normal_form
from ccnet_hf.data.benchmarks.layout import LabelFormat, RawLayout
from ccnet_hf.data.benchmarks.record import Benchmark
from ccnet_hf.data.images import check_max_pixels
from ccnet_hf.data.preparation.examples import RawExample
from ccnet_hf.data.preparation.prepare import report_and_push
from ccnet_hf.data.preparation.prepare_arguments import FolderArguments
from ccnet_hf.data.preparation.shards import PreparedDataset
from ccnet_hf.data.preparation.writing import check_output_dir, counted, first_names, label_maps, write_dataset
from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import exclusive, remove_leftovers
from ccnet_hf.hub import check_token
from ccnet_hf.limits import MAX_PROCESSES, check_range
from ccnet_hf.visualization.segmentation import generate_palette


_SUFFIXES = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_IGNORED = 255
_MAX_CLASSES = 255


def prepare_folder(
    images: str | Path,
    masks: str | Path,
    output_dir: str | Path,
    classes: Sequence[str],
    mask_values: Sequence[str] = (),
    ignored_values: Sequence[str] = (),
    mask_suffix: str = "",
    validation_fraction: float = 0.1,
    num_proc: int = 1,
    skip_corrupt: bool = False,
    max_shard_size: int = 500_000_000,
    max_image_pixels: int | None = None,
) -> PreparedDataset:
    """Write images and masks as parquet shards and a card, which `datasets.load_dataset(output_dir)` reads.

    An image and its mask have the same path below their folders, but for what the names end in. Where both folders
    have subfolders `train`, `val` (or `validation`) and `test`, these are the splits; otherwise a fraction of the
    images is for validation, drawn by a hash of their names: the same names give the same splits.

    Args:
        images: folder or archive of images.
        masks: folder or archive of masks, one channel of values, or colours.
        output_dir: folder to write; finished shards in it are kept.
        classes: names of the classes.
        mask_values: what stands for each class in a mask, in the order of `classes`: a value, `"128"`, or a colour,
            `"128,0,0"`. By default 0, 1, 2, ... Any other value is an error.
        ignored_values: values or colours of pixels that neither train nor count. By default 255, where it is not a
            class's value, and no colour.
        mask_suffix: what the name of a mask has beside that of its image: `"_mask"` for `a.jpg` and `a_mask.png`.
        validation_fraction: of the images, where there are no subfolders for splits.
        num_proc: workers that read, check and encode; as in `prepare_dataset`.
        skip_corrupt: leave out images without a mask, and damaged files, instead of ending there.
        max_shard_size: most bytes of images in one parquet file.
        max_image_pixels: the largest number of pixels of an image, 0 for any; by default Pillow's 178,956,970.

    Raises:
        InputError: files are missing, damaged or do not fit each other, and the message names them; a mask holds a
            value that stands for no class; another process is preparing in the same folder; or that holds a
            `README.md` that is no card of a dataset.
        OSError: `output_dir` cannot be written, or the disk is full.
    """
    check_range("num_proc", num_proc, 1, MAX_PROCESSES)
    check_range("--validation_fraction", validation_fraction, 0, 0.9)
    check_max_pixels(max_image_pixels)
    label_format = _label_format(classes, mask_values, ignored_values)
    mask_suffix = normal_form(mask_suffix)
    check_sources([images])
    check_sources([masks])
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    scratch = output_dir / ".unpacked"
    with exclusive(output_dir, inside=True):
        for folder in (output_dir, scratch, output_dir / "data"):
            remove_leftovers(folder)
        try:
            found = _by_name(list_files([images], scratch), without=mask_suffix)
            found_masks = _by_name(list_files([masks], scratch), suffix=mask_suffix)
            names = sorted(found.keys() | found_masks.keys())
            pairs = {name: (found.get(name), found_masks.get(name)) for name in names}
            examples = _splits(_complete(pairs, label_format, images, masks, skip_corrupt), validation_fraction)
            kind = label_maps(_record(Path(images), classes, label_format), max_image_pixels)
            prepared = write_dataset(kind, examples, output_dir, num_proc, skip_corrupt, max_shard_size)
        finally:
            close_archives()
        shutil.rmtree(scratch, ignore_errors=True)
    return prepared


def _label_format(classes: Sequence[str], mask_values: Sequence[str], ignored_values: Sequence[str]) -> LabelFormat:
    """How a mask is read: the class of every value, or of every colour."""
    if not 2 <= len(classes) <= _MAX_CLASSES:
        raise InputError(f"--classes takes 2 to {_MAX_CLASSES} names, the background's among them; got {len(classes)}")
    if len(set(classes)) < len(classes):
        raise InputError("--classes names a class twice")
    for name in classes:
        with reading(f"the name {name!r} in --classes"):
            name.encode()  # arguments need not be text
        if not any(letter.isprintable() and not letter.isspace() for letter in name):
            raise InputError(f"--classes takes names that can be seen, got {name!r}")
    values = [_parsed(value) for value in mask_values] or [(index,) for index in range(len(classes))]
    if len(values) != len(classes):
        raise InputError(f"--mask_values has {counted(len(values), 'value', 'values')} for {len(classes)} classes")
    ignored = [_parsed(value) for value in ignored_values]
    by_value = {value: index for index, value in enumerate(values)} | dict.fromkeys(ignored, _IGNORED)
    if len(by_value) < len(values) + len(ignored) or len({len(value) for value in by_value}) > 1:
        raise InputError("--mask_values and --ignored_values are all numbers or all colours, none of them twice")
    if len(values[0]) == 3:
        ids = {index: index for index in range(len(classes))}
        return LabelFormat("", ids, colours=by_value, hint="--mask_values takes numbers for masks of one channel")
    if not ignored:
        by_value.setdefault((_IGNORED,), _IGNORED)
    ids = {value: index for (value,), index in by_value.items()}
    return LabelFormat("", ids, hint="for masks of colours --mask_values takes the colour R,G,B of every class")


def _parsed(text: str) -> tuple[int, ...]:
    try:
        value = tuple(int(part) for part in text.split(","))
    except ValueError:
        value = ()
    if len(value) not in (1, 3) or not all(0 <= part <= 255 for part in value):
        raise InputError(
            f"--mask_values and --ignored_values take numbers from 0 to 255 or colours such as 128,0,0; got {text!r}"
        )
    return value


def _by_name(files: Sequence[RawFile], suffix: str = "", without: str = "") -> dict[str, RawFile]:
    """The pictures among some files, by their path without folders that all have in common and without its ending.

    Args:
        files: of a folder or an archive.
        suffix: only of these names, which is left out of them.
        without: none of these names.
    """
    pictures = []
    for file in files:
        path = PurePosixPath(file.path)
        if (
            path.suffix.lower() in _SUFFIXES
            and path.stem.endswith(suffix)
            and not (without and path.stem.endswith(without))
        ):
            pictures.append(([*path.parts[:-1], path.stem.removesuffix(suffix)], file))
    while pictures and all(len(parts) > 1 and parts[0] == pictures[0][0][0] for parts, _ in pictures):
        if pictures[0][0][0] in _SPLITS:
            break
        pictures = [(parts[1:], file) for parts, file in pictures]
    found: dict[str, RawFile] = {}
    for (*folders, stem), file in pictures:
        name = "/".join((*(_SPLITS.get(folder, folder) for folder in folders[:1]), *folders[1:], stem))
        with reading(f"the name of {file}"):
            name.encode()  # file systems and archives allow names that are no text
        if name in found:
            raise InputError(
                f"{found[name]} and {file} have the same name but for what it ends in, or how its letters are encoded"
            )
        found[name] = file
    return found


def _complete(
    pairs: Mapping[str, tuple[RawFile | None, RawFile | None]],
    label_format: LabelFormat,
    images: str | Path,
    masks: str | Path,
    skip_corrupt: bool,
) -> list[RawExample]:
    """The images with their masks; refuses, or leaves to be left out, what has only one of the two."""
    if not any(image and mask for image, mask in pairs.values()):
        example = next((str(image or mask) for image, mask in pairs.values()), None)
        found = f"; the first file is {example}" if example else ""
        raise InputError(
            f"no picture in {images} has a mask of its name in {masks}{found} (--mask_suffix says what the names of "
            "masks have beside those of the images)"
        )
    without_mask = [name for name, (_, mask) in pairs.items() if mask is None]
    without_image = [name for name, (image, _) in pairs.items() if image is None]
    problems = [
        f"{counted(len(names), one, more)}: {first_names(names)}"
        for one, more, names in (
            ("image has no mask", "images have no mask", without_mask),
            ("mask has no image", "masks have no image", without_image),
        )
        if names
    ]
    if problems and not skip_corrupt:
        raise InputError(f"{'; '.join(problems)}; --skip_corrupt leaves them out")
    return [
        RawExample(name, (image,) if image else (), (mask,) if mask else (), label_format)
        for name, (image, mask) in pairs.items()
    ]


def _splits(examples: Sequence[RawExample], validation_fraction: float) -> dict[str, list[RawExample]]:
    """The examples by split: that of their subfolder, or drawn."""
    folders = [example.name.partition("/")[0] if "/" in example.name else None for example in examples]
    if "train" in folders and set(folders) <= set(_SPLITS.values()):
        splits = [split for split in ("train", "validation", "test") if split in folders]
        return {
            split: [one for one, folder in zip(examples, folders, strict=True) if folder == split] for split in splits
        }
    number = round(validation_fraction * len(examples))
    if validation_fraction and len(examples) > 1:
        number = min(max(number, 1), len(examples) - 1)
    drawn = sorted(examples, key=lambda example: hashlib.sha256(example.name.encode()).digest())
    chosen = {example.name for example in drawn[:number]}
    parts = {
        "train": [example for example in examples if example.name not in chosen],
        "validation": [example for example in examples if example.name in chosen],
    }
    return {split: part for split, part in parts.items() if part}


def _record(images: Path, classes: Sequence[str], label_format: LabelFormat) -> Benchmark:
    """What the writer and the card ask of a dataset."""
    meaning = label_format.colours or label_format.training_ids
    mapping = ", ".join(
        f"{' '.join(map(str, value)) if isinstance(value, tuple) else value} is "
        f"{'ignored' if index == _IGNORED else classes[index]}"
        for value, index in meaning.items()
    )
    layout = RawLayout(
        images=(), labels=(label_format,), splits={}, description="", mapping=f"In the masks {mapping}."
    )
    title = os.fsencode(images.resolve().name).decode(errors="replace")  # it need not be text
    return Benchmark("folder", title, tuple(classes), tuple(generate_palette(len(classes))), raw=layout)


def absent_classes(output_dir: str | Path, classes: Sequence[str]) -> list[str]:
    """The classes that occur in no mask of a prepared dataset."""
    present: set[int] = set()
    for shard in sorted(Path(output_dir, "data").glob("*.parquet")):
        for labels in pq.read_table(shard, columns=["classes"])["classes"].to_pylist():
            present.update(labels)
    return [name for index, name in enumerate(classes) if index not in present]


def prepare(arguments: FolderArguments) -> None:
    """Turn a folder of images and a folder of masks into a dataset, and push it if asked."""
    if arguments.hub_dataset_id:
        check_token(HfApi(), arguments.hub_dataset_id)  # before the work, not after it
    prepared = prepare_folder(
        arguments.images,
        arguments.masks,
        arguments.output_dir,
        arguments.classes,
        arguments.mask_values,
        arguments.ignored_values,
        arguments.mask_suffix,
        arguments.validation_fraction,
        arguments.num_proc,
        arguments.skip_corrupt,
        max_image_pixels=arguments.max_image_pixels,
    )
    counts = ", ".join(f"{split} {number:,}" for split, number in prepared.num_examples.items())
    print(f"{arguments.output_dir} holds the dataset: {counts}")
    if absent := absent_classes(arguments.output_dir, arguments.classes):
        print(f"in no mask: {', '.join(absent)} (--mask_values says which value stands for which class)")
    report_and_push(prepared, arguments.output_dir, arguments.hub_dataset_id)


__all__ = ["absent_classes", "prepare", "prepare_folder"]
