"""CamVid in the SegNet version: frames of four driving sequences at 480x360, 11 classes (Brostow et al., 2009)."""

from ccnet_hf.data.benchmarks.layout import LabelFormat, RawLayout
from ccnet_hf.data.benchmarks.record import Benchmark


# Name and RGB colour, by training id.
_CLASSES = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)

CAMVID = Benchmark(
    name="camvid",
    title="CamVid",
    class_names=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    num_examples={"train": 367, "validation": 101, "test": 233},
    scenes="streets of Cambridge, seen from one car by day and at dusk",
    homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    license="research use only",
    license_name="camvid-terms",
    license_link="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    raw=RawLayout(
        images=("{split}/(?P<name>[^/]+)\\.png",),
        labels=(LabelFormat("{split}annot/(?P<name>[^/]+)\\.png", {**{i: i for i in range(11)}, 11: 255}),),
        splits={"train": "train", "validation": "val", "test": "test"},
        name_list="{split}\\.txt",
        description=(
            "the SegNet version, CamVid/<split>/*.png and CamVid/<split>annot/*.png; "
            "the original with 32 colours is another labelling"
        ),
        mapping="The annotations' ids 0..10 are the training ids, their 11 (void) becomes 255.",
    ),
)
