"""Cityscapes: streets of 50 cities, 19 classes (Cordts et al., 2016). Training ids, not the 34 label ids."""

from ccnet_hf.data.benchmarks.layout import LabelFormat, RawLayout
from ccnet_hf.data.benchmarks.record import Benchmark, Protocol


# Name and RGB colour, by training id.
_CLASSES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

# Label id of every training id; the other label ids of 0..33 are ignored.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# Images by city.
_CITIES = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221,
        "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94,
        "strasbourg": 365, "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "validation": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398},
}  # fmt: skip

_LABELS = "gtFine/{split}/[^/]+/(?P<name>[^/]+)_gtFine_"

CITYSCAPES = Benchmark(
    name="cityscapes",
    title="Cityscapes",
    class_names=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    num_examples={"train": 2975, "validation": 500, "test": 1525},
    scenes="streets of German and nearby cities, seen from one car by day in fair weather",
    homepage="https://www.cityscapes-dataset.com",
    license="non-commercial research, no redistribution",
    license_name="cityscapes-terms",
    license_link="https://www.cityscapes-dataset.com/license/",
    hub_dataset_id="cityscapes",
    protocol=Protocol(size=(2048, 1024), images_per_gpu=2),
    raw=RawLayout(
        images=("leftImg8bit/{split}/[^/]+/(?P<name>[^/]+)_leftImg8bit\\.png",),
        labels=(
            # Mapped here: labelTrainIds exist only where somebody has run cityscapesScripts.
            LabelFormat(
                _LABELS + "labelIds\\.png",
                dict.fromkeys(range(34), 255) | {label_id: i for i, label_id in enumerate(LABEL_IDS)},
            ),
            LabelFormat(_LABELS + "labelTrainIds\\.png", {**{i: i for i in range(19)}, 255: 255}),
        ),
        splits={"train": "train", "validation": "val", "test": "test"},
        num_by_prefix=_CITIES,
        description=(
            "leftImg8bit_trainvaltest.zip (leftImg8bit/<split>/<city>/*_leftImg8bit.png) and "
            "gtFine_trainvaltest.zip (gtFine/<split>/<city>/*_gtFine_labelIds.png)"
        ),
        mapping=(
            "`gtFine_labelIds` (0..33) are mapped to the 19 training ids, all others to 255; `gtFine_labelTrainIds` "
            "are taken where only they exist. The labels of the test split are dummies: every pixel is 255."
        ),
    ),
)
