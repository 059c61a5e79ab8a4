"""Cityscapes: streets of 50 cities, 19 classes (Cordts et al., 2016). Training ids, not the 34 label ids."""

from ccnet_hf.data.benchmark import Benchmark


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

CITYSCAPES = Benchmark(
    name="cityscapes",
    title="Cityscapes",
    class_names=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    num_examples={"train": 2975, "validation": 500, "test": 1525},
    homepage="https://www.cityscapes-dataset.com",
    license="non-commercial research, no redistribution",
)
