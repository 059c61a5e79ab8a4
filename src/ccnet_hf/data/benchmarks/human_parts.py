"""ATR and Pascal-Person-Part, which SCHP publishes human parsers for: their classes, without a way to prepare them.

Source of names and order: `simple_extractor.py` of GoGoDuck912/Self-Correction-Human-Parsing, which draws label maps
in the colours of Pascal VOC.
"""

from ccnet_hf.data.benchmarks.record import Benchmark
from ccnet_hf.data.benchmarks.voc12aug import VOC12AUG


_ATR_CLASSES = (
    "Background",
    "Hat",
    "Hair",
    "Sunglasses",
    "Upper-clothes",
    "Skirt",
    "Pants",
    "Dress",
    "Belt",
    "Left-shoe",
    "Right-shoe",
    "Face",
    "Left-leg",
    "Right-leg",
    "Left-arm",
    "Right-arm",
    "Bag",
    "Scarf",
)
_PASCAL_CLASSES = ("Background", "Head", "Torso", "Upper Arms", "Lower Arms", "Upper Legs", "Lower Legs")

ATR = Benchmark(
    name="atr",
    title="ATR",
    class_names=_ATR_CLASSES,
    palette=VOC12AUG.palette[: len(_ATR_CLASSES)],
    flip_label_pairs=((9, 10), (12, 13), (14, 15)),
)

PASCAL_PERSON_PART = Benchmark(
    name="pascal-person-part",
    title="Pascal-Person-Part",
    class_names=_PASCAL_CLASSES,
    palette=VOC12AUG.palette[: len(_PASCAL_CLASSES)],
)
