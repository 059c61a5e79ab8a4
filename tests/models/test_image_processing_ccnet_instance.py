"""The image processor of instance segmentation, against torchvision's transform and in transformers' pipelines."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_instance_model
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import to_tensor
from transformers import AutoImageProcessor, pipeline

from ccnet_hf import CCNetInstanceImageProcessor, CCNetInstanceSegmenterOutput
from ccnet_hf.models import image_processing_common_ccnet


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (37, 611), (900, 700), (1, 50), (64, 64)])
def test_pixels_are_torchvisions(size):
    image = picture(*size)
    transform = GeneralizedRCNNTransform(200, 333, MEAN, STD).eval()
    found = CCNetInstanceImageProcessor(size={"shortest_edge": 200, "longest_edge": 333})(image, return_tensors="pt")
    expected, _ = transform([to_tensor(image)])
    torch.testing.assert_close(found["pixel_values"], expected.tensors, rtol=0, atol=1e-5)
    height, width = expected.image_sizes[0]
    assert found["pixel_mask"].sum() == height * width == found["pixel_mask"][0, :height, :width].sum()


def test_a_batch_and_its_labels_are_torchvisions():
    annotations, targets, images = [], [], [picture(60, 90), picture(100, 50, 1)]
    for image, boxes in zip(images, ([[10, 5, 30, 40], [0, 0, 90, 60]], [[3, 50, 20, 30]]), strict=True):
        objects, masks = [], []
        for label, (left, top, width, height) in enumerate(boxes, start=4):
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            objects.append(
                {"category_id": label, "bbox": [left, top, width, height], "segmentation": [list(map(float, corners))]}
            )
            mask = torch.zeros(image.height, image.width, dtype=torch.uint8)
            mask[top : top + height, left : left + width] = 1
            masks.append(mask)
        annotations.append({"image_id": len(annotations), "annotations": objects})
        corners = [[left, top, left + width, top + height] for left, top, width, height in boxes]
        targets.append({"boxes": torch.tensor(corners, dtype=torch.float32), "masks": torch.stack(masks)})
    processor = CCNetInstanceImageProcessor(size={"shortest_edge": 130, "longest_edge": 180})
    found = processor(images, annotations, return_tensors="pt")
    expected, targets = GeneralizedRCNNTransform(130, 180, MEAN, STD)(list(map(to_tensor, images)), targets)
    torch.testing.assert_close(found["pixel_values"], expected.tensors, rtol=0, atol=1e-5)
    for label, target, size, image in zip(found["labels"], targets, expected.image_sizes, images, strict=True):
        height, width = size
        center, extent = (label["boxes"] * torch.tensor([width, height] * 2)).split(2, dim=1)
        corners = torch.cat([center - extent / 2, center + extent / 2], dim=1)
        torch.testing.assert_close(corners, target["boxes"], rtol=0, atol=1e-3)
        assert torch.equal(label["masks"], target["masks"].bool()) and label["masks"].any(dim=(1, 2)).all()
        assert label["size"].tolist() == list(size) and label["orig_size"].tolist() == [image.height, image.width]
        assert label["class_labels"][0] == 4 and label["image_id"].shape == (1,)
        factor = height * width / (image.height * image.width)
        area = label["boxes"][:, 2] * label["boxes"][:, 3] * height * width
        torch.testing.assert_close(label["area"], area, rtol=1e-5, atol=1e-3)
        assert factor > 1
    model = tiny_instance_model(num_labels=6).train()
    assert model(**found).loss.isfinite()


def test_images_without_objects_and_annotations_without_masks():
    processor = CCNetInstanceImageProcessor(size={"height": 64, "width": 96})
    empty = {"image_id": 5, "annotations": []}
    labels = processor(picture(40, 50), empty, return_tensors="pt")["labels"]
    assert labels[0]["masks"].shape == (0, 64, 96) and labels[0]["boxes"].shape == (0, 4)
    box = {"image_id": 5, "annotations": [{"category_id": 1, "bbox": [1, 2, 3, 4]}]}
    labels = processor(picture(40, 50), box, return_segmentation_masks=False, return_tensors="pt")["labels"]
    assert "masks" not in labels[0] and len(labels[0]["boxes"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"annotations": [{"image_id": 1, "annotations": []}] * 2}, "Got 2 annotations for 1 images"),
        ({"annotations": {"annotations": []}}, "with `image_id` and `annotations`"),
        ({"annotations": {"image_id": 1, "annotations": [{}]}}, "Annotation 0 must have a `bbox`"),
        ({"annotations": 5}, "`annotations` must be a dictionary, or a list of one for each image, got 5"),
        ({"annotations": [5]}, "with `image_id` and `annotations`"),
        ({"annotations": {"image_id": 1, "annotations": None}}, "`annotations` of an image must be a list"),
        ({"annotations": {"image_id": None, "annotations": []}}, "`image_id` .* must be an integer .* got None"),
        ({"annotations": {"image_id": "a.jpg", "annotations": []}}, "`image_id` .* must be an integer .* got 'a.jpg'"),
        ({"pad_size": {"height": 32, "width": 32}}, "is less than an image"),
        ({"size_divisor": 0}, "`size_divisor` must be an integer of at least 1, got 0"),
        ({"size": {"shortest_edge": 100000, "longest_edge": 100000}}, "images are enlarged to at most"),
        ({"size": {"height": 2**14, "width": 2**14 + 1}}, "16384x16385 .* images are enlarged to at most"),
        ({"pad_size": {"height": 2**14, "width": 2**14 + 1}}, "`pad_size` .* images are enlarged to at most"),
        ({"size_divisor": 10**6}, "`size_divisor` 1000000 would make 1000000x1000000 .* at most 268,435,456 pixels"),
        ({"resample": 3}, "`resample` must be bilinear"),
        ({"size": True}, "'size' with value True"),
        ({"do_resize": "a"}, "'do_resize' with value 'a'"),
        ({"rescale_factor": "a"}, "'rescale_factor' .* got str"),
        ({"image_mean": "abc"}, "'image_mean' with value 'abc'"),
        ({"size_divisor": "a"}, "'size_divisor' with value 'a'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        CCNetInstanceImageProcessor()(picture(40, 60), **arguments)
    assert "\n" not in str(refused.value)


def test_an_image_of_0_to_1_that_is_rescaled_is_warned_about(monkeypatch):
    warnings = []
    monkeypatch.setattr(image_processing_common_ccnet.logger, "warning_once", warnings.append)
    fractions = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    CCNetInstanceImageProcessor()(fractions, do_rescale=False)
    assert not warnings
    CCNetInstanceImageProcessor()(fractions)
    assert "lies in 0..1" in warnings[0]


def test_names_that_look_like_an_argument():
    with pytest.raises(ValueError, match="no argument 'size_diviser'; did you mean size_divisor"):
        CCNetInstanceImageProcessor(size_diviser=64)
    with pytest.raises(ValueError, match="no argument 'do_resizes'"):
        CCNetInstanceImageProcessor.from_dict({}, do_resizes=False)
    for name, meant in (("palette", "palette"), ("reduce_labels", "do_reduce"), ("do_reduce_label", "do_reduce")):
        with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}.* of CCNetImageProcessor"):
            CCNetInstanceImageProcessor(**{name: True})
    with pytest.raises(ValueError, match="no argument 'size_diviser'"):
        CCNetInstanceImageProcessor()(picture(4, 5), size_diviser=64)
    later = CCNetInstanceImageProcessor().to_dict() | {"size_divisors": [32, 64], "mosaic": 4}
    loaded = CCNetInstanceImageProcessor.from_dict(later)
    assert loaded.to_dict() == later and loaded.size_divisor == 32


def test_without_padding_only_images_of_one_size_make_a_batch():
    processor = CCNetInstanceImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_pad=False)
    assert processor([picture(10, 15)] * 2, return_tensors="pt")["pixel_values"].shape == (2, 3, 32, 48)
    with pytest.raises(ValueError, match="32x48, 48x32"):
        processor([picture(10, 15), picture(15, 10)])


# --- post-processing -------------------------------------------------------------------------------------------------


def outputs_of(scores, labels, boxes, masks=None) -> CCNetInstanceSegmenterOutput:
    """Outputs for one image from boxes (left, top, right, bottom) as fractions, padded with a detection of score 0."""
    corners = torch.tensor([*boxes, (0, 0, 0, 0)], dtype=torch.float32)
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    masks = torch.ones(len(scores), 28, 28) if masks is None else masks
    return CCNetInstanceSegmenterOutput(
        scores=torch.tensor([[*scores, 0.0]]),
        class_labels=torch.tensor([[*labels, 0]]),
        pred_boxes=boxes[None],
        pred_masks=torch.cat([masks, torch.zeros(1, 28, 28)])[None],
    )


def test_the_map_of_ids_gives_overlaps_to_the_higher_score():
    outputs = outputs_of(
        [0.9, 0.8, 0.7, 0.6], [3, 1, 2, 5], [(0, 0, 0.5, 1), (0.25, 0, 0.75, 1), (0, 0, 0.4, 1), (0.6, 0, 1, 1)]
    )
    processor = CCNetInstanceImageProcessor()
    (result,) = processor.post_process_instance_segmentation(outputs, 0.65, target_sizes=[(40, 80)])
    segmentation = result["segmentation"]
    assert segmentation.shape == (40, 80) and segmentation.dtype == torch.int32
    assert [(info["id"], info["label_id"]) for info in result["segments_info"]] == [(1, 3), (2, 1)]
    assert result["segments_info"][0]["score"] == outputs.scores[0, 0].item()
    # Away from the borders of boxes, where masks fade.
    assert (segmentation[2:-2, 2:38] == 1).all() and (segmentation[2:-2, 43:58] == 2).all()
    assert (segmentation[:, 62:] == -1).all()
    (result,) = processor.post_process_instance_segmentation(
        outputs, 0.65, overlap_mask_area_threshold=0.6, target_sizes=[(40, 80)]
    )
    assert [info["label_id"] for info in result["segments_info"]] == [3]


def test_masks_and_encodings_are_of_every_detection():
    masks = torch.stack([torch.ones(28, 28), torch.ones(28, 28), torch.zeros(28, 28)])
    outputs = outputs_of([0.9, 0.8, 0.7], [3, 1, 2], [(0, 0, 0.5, 1), (0, 0, 0.5, 1), (0, 0, 1, 1)], masks)
    processor = CCNetInstanceImageProcessor()
    sizes = torch.tensor([[30, 40]])
    (result,) = processor.post_process_instance_segmentation(outputs, target_sizes=sizes, return_binary_maps=True)
    assert result["segmentation"].shape == (3, 30, 40) and result["segmentation"].dtype == torch.bool
    assert torch.equal(result["segmentation"][0], result["segmentation"][1]) and not result["segmentation"][2].any()
    assert [info["label_id"] for info in result["segments_info"]] == [3, 1, 2]
    (coded,) = processor.post_process_instance_segmentation(outputs, target_sizes=sizes, return_coco_annotation=True)
    assert coded["segments_info"] == result["segments_info"]
    assert coded["segmentation"][2] == {"size": [30, 40], "counts": [1200]}
    inside = sum(coded["segmentation"][0]["counts"][1::2])
    assert inside == result["segmentation"][0].sum()


def test_nothing_found():
    outputs = outputs_of([0.2], [1], [(0, 0, 1, 1)])
    processor = CCNetInstanceImageProcessor()
    (result,) = processor.post_process_instance_segmentation(outputs, target_sizes=[(5, 6)])
    assert (result["segmentation"] == -1).all() and result["segments_info"] == []
    (result,) = processor.post_process_instance_segmentation(outputs, target_sizes=[(5, 6)], return_binary_maps=True)
    assert result["segmentation"].shape == (0, 5, 6)
    assert processor.post_process_object_detection(outputs)[0]["boxes"].shape == (0, 4)
    # What pads the detections never counts, whatever the threshold.
    assert len(processor.post_process_object_detection(outputs, -1.0)[0]["scores"]) == 1


def test_boxes_are_pixels_of_the_image_or_fractions():
    outputs = outputs_of([0.9], [1], [(0.25, 0.5, 0.75, 1.0)])
    processor = CCNetInstanceImageProcessor()
    assert processor.post_process_object_detection(outputs)[0]["boxes"].tolist() == [[0.25, 0.5, 0.75, 1.0]]
    assert processor.post_process_object_detection(outputs, 0.5, [(40, 80)])[0]["boxes"].tolist() == [[20, 20, 60, 40]]
    with pytest.raises(ValueError, match="target_sizes"):
        processor.post_process_instance_segmentation(outputs)
    with pytest.raises(ValueError, match="exclude each other"):
        processor.post_process_instance_segmentation(
            outputs, target_sizes=[(4, 5)], return_binary_maps=True, return_coco_annotation=True
        )
    with pytest.raises(ValueError, match="what the model returns in inference"):
        processor.post_process_instance_segmentation(CCNetInstanceSegmenterOutput(), target_sizes=[(4, 5)])


@pytest.mark.parametrize("name", ["threshold", "mask_threshold", "overlap_mask_area_threshold"])
@pytest.mark.parametrize("value", ["a", None, float("nan"), True])
def test_thresholds_are_numbers(name, value):
    outputs, processor = outputs_of([0.9], [1], [(0, 0, 1, 1)]), CCNetInstanceImageProcessor()
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number, got {value!r}"):
        processor.post_process_instance_segmentation(outputs, target_sizes=[(4, 5)], **{name: value})
    if name == "threshold":
        with pytest.raises(ValueError, match="`threshold` must be a finite number"):
            processor.post_process_object_detection(outputs, value)


# --- transformers' conventions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instances")
    model = tiny_instance_model()
    model.save_pretrained(folder)
    CCNetInstanceImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def test_saved_and_loaded(folder):
    loaded = AutoImageProcessor.from_pretrained(folder)
    assert type(loaded) is CCNetInstanceImageProcessor and loaded.size == {"shortest_edge": 64, "longest_edge": 96}
    assert not hasattr(loaded, "post_process_panoptic_segmentation")
    assert not hasattr(loaded, "post_process_semantic_segmentation")


def test_pipelines_in_a_fresh_process_without_a_warning(folder):
    code = (
        "import ccnet_hf, warnings, numpy as np\n"
        "from PIL import Image\n"
        "from transformers import pipeline\n"
        f"folder = {str(folder)!r}\n"
        "image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))\n"
        "found = pipeline('image-segmentation', model=folder)(image, threshold=0.3)\n"
        "boxes = pipeline('object-detection', model=folder)(image, threshold=0.3)\n"
        "assert found and boxes and found[0]['mask'].size == (70, 50), (found, boxes)\n"
        "assert found[0]['label'] == boxes[0]['label'] and found[0]['score'] == boxes[0]['score']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert lines == []


@pytest.mark.parametrize("task", ["image-segmentation", "object-detection"])
def test_pipelines_take_batches(folder, task):
    images = [picture(50, 70), picture(60, 40, 1), picture(50, 70, 2)]
    segmenter = pipeline(task, model=str(folder))
    segmenter.image_processor.pad_size = {"height": 96, "width": 96}
    single = [segmenter(image, threshold=0.3) for image in images]
    batched = list(segmenter(images, batch_size=2, threshold=0.3))
    for one, other in zip(single, batched, strict=True):
        assert one and [found["label"] for found in one] == [found["label"] for found in other]
        assert [found["score"] for found in one] == pytest.approx([found["score"] for found in other], abs=1e-5)
