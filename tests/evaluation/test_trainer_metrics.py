"""The scores that transformers' `Trainer` reports, against the metric over label maps of the labels' size."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_instance_config, tiny_model, tiny_parsing_model, tiny_video_model
from transformers import Trainer, TrainingArguments

from ccnet_hf.errors import InputError
from ccnet_hf.evaluation import MeanIoU, compute_metrics


class Noise(torch.utils.data.Dataset):
    """Five examples of noise, of classes 0 to 3 of five, with some pixels ignored."""

    def __init__(self, input_name: str, *num_frames: int):
        self.input_name = input_name
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.randn(5, *num_frames, 3, 40, 56, generator=generator)
        self.labels = torch.randint(0, 4, (5, *num_frames, 40, 56), generator=generator)
        self.labels[torch.rand(self.labels.shape, generator=generator) < 0.2] = 255

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {self.input_name: self.pixel_values[index], "labels": self.labels[index]}


def expected_scores(model, dataset: Noise) -> dict[str, float]:
    with torch.inference_mode():
        logits = model(dataset.pixel_values).logits
    logits = F.interpolate(logits, size=(40, 56), mode="bilinear", align_corners=model.config.align_corners)
    metric = MeanIoU(num_labels=5)
    return metric.compute(predictions=logits.argmax(dim=1), references=dataset.labels.flatten(0, -3))


@pytest.mark.parametrize("batch_eval_metrics", [False, True])
@pytest.mark.parametrize(
    "build, num_frames",
    [(tiny_model, ()), (tiny_parsing_model, ()), (tiny_video_model, (2,))],
    ids=["", "parsing", "clip"],
)
def test_trainer_reports_what_the_metric_gives(build, num_frames, batch_eval_metrics, tmp_path):
    model = build(id2label=dict(enumerate(["road", "car", "sky", "tree", "cow"])))
    dataset = Noise(model.main_input_name, *num_frames)
    metrics = compute_metrics(model.config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=2,
        batch_eval_metrics=batch_eval_metrics,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        eval_dataset=dataset,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.count,
    )
    expected = expected_scores(model, dataset)
    for _ in range(2):  # nothing is left of the first time
        reported = trainer.evaluate()
        for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
            assert reported[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-12)
        assert reported["eval_iou_car"] == pytest.approx(expected["per_category_iou"][1], rel=1e-12)
    assert trainer.predict(dataset).predictions.shape == (5, 5, 6)  # no logits, no label maps


def test_a_class_that_does_not_occur_has_no_score():
    config = tiny_model().config
    metrics = compute_metrics(config)
    logits = F.one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 5).permute(0, 3, 1, 2).float()
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    evaluation = type("Evaluation", (), {"predictions": metrics.count(logits, labels).numpy()})
    assert metrics(evaluation) == {
        "mean_iou": 1.0,
        "mean_accuracy": 1.0,
        "overall_accuracy": 1.0,
        f"iou_{config.id2label[0]}": 1.0,
    }


def test_what_trainer_adds_to_lower_label_maps_is_not_counted():
    """In several processes `Trainer` pads label maps to the highest with -100."""
    metrics = compute_metrics(tiny_model().config)
    logits, labels = torch.randn(2, 5, 6, 8), torch.randint(0, 5, (2, 41, 57))
    padded = F.pad(labels, (0, 0, 0, 7), value=-100)
    assert torch.equal(metrics.count(logits, padded), metrics.count(logits, labels))
    assert metrics.count(logits, labels).sum() == labels.numel()


def test_ignored_masks_are_told_by_the_names_of_the_classes(caplog):
    metrics = compute_metrics(tiny_model(num_labels=2, id2label={0: "floor", 1: "crack"}).config)
    labels = torch.zeros(2, 4, 6, dtype=torch.long)
    labels[0, 1] = 255
    matrices = metrics.count(torch.randn(2, 2, 2, 3), labels)
    metrics(type("Evaluation", (), {"predictions": matrices.numpy()}))
    assert [record.getMessage() for record in caplog.records] == [
        "no pixel is labelled 1 (crack); 12.5 % are 255, which is ignored (of masks of 0 and 255, 255 has to become 1)"
    ]


@pytest.mark.parametrize("config", [None, "ccnet", tiny_instance_config()], ids=["none", "text", "instances"])
def test_configurations_of_another_kind_are_named(config):
    with pytest.raises(InputError, match=r"`config` must be of a model of semantic segmentation, .* got"):
        compute_metrics(config)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ((3, 5, 2, 3), (2, 4, 6)),
        ((1, 5, 2, 3), (2, 4, 6)),
        ((4, 5, 2, 3), (2, 4, 6)),
        ((2, 4, 2, 3), (2, 4, 6)),
        ((2, 7, 2, 3), (2, 4, 6)),
        ((2, 5, 6), (2, 4, 6)),
        ((2, 5, 2, 3), (4, 6)),
        ((0, 5, 2, 3), (0, 4, 6)),
    ],
)
def test_logits_and_labels_of_other_shapes_are_named(logits, labels):
    metrics = compute_metrics(tiny_model().config)
    with pytest.raises(InputError, match=r"logits must be \(images, 5, h, w\) and labels .*, got shapes"):
        metrics.count(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))


def test_logits_of_nan_are_no_class():
    logits = torch.zeros(1, 5, 2, 3)
    logits[0, 3, 1, 1] = float("nan")
    with pytest.raises(InputError, match="logits hold NaN"):
        compute_metrics(tiny_model().config).count(logits, torch.zeros(1, 4, 6, dtype=torch.long))
