"""Pascal VOC 2012 with SBD's labels in the training set (Hariharan et al., 2011), 21 classes with background."""

from ccnet_hf.data.benchmark import Benchmark


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

VOC12AUG = Benchmark(
    name="voc12aug",
    title="Pascal VOC 2012 (augmented)",
    class_names=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    num_examples={"train": 10582, "validation": 1449},
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    license="pictures from Flickr under their own terms",
)
