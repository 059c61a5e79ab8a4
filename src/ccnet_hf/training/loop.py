"""The training loop, on Accelerate."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.batches import SeededBatches
from ccnet_hf.training.checkpoints import checkpoint_folder, find_checkpoint, move_files, whole_folder
from ccnet_hf.training.depthwise import speed_up_dilated_depthwise
from ccnet_hf.training.initialization import freeze
from ccnet_hf.training.optimization import SegmentationLoss, build_optimizer, build_scheduler


# In the progress bar.
_SHORT_NAMES = {"decode_loss": "decode", "auxiliary_loss": "auxiliary", "images_per_second": "img/s"}


@dataclass(frozen=True)
class TrainingSettings:
    """How a training runs, beside the recipe that says what is trained.

    Attributes:
        output_dir: for checkpoints and the trained model.
        per_device_batch_size: pictures a device takes at a time; the recipe's batch is completed by accumulation.
        seed: of every random draw.
        ema_decay: of the moving average of the weights that is evaluated and saved; 0 saves the weights themselves.
        frozen_modules: names of modules that do not learn.
        checkpointing_steps: steps between two checkpoints; `None` keeps none.
        resume_from_checkpoint: a checkpoint's folder, or `"last"`.
        dataloader_num_workers: processes that prepare batches.
    """

    output_dir: Path
    per_device_batch_size: int
    seed: int = 0
    ema_decay: float = 0.0
    frozen_modules: list[str] = field(default_factory=list)
    checkpointing_steps: int | None = None
    resume_from_checkpoint: str | None = None
    dataloader_num_workers: int = 4


class Trainer:
    """Trains a model by a recipe.

    Args:
        accelerator: says where and in which precision.
        model: a `CCNetForSemanticSegmentation`, trained in place.
        image_processor: is saved beside the model.
        dataset: training examples with the recipe's augmentation.
        recipe: what is trained.
        settings: how it runs.
        class_weights: (num_labels,) weights of the cross entropy, or `None`.
        evaluate: scores a model, called every `recipe.eval_steps` steps; its numbers are logged.

    Raises:
        ValueError: the batch sizes do not go into each other, or a checkpoint or module is not there.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        dataset: SegmentationDataset,
        recipe: TrainingRecipe,
        settings: TrainingSettings,
        class_weights: torch.Tensor | None = None,
        evaluate: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    ):
        self.accelerator = accelerator
        self.image_processor = image_processor
        self.dataset = dataset
        self.recipe = recipe
        self.settings = settings
        self.evaluate = evaluate
        per_pass = settings.per_device_batch_size * accelerator.num_processes
        if recipe.batch_size % per_pass:
            raise ValueError(
                f"a batch of {recipe.batch_size} does not come in passes of {per_pass} (--per_device_train_batch_size "
                f"{settings.per_device_batch_size} on {accelerator.num_processes} processes)"
            )
        self.accumulation_steps = recipe.batch_size // per_pass

        self.frozen = freeze(model, settings.frozen_modules)
        if accelerator.device.type == "cpu":
            speed_up_dilated_depthwise(model)
        elif accelerator.distributed_type != DistributedType.NO:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(accelerator.device, memory_format=torch.channels_last)
        self.loss = SegmentationLoss(model.config, class_weights).to(accelerator.device)
        optimizer = build_optimizer(model, recipe)
        # Stepped by hand, once per step of the recipe: a prepared scheduler would step once per process.
        self.scheduler = build_scheduler(optimizer, recipe)
        accelerator.register_for_checkpointing(self.scheduler)
        self.average = None
        if settings.ema_decay > 0:
            decay = get_ema_multi_avg_fn(settings.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
            accelerator.register_for_checkpointing(self.average)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.step = 0
        self._stop_requested = False

    @property
    def trained_model(self) -> PreTrainedModel:
        """The model as it would be saved now: the average where there is one."""
        return self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)

    def run(self) -> dict[str, float]:
        """Train to the recipe's last step and save the model in `output_dir`.

        SIGTERM ends the training after the step in progress with a checkpoint and `SystemExit(143)`.

        Returns:
            The last evaluation's numbers, empty without one.

        Raises:
            ValueError: the loss is not finite; the message names the step and the batch's examples.
        """
        if self.settings.resume_from_checkpoint:
            self._resume()
        previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            return self._run()
        finally:
            signal.signal(signal.SIGTERM, previous_handler)

    def _run(self) -> dict[str, float]:
        recipe, settings = self.recipe, self.settings
        batches = iter(self._data_loader())
        numbers: dict[str, float] = {}
        bar = tqdm(
            total=recipe.max_train_steps,
            initial=self.step,
            desc="train",
            disable=not self.accelerator.is_main_process,
        )
        self._train_mode()
        started = time.perf_counter()
        while self.step < recipe.max_train_steps:
            logged = self._train_step(batches)
            self.step += 1
            finished = time.perf_counter()
            logged["images_per_second"] = recipe.batch_size / (finished - started)
            started = finished
            bar.update()
            bar.set_postfix({_SHORT_NAMES.get(name, name): f"{value:.3g}" for name, value in logged.items()})
            self.accelerator.log(logged, step=self.step)

            if self._stop_requested:
                self.save_checkpoint()
                bar.close()
                raise SystemExit(128 + signal.SIGTERM)
            is_last = self.step == recipe.max_train_steps
            if settings.checkpointing_steps and (self.step % settings.checkpointing_steps == 0 or is_last):
                self.save_checkpoint()
            if self.evaluate and recipe.eval_steps and (self.step % recipe.eval_steps == 0 or is_last):
                numbers = self.evaluate(self.trained_model.eval())
                self.accelerator.log(numbers, step=self.step)
                bar.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
                self._train_mode()
                started = time.perf_counter()
        bar.close()
        self._save_trained_model()
        return numbers

    def _train_step(self, batches) -> dict[str, float]:
        """One optimiser step; what is to be logged of it."""
        logged: dict[str, float] = {}
        for part in range(self.accumulation_steps):
            batch = next(batches)
            is_last = part == self.accumulation_steps - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                outputs = self.model(pixel_values=batch["pixel_values"].to(self.accelerator.device))
                losses = self.loss(outputs, batch["labels"].to(self.accelerator.device))
                values = {name: float(value.detach()) for name, value in losses.items()}
                if not math.isfinite(values["loss"]):
                    names = ", ".join(batch["names"])
                    raise ValueError(f"the loss is {values['loss']} at step {self.step + 1}; its batch: {names}")
                self.accelerator.backward(losses["loss"] / self.accumulation_steps)
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + value / self.accumulation_steps
        if self.recipe.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        logged["lr"] = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return logged

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    def _data_loader(self) -> torch.utils.data.DataLoader:
        sampler = SeededBatches(
            num_examples=len(self.dataset),
            batch_size=self.recipe.batch_size,
            start=self.step,
            stop=self.recipe.max_train_steps,
            seed=self.settings.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            micro_batches=self.accumulation_steps,
        )
        return torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.settings.dataloader_num_workers,
            generator=torch.Generator(),  # its own: the loader's draw would move the global one on every resume
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<step>`: the model, ready for `from_pretrained`, and in `state/` what resuming needs."""
        folder = checkpoint_folder(self.settings.output_dir, self.step)
        with whole_folder(folder, self.accelerator) as unfinished:
            self.accelerator.save_state(str(unfinished / "state"))
            if self.accelerator.is_main_process:
                (unfinished / "state" / "progress.json").write_text(json.dumps({"step": self.step}))
                self._save_model(unfinished)

    def _save_model(self, folder: Path) -> None:
        self.trained_model.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def _save_trained_model(self) -> None:
        output_dir = self.settings.output_dir
        finished = output_dir / ".model"
        with whole_folder(finished, self.accelerator) as unfinished:
            if self.accelerator.is_main_process:
                self._save_model(unfinished)
        if self.accelerator.is_main_process:
            move_files(finished, output_dir)

    def _resume(self) -> None:
        folder = find_checkpoint(self.settings.output_dir, self.settings.resume_from_checkpoint) / "state"
        self.accelerator.load_state(str(folder))
        self.step = json.loads((folder / "progress.json").read_text())["step"]

    def _request_stop(self, *_: Any) -> None:
        self._stop_requested = True


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack examples into `pixel_values` (B, 3, H, W), `labels` (B, H, W) and the list `names`."""
    return {
        "pixel_values": torch.stack([example["image"] for example in examples]),
        "labels": torch.stack([example["label"] for example in examples]),
        "names": [example["name"] for example in examples],
    }
