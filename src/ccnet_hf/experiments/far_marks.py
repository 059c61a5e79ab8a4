"""The experiment that shows what recurrence is for: a class decided by a mark that convolutions cannot reach.

A CCNet with a shallow backbone, whose reach is about 30 pixels, learns far marks (`far_marks_dataset`) with its
own loss. By the paper's claim (section 3.3) one round of attention sees the mark only in the rows and columns of
the pixel in question, two rounds see it anywhere, and a third adds nothing. `far_discs` is the same of instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_pil_image
from tqdm.auto import tqdm
from transformers import set_seed

from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError
from ccnet_hf.experiments import far_discs
from ccnet_hf.experiments.far_marks_dataset import COLOURS, SIDE, far_marks, far_marks_clips, parts
from ccnet_hf.files import atomic_file, check_writable, write_text
from ccnet_hf.inference import predict_logits
from ccnet_hf.limits import MAX_SEED, check_range
from ccnet_hf.models.configuration_ccnet import MAX_RECURRENCE, CCNetConfig
from ccnet_hf.models.configuration_ccnet_resnet import CCNetResNetConfig
from ccnet_hf.models.configuration_ccnet_video import MAX_FRAMES, CCNetVideoConfig
from ccnet_hf.models.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.visualization import attention_map, blend, captioned_grid, draw_attention


# Examples that are scored and drawn come from these seeds, whatever the seed of the training is.
_TEST_SEED, _DRAWN_SEED = 2**31, 2**31 + 4


@dataclass
class FarMarksArguments:
    output_dir: str = field(metadata={"help": "folder for far_marks.md and, of images, far_marks.png"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of weights and examples"})
    recurrences: list[int] = field(default_factory=lambda: [0, 1, 2, 3], metadata={"help": "numbers of rounds"})
    max_train_steps: int = field(default=150, metadata={"help": "steps of every training"})
    num_frames: int = field(
        default=1, metadata={"help": "above 1: clips with the mark in the first frame, scored in the last"}
    )
    instances: bool = field(
        default=False,
        metadata={"help": "a Mask R-CNN with the attention in its trunk, on discs one of which has the mark"},
    )


def build_model(recurrence: int, for_clips: bool = False) -> CCNetForSemanticSegmentation:
    """A CCNet over the stem and one stage of its ResNet, at a quarter of the image's size."""
    backbone = CCNetResNetConfig(depths=[1], hidden_sizes=[32], stem_size=16, out_features=["stage1"])
    config = (CCNetVideoConfig if for_clips else CCNetConfig)(
        backbone_config=backbone,
        hidden_size=32,
        query_key_size=8,
        recurrence=recurrence,
        use_auxiliary_head=False,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(COLOURS)),
        label2id={name: index for index, name in enumerate(COLOURS)},
    )
    return (CCNetForVideoSegmentation if for_clips else CCNetForSemanticSegmentation)(config)


