"""The experiment that shows that instance segmentation learns: coloured shapes, which any Mask R-CNN should learn to
segment. What the attention in its trunk is for, `far_discs` shows."""

from __future__ import annotations

from pathlib import Path

from transformers import set_seed

from ccnet_hf.errors import InputError
from ccnet_hf.experiments.shapes import ShapesArguments
from ccnet_hf.experiments.shapes_dataset import SHAPES, SIZE, write_shapes
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.configuration_ccnet_resnet import CCNetResNetConfig
from ccnet_hf.models.image_processing_ccnet_instance import CCNetInstanceImageProcessor
from ccnet_hf.models.modeling_ccnet_instance import CCNetForInstanceSegmentation
from ccnet_hf.training.train import main as train_main


def build_model(attention: bool) -> CCNetForInstanceSegmentation:
    """A small Mask R-CNN: of three stages, so that a pixel's features see about 75 pixels of the image."""
    names = {0: "N/A", **SHAPES}
    backbone = CCNetResNetConfig(
        depths=[1, 1, 2],
        hidden_sizes=[32, 64, 128],
        stem_size=32,
        stem_type="conv7",
        output_stride=32,
        attention_stage="stage3" if attention else None,
        out_features=["stage1", "stage2", "stage3"],
    )
    config = CCNetInstanceConfig(
        backbone_config=backbone,
        fpn_channels=64,
        box_hidden_size=128,
        mask_num_convolutions=2,
        anchor_sizes=[24, 32, 48, 64],
        anchor_aspect_ratios=[1.0],
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=150,
        rpn_post_nms_top_n_test=60,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    return CCNetForInstanceSegmentation(config)


def run_experiment(arguments: ShapesArguments) -> None:
    """Train a small Mask R-CNN on generated pictures and score it; minutes on a CPU."""
    output_dir = Path(arguments.output_dir)
    write_shapes(output_dir / "pictures", arguments.num_train, arguments.num_validation)
    set_seed(arguments.seed)
    build_model(arguments.attention).save_pretrained(output_dir / "start")
    processor = CCNetInstanceImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE})
    processor.save_pretrained(output_dir / "start")
    steps = arguments.max_train_steps
    options = {
        "model_name_or_path": output_dir / "start",
        "dataset_name": output_dir / "pictures",
        "output_dir": output_dir / "trained",
        "batch_size": 4,
        "max_train_steps": steps,
        "eval_steps": steps,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "min_learning_rate": 0,
        "weight_decay": 1e-4,
        "warmup_steps": 50,
        "max_grad_norm": 5,
        "dataloader_num_workers": 0,
        "seed": arguments.seed,
        "report_to": "none",
    }
    argv = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    argv += ["--crop_size", str(SIZE), str(SIZE), "--scale", str(SIZE), str(SIZE)]
    if train_main(argv):
        raise InputError("the training has ended with an error")
