"""The experiment that shows whether a head can bring the context that a backbone lacks, on real pictures.

EfficientNet-Lite0, cut after its stage at stride 8, and the head's convolutions see 57 pixels in each direction. With
convolutions alone, with one and two rounds of criss-cross attention and with the non-local block they learn the same
frames of CamVid, in the same order, for the same number of steps. In `far_marks` the answer to the question is known.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, TimmBackboneConfig, set_seed

from ccnet_hf.benchmark.forms import NonLocalBlock
from ccnet_hf.data.benchmarks import BENCHMARKS
from ccnet_hf.data.loading import SegmentationDataset, load_split
from ccnet_hf.evaluation.evaluator import evaluate_dataset
from ccnet_hf.experiments.short_reach import CONTEXTS, ShortReachArguments
from ccnet_hf.files import check_writable, write_text
from ccnet_hf.inference import Predictor
from ccnet_hf.limits import MAX_SEED, check_range
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.recipes.recipe import TrainingRecipe
from ccnet_hf.training.augmentation import semantic_augmentation
from ccnet_hf.training.batches import batch_loader
from ccnet_hf.training.depthwise import speed_up_depthwise
from ccnet_hf.training.initialization import load_backbone_checkpoint


HIDDEN_SIZE = 64
_STAGES = 3  # of the backbone, to stride 8
_RECIPE = TrainingRecipe(
    crop_size=(360, 480),  # whole frames, so that there is a context to bring
    scale=(480, 360),
    ratio_range=(1.0, 1.3),
    batch_size=4,
    max_train_steps=400,
    eval_steps=400,
)
_LEARNING_RATE = 3e-3


def build_model(context: str, backbone_checkpoint: str | None = None) -> CCNetForSemanticSegmentation:
    """A CCNet on the first stages of EfficientNet-Lite0, its attention by criss-cross or by all positions."""
    rounds = CONTEXTS[context]
    names = BENCHMARKS["camvid"].id2label
    config = CCNetConfig(
        backbone_config=TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[_STAGES - 1]),
        hidden_size=HIDDEN_SIZE,
        recurrence=1 if rounds is None else rounds,
        use_auxiliary_head=False,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    model = CCNetForSemanticSegmentation(config)
    if backbone_checkpoint is not None:
        load_backbone_checkpoint(model.model.backbone, backbone_checkpoint)
    # timm computes the stages behind the one that is asked for, too.
    features = model.model.backbone._backbone
    features.blocks = features.blocks[:_STAGES]
    if rounds is None:
        model.model.head.attention = NonLocalBlock(HIDDEN_SIZE, HIDDEN_SIZE // 8)
    return model


def train(model: nn.Module, dataset: SegmentationDataset, steps: int, seed: int) -> float:
    """Train in place and leave the model in eval mode; returns the processor time of a step in seconds."""
    speed_up_depthwise(model)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1)
    loader = batch_loader(
        dataset,
        buffer_size=0,
        num_workers=0,
        pin_memory=False,
        batch_size=_RECIPE.batch_size,
        start=0,
        stop=steps,
        seed=seed,
    )
    seconds = 0.0
    for batch in tqdm(loader, desc=f"seed {seed}", leave=False, disable=None):
        start = time.process_time()
        images = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        loss = model(pixel_values=images, labels=batch["labels"]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - start
    model.eval()
    return seconds / steps


def _dataset(
    arguments: ShortReachArguments, split: str, config: PreTrainedConfig, processor: CCNetImageProcessor, seed: int
) -> SegmentationDataset:
    return SegmentationDataset(
        load_split(arguments.dataset_name, split),
        config.num_labels,
        config.semantic_loss_ignore_index,
        transform=semantic_augmentation(_RECIPE, config, processor),
        seed=seed,
        source=arguments.dataset_name,
    )


def run_experiment(arguments: ShortReachArguments) -> None:
    """Train and score every context with every seed, and write the table."""
    check_range("--max_train_steps", arguments.max_train_steps, 1, 10**6)
    for seed in arguments.seeds:
        check_range("--seeds", seed, 0, MAX_SEED)
    output_dir = Path(arguments.output_dir)
    check_writable(output_dir)
    height, width = _RECIPE.crop_size
    processor = CCNetImageProcessor(size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    lines = ["| context | mIoU by seed | mean | gamma | processor time a step |", "|---|---|---|---|---|"]
    print(*lines, sep="\n")
    for context in arguments.contexts:
        results, gammas, seconds = [], [], []
        for seed in arguments.seeds:
            set_seed(seed)
            model = build_model(context, arguments.backbone_checkpoint)
            dataset = _dataset(arguments, "train", model.config, processor, seed)
            seconds.append(train(model, dataset, arguments.max_train_steps, seed))
            tested = _dataset(arguments, arguments.test_split, model.config, processor, seed)
            results.append(100 * evaluate_dataset(Predictor(model, processor), tested, progress=False)["mean_iou"])
            gammas += [model.model.head.attention.gamma.item()] if model.model.head.attention else []
        lines.append(
            f"| {context} | {', '.join(f'{result:.2f}' for result in results)} | {mean(results):.2f} "
            f"| {', '.join(f'{gamma:.2f}' for gamma in gammas)} | {mean(seconds):.2f} s |"
        )
        print(lines[-1], flush=True)
        # After every row: the next one takes its time.
        write_text(output_dir / "short_reach.md", "\n".join(lines) + "\n")