def train(
    model: nn.Module,
    steps: int,
    seed: int,
    num_frames: int = 1,
    batch_size: int = 16,
    learning_rate: float = 5e-3,
) -> None:
    """Train in place on fresh examples, clips where there are several frames, and leave the model in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in tqdm(range(steps), desc=f"recurrence {model.config.recurrence}, seed {seed}", leave=False, disable=None):
        if num_frames > 1:
            clips, labels, _ = far_marks_clips(batch_size, num_frames, generator)
            loss = model(pixel_values_videos=clips, labels=labels).loss
        else:
            images, labels, _ = far_marks(batch_size, generator)
            loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def score(model: nn.Module, num_examples: int = 200) -> dict[str, float]:
    """Fraction of the pixels whose class is right, by part; 1 / number of colours is chance."""
    images, labels, corners = far_marks(num_examples, torch.Generator().manual_seed(_TEST_SEED))
    right = predict_logits(model, images, mode="whole").argmax(dim=1) == labels
    return {part: float(right[mask].float().mean()) for part, mask in parts(corners).items()}


@torch.no_grad()
def score_clips(model: nn.Module, num_frames: int, num_examples: int = 100) -> dict[str, float]:
    """As `score`, of the last frames of clips whose marks are in their first; by part of where the mark was."""
    clips, labels, corners = far_marks_clips(num_examples, num_frames, torch.Generator().manual_seed(_TEST_SEED))
    predictions = []
    for few in clips.split(10):
        logits = model(pixel_values_videos=few).logits.unflatten(0, (len(few), num_frames))[:, -1]
        predictions.append(nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear").argmax(dim=1))
    right = torch.cat(predictions) == labels[:, -1]
    return {part: float(right[mask].float().mean()) for part, mask in parts(corners).items()}


def run_experiment(arguments: FarMarksArguments) -> None:
    """Train a small CCNet with every recurrence on images in which one far mark decides the class of every pixel."""
    check_range("--max_train_steps", arguments.max_train_steps, 1, 10**9)
    check_range("--num_frames", arguments.num_frames, 1, MAX_FRAMES)
    for seed in arguments.seeds:
        check_range("--seeds", seed, 0, MAX_SEED)
    for recurrence in arguments.recurrences:
        check_range("--recurrences", recurrence, 0, MAX_RECURRENCE)
    if arguments.instances and arguments.num_frames > 1:
        raise InputError("--instances are those of images; --num_frames is of clips")
    output_dir = Path(arguments.output_dir)
    check_writable(output_dir)
    example = far_marks(1, torch.Generator().manual_seed(_DRAWN_SEED))
    rows: list[dict[str, Image.Image]] = [{"image": _draw(example[0])}]
    discs: dict[str, list[Image.Image]] = {"truth": far_discs.draw(None)}
    lines: list[str] = []
    for recurrence in arguments.recurrences:
        accuracies, gammas = [], []
        for seed in arguments.seeds:
            model, scores = _train_and_score(arguments, recurrence, seed)
            accuracies.append(scores)
            gammas += [weight.item() for name, weight in model.named_parameters() if name.endswith("attention.gamma")]
        if not lines:
            lines = [f"| recurrence | {' | '.join(accuracies[0])} | gamma |", "|---" * (len(accuracies[0]) + 2) + "|"]
            print(*lines, sep="\n")
        cells = [_spread([100 * accuracy[part] for accuracy in accuracies], digits=1) for part in accuracies[0]]
        lines.append(f"| {recurrence} | {' | '.join(cells)} | {_spread(gammas, digits=2)} |")
        print(lines[-1], flush=True)
        if arguments.instances:
            discs[f"recurrence {recurrence}"] = far_discs.draw(model)
        elif arguments.num_frames == 1:
            rows[0][f"recurrence {recurrence}"] = _draw(example[0], predict_logits(model, example[0]).argmax(dim=1))
            if recurrence == 2:
                rows.append(_draw_rounds(model, *example))
    write_text(output_dir / "far_marks.md", "\n".join(lines) + "\n")
    if arguments.num_frames > 1:
        return
    if arguments.instances:
        rows = [dict(zip(discs, pictures, strict=True)) for pictures in zip(*discs.values(), strict=True)]
    with atomic_file(output_dir / "far_marks.png") as unfinished:
        captioned_grid(rows).save(unfinished, optimize=True)


def _train_and_score(arguments: FarMarksArguments, recurrence: int, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """A model of one row of the table, and its scores."""
    set_seed(seed)
    steps, num_frames = arguments.max_train_steps, arguments.num_frames
    if arguments.instances:
        model = far_discs.build_model(recurrence)
        far_discs.train(model, steps, seed)
        return model, far_discs.score(model)
    model = build_model(recurrence, for_clips=num_frames > 1)
    train(model, steps, seed, num_frames)
    return model, score(model) if num_frames == 1 else score_clips(model, num_frames)


def _draw(images: torch.Tensor, label_maps: torch.Tensor | None = None) -> Image.Image:
    """The first of some images, enlarged, tinted by its label map if there is one."""
    image = to_pil_image(((images[0] + 1) / 3).clamp(0, 1))
    if label_maps is not None:
        palette = [tuple(int(255 * (value > 1)) for value in colour) for colour in COLOURS.values()]
        image = blend(image, label_maps[0], palette)
    return image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST)


@torch.no_grad()
def _draw_rounds(
    model: CCNetForSemanticSegmentation, images: torch.Tensor, labels: torch.Tensor, corners: torch.Tensor
) -> dict[str, Image.Image]:
    """What one position far from the mark attends to, in the second round and by both rounds together."""
    attentions = [weights[0] for weights in model(images, output_attentions=True).attentions]
    elsewhere = parts(corners)["elsewhere"][0].nonzero()
    position = tuple((elsewhere[len(elsewhere) // 2] * len(attentions[0]) // SIDE).tolist())
    return {
        caption: draw_attention(_draw(images), attention_map(rounds, position), position)
        for caption, rounds in {"second round": attentions[1:], "both rounds": attentions}.items()
    }


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and range of some numbers."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main(argv: Sequence[str] | None = None, prog: str = "far_marks.py") -> int:
    """Run the command; returns the exit status."""
    return run_command(FarMarksArguments, run_experiment, argv, prog)
