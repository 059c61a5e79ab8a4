"""Pascal VOC 2012 with SBD's labels in the training set (Hariharan et al., 2011), 21 classes with background."""

import io
from collections.abc import Mapping

import numpy as np

from ccnet_hf.data.benchmarks.layout import LabelFormat, NameList, RawLayout
from ccnet_hf.data.benchmarks.record import Benchmark, Protocol
from ccnet_hf.errors import InputError


# Name and RGB colour, by training id.
_CLASSES = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)

_VOID_COLOUR = (224, 224, 192)
_LISTS = {
    "VOC train": NameList(
        "ImageSets/Segmentation/train\\.txt", "ImageSets/Segmentation/train.txt of VOCdevkit/VOC2012"
    ),
    "VOC val": NameList("ImageSets/Segmentation/val\\.txt", "ImageSets/Segmentation/val.txt of VOCdevkit/VOC2012"),
    "SBD train": NameList("dataset/train\\.txt", "benchmark_RELEASE/dataset/train.txt of SBD"),
    "SBD val": NameList("dataset/val\\.txt", "benchmark_RELEASE/dataset/val.txt of SBD"),
}


def training_names(voc_train: set[str], voc_val: set[str], sbd: set[str]) -> set[str]:
    """The augmented training set: all that either set labels, without VOC's validation images."""
    return (voc_train | sbd) - voc_val


def _names(split: str, lists: Mapping[str, set[str]]) -> set[str]:
    if split == "validation":
        return lists["VOC val"]
    return training_names(lists["VOC train"], lists["VOC val"], lists["SBD train"] | lists["SBD val"])


def _decode_sbd(encoded: bytes) -> np.ndarray:
    """Read the classes of an SBD file, `GTcls.Segmentation`: (H, W), 0..20 without void."""
    import scipy.io  # only this benchmark needs it

    try:
        label = scipy.io.loadmat(io.BytesIO(encoded), variable_names="GTcls")["GTcls"][0]["Segmentation"][0]
        if label.dtype.kind not in "iu":
            raise TypeError(f"it holds {label.dtype} where integers are expected")
    except Exception as error:  # a damaged file makes SciPy raise a dozen kinds
        raise InputError(f"is not a whole SBD file ({type(error).__name__}: {error})") from error
    return label


VOC12AUG = Benchmark(
    name="voc12aug",
    title="Pascal VOC 2012 (augmented)",
    class_names=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    num_examples={"train": 10582, "validation": 1449},
    scenes="photographs from Flickr, mostly with few and large objects",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    license="images from Flickr under their own terms",
    license_name="pascal-voc-terms",
    license_link="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    hub_dataset_id="pascal_voc_2012",
    protocol=Protocol(size=(2048, 512), images_per_gpu=4, pad_before_normalization=True),
    raw=RawLayout(
        images=("JPEGImages/(?P<name>\\d{4}_\\d{6})\\.jpg", "dataset/img/(?P<name>\\d{4}_\\d{6})\\.jpg"),
        labels=(
            LabelFormat(
                "SegmentationClass/(?P<name>\\d{4}_\\d{6})\\.png",
                {**{i: i for i in range(21)}, 255: 255},
                colours={colour: i for i, (_, colour) in enumerate(_CLASSES)} | {_VOID_COLOUR: 255},
            ),
            LabelFormat("dataset/cls/(?P<name>\\d{4}_\\d{6})\\.mat", {i: i for i in range(21)}, decode=_decode_sbd),
        ),
        splits={"train": "train", "validation": "val"},
        required_lists=_LISTS,
        names=_names,
        description=(
            "VOCtrainval_11-May-2012.tar (VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}) "
            "and SBD's benchmark.tgz (benchmark_RELEASE/dataset/{img,cls,train.txt,val.txt})"
        ),
        mapping=(
            "Training set: all images that VOC's training list or SBD labels, without VOC's validation images. "
            "Ids 0..20 and 255 (void) are VOC's; where VOC has no label SBD's is taken, which has no void. "
            "Palettes, also expanded to RGB, are read by VOC's colours."
        ),
    ),
)
