"""LIP, Look into Person: single persons in 20 classes with background (Gong et al., 2017)."""

from ccnet_hf.data.benchmarks.layout import LabelFormat, RawLayout
from ccnet_hf.data.benchmarks.record import Benchmark


# Name and RGB colour, by training id.
_CLASSES = (
    ("Background", (0, 0, 0)),
    ("Hat", (128, 0, 0)),
    ("Hair", (255, 0, 0)),
    ("Glove", (0, 85, 0)),
    ("Sunglasses", (170, 0, 51)),
    ("UpperClothes", (255, 85, 0)),
    ("Dress", (0, 0, 85)),
    ("Coat", (0, 119, 221)),
    ("Socks", (85, 85, 0)),
    ("Pants", (0, 85, 85)),
    ("Jumpsuits", (85, 51, 0)),
    ("Scarf", (52, 86, 128)),
    ("Skirt", (0, 128, 0)),
    ("Face", (0, 0, 255)),
    ("Left-arm", (51, 170, 221)),
    ("Right-arm", (0, 255, 255)),
    ("Left-leg", (85, 255, 170)),
    ("Right-leg", (170, 255, 85)),
    ("Left-shoe", (255, 255, 0)),
    ("Right-shoe", (255, 170, 0)),
)

LIP = Benchmark(
    name="lip",
    title="LIP",
    class_names=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    num_examples={"train": 30462, "validation": 10000},
    flip_label_pairs=((14, 15), (16, 17), (18, 19)),
    scenes="single persons, cut out of photographs of everyday life",
    homepage="http://sysu-hcp.net/lip/",
    license="non-commercial research",
    license_name="lip-terms",
    license_link="http://sysu-hcp.net/lip/",
    raw=RawLayout(
        images=("{split}_images/(?P<name>[^/]+)\\.jpg",),
        labels=(LabelFormat("{split}_segmentations/(?P<name>[^/]+)\\.png", {i: i for i in range(20)}),),
        splits={"train": "train", "validation": "val"},
        name_list="{split}_id\\.txt",
        description=(
            "TrainVal_images.zip (TrainVal_images/{train,val}_images/*.jpg) and TrainVal_parsing_annotations.zip "
            "(TrainVal_parsing_annotations/{train,val}_segmentations/*.png)"
        ),
        mapping="The annotations' ids 0..19 are the training ids; nothing is ignored.",
    ),
)
