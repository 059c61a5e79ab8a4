"""Small synthetic distributions of the benchmarks in their official folder layouts, with what they must become."""

import io
import os
import signal
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image


# Written down from the benchmarks' own tables, not from the package: source value -> training id.
CITYSCAPES = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
MAPPINGS = {
    "cityscapes": {value: CITYSCAPES.get(value, 255) for value in range(34)},
    "ade20k": {0: 255, **{value: value - 1 for value in range(1, 151)}},
    "voc12aug": {**{value: value for value in range(21)}, 255: 255},
    "lip": {value: value for value in range(20)},
    "camvid": {**{value: value for value in range(11)}, 11: 255},
}
SIZE = (12, 20)

# benchmark -> split -> (name, path of the image, path of the label)
EXAMPLES = {
    "cityscapes": {
        split: [
            (
                f"{city}_000000_00000{i}",
                f"leftImg8bit/{raw}/{city}/{city}_000000_00000{i}_leftImg8bit.png",
                f"gtFine/{raw}/{city}/{city}_000000_00000{i}_gtFine_labelIds.png",
            )
            for i in range(2)
        ]
        for split, raw, city in (("train", "train", "ulm"), ("validation", "val", "lindau"), ("test", "test", "bonn"))
    },
    "ade20k": {
        split: [
            (
                f"ADE_{short}_0000000{i}",
                f"ADEChallengeData2016/images/{raw}/ADE_{short}_0000000{i}.jpg",
                f"ADEChallengeData2016/annotations/{raw}/ADE_{short}_0000000{i}.png",
            )
            for i in (1, 2)
        ]
        for split, raw, short in (("train", "training", "train"), ("validation", "validation", "val"))
    },
    "voc12aug": {
        split: [
            (
                name,
                f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg",
                f"VOCdevkit/VOC2012/SegmentationClass/{name}.png",
            )
            for name in names
        ]
        for split, names in (("train", ("2007_000001", "2008_000002")), ("validation", ("2009_000003", "2010_000004")))
    },
    "lip": {
        split: [
            (
                f"{i}_{100 + i}",
                f"TrainVal_images/{split}_images/{i}_{100 + i}.jpg".replace("validation", "val"),
                f"TrainVal_parsing_annotations/{split}_segmentations/{i}_{100 + i}.png".replace("validation", "val"),
            )
            for i in numbers
        ]
        for split, numbers in (("train", (1, 2)), ("validation", (3, 4)))
    },
    "camvid": {
        split: [
            (f"{drive}_f{i}", f"CamVid/{raw}/{drive}_f{i}.png", f"CamVid/{raw}annot/{drive}_f{i}.png")
            for i in (1, 2)
        ]
        for split, raw, drive in (("train", "train", "6R0"), ("validation", "val", "16E5"), ("test", "test", "05VD"))
    },
}  # fmt: skip


def die(encoded: bytes) -> None:
    """A label decoder that ends its process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def encode(array: np.ndarray, suffix: str = ".png", palette: list[int] | None = None) -> bytes:
    image = PIL.Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, {".png": "PNG", ".jpg": "JPEG"}[suffix])
    return buffer.getvalue()


def voc_palette() -> list[int]:
    """VOC's colour map by its definition: the bits of the index dealt to the three channels, highest first."""
    palette = np.zeros((256, 3), np.uint8)
    for index in range(256):
        for bit in range(8):
            palette[index, bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return palette.ravel().tolist()


def write(root: Path, path: str, content: bytes | str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)


def write_distribution(root: Path, benchmark: str) -> dict[str, dict[str, tuple[bytes, np.ndarray]]]:
    """Write two examples of every split; returns split -> name -> (bytes of the image, training ids)."""
    generator = np.random.default_rng(0)
    mapping = MAPPINGS[benchmark]
    expected: dict[str, dict[str, tuple[bytes, np.ndarray]]] = {}
    for split, examples in EXAMPLES[benchmark].items():
        expected[split] = {}
        for name, image_path, label_path in examples:
            image = encode(generator.integers(0, 256, (*SIZE, 3), np.uint8), Path(image_path).suffix)
            source = generator.choice(sorted(mapping), SIZE).astype(np.uint8)
            label = encode(source, palette=voc_palette() if benchmark == "voc12aug" else None)
            write(root, image_path, image)
            write(root, label_path, label)
            table = np.array([mapping.get(value, 77) for value in range(256)], np.uint8)
            expected[split][name] = (image, table[source])
    for path, content in _lists(benchmark).items():
        write(root, path, content)
    return expected


def _lists(benchmark: str) -> dict[str, str]:
    names = {split: [example[0] for example in examples] for split, examples in EXAMPLES[benchmark].items()}
    if benchmark == "voc12aug":
        voc, sbd = "VOCdevkit/VOC2012/ImageSets/Segmentation", "benchmark_RELEASE/dataset"
        return {
            f"{voc}/train.txt": "".join(f"{name}\n" for name in names["train"]),
            f"{voc}/val.txt": "".join(f"{name}\n" for name in names["validation"]),
            f"{sbd}/train.txt": f"{names['train'][0]}\n",
            f"{sbd}/val.txt": f"{names['validation'][0]}\n",
        }
    if benchmark == "lip":
        return {
            f"TrainVal_images/{short}_id.txt": "".join(f"{name}\n" for name in names[split])
            for split, short in (("train", "train"), ("validation", "val"))
        }
    if benchmark == "camvid":
        return {
            f"CamVid/{short}.txt": "".join(
                f"/SegNet/CamVid/{short}/{name}.png /SegNet/CamVid/{short}annot/{name}.png\n" for name in names[split]
            )
            for split, short in (("train", "train"), ("validation", "val"), ("test", "test"))
        }
    return {}


def pack(root: Path, archive: Path, folder: str = "") -> Path:
    """Pack a folder of a distribution into an archive; the kind follows from its name."""
    files = [file for file in sorted((root / folder).rglob("*")) if file.is_file()]
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for file in files:
                target.write(file, file.relative_to(root))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".tgz", ".gz") else "w") as target:
            for file in files:
                target.add(file, file.relative_to(root))
    return archive
