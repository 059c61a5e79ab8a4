"""The training loop, on Accelerate."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, gather_object
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BaseImageProcessor, PreTrainedModel

from ccnet_hf.data.images import turned_note
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import remove_leftovers
from ccnet_hf.limits import MAX_PIXELS, MAX_PROCESSES, MAX_SEED, check_range
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.batches import batch_loader, read_batches
from ccnet_hf.training.checkpoints import (
    BEST_CHECKPOINT,
    checkpoint_folder,
    find_checkpoint,
    read_scores,
    remove_old_checkpoints,
    whole_folder,
    whole_model,
    write_scores,
)
from ccnet_hf.training.depthwise import speed_up_dilated_depthwise
from ccnet_hf.training.distributed import together
from ccnet_hf.training.initialization import freeze, synchronize_batch_norm
from ccnet_hf.training.optimization import SegmentationLoss, build_optimizer, build_scheduler
from ccnet_hf.training.progress import Progress
from ccnet_hf.training.training_state import TrainingProgress, TrainingState


_MAX_SHUFFLE_BUFFER = 1_000_000  # images held encoded; more would be hundreds of gigabytes


@dataclass(frozen=True)
class TrainingSettings:
    """How a training runs, beside the recipe that says what is trained.

    Attributes:
        output_dir: for checkpoints and the trained model.
        per_device_batch_size: images a device takes at a time; the recipe's batch is completed by accumulation.
        seed: of every random draw.
        ema_decay: of the moving average of the weights that is evaluated and saved; 0 saves the weights themselves.
        frozen_modules: names of modules that do not learn.
        checkpointing_steps: steps between two checkpoints; `None` keeps none.
        checkpoints_total_limit: how many of them are kept, the newest; `None` keeps all.
        resume_from_checkpoint: a checkpoint's folder, or `"last"`.
        load_best_model_at_end: save the model with the best mIoU at the end, instead of the last.
        logging_steps: steps between two lines of numbers.
        compile: run the training steps through `torch.compile`.
        shuffle_buffer_size: examples a stream's order is drawn from.
        dataloader_num_workers: processes that prepare batches.

    Raises:
        InputError: for a value outside what is allowed; the message names the field.
    """

    output_dir: Path
    per_device_batch_size: int
    seed: int = 0
    ema_decay: float = 0.0
    frozen_modules: list[str] = field(default_factory=list)
    checkpointing_steps: int | None = None
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    load_best_model_at_end: bool = False
    logging_steps: int = 10
    compile: bool = False
    shuffle_buffer_size: int = 256
    dataloader_num_workers: int = 4

    def __post_init__(self):
        for name in ("checkpointing_steps", "checkpoints_total_limit", "logging_steps"):
            value = getattr(self, name)
            check_range(name, value, 1, 10**9)
        check_range("shuffle_buffer_size", self.shuffle_buffer_size, 1, _MAX_SHUFFLE_BUFFER)
        check_range("seed", self.seed, 0, MAX_SEED)
        check_range("dataloader_num_workers", self.dataloader_num_workers, 0, MAX_PROCESSES)
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")


def check_settings(
    accelerator: Accelerator, recipe: TrainingRecipe, settings: TrainingSettings, evaluates: bool
) -> None:
    """Find out what does not go together before anything is read, and clear away what a killed training left.

    Args:
        evaluates: whether there is something to evaluate on.

    Raises:
        InputError: the batch sizes do not go into each other, there is no such checkpoint, or an older training's are
            in the way; or what Accelerate was told excludes something else.
    """
    per_pass = settings.per_device_batch_size * accelerator.num_processes
    if per_pass < 1:
        raise InputError(
            f"a batch of {recipe.batch_size} is too small for {accelerator.num_processes} processes (--batch_size)"
        )
    pixels = settings.per_device_batch_size * math.prod(recipe.crop_size)
    if pixels > MAX_PIXELS:
        raise InputError(
            f"a pass of {settings.per_device_batch_size} images of {recipe.crop_size[0]}x{recipe.crop_size[1]} has "
            f"{pixels:,} pixels, {MAX_PIXELS:,} are allowed: accumulate more passes (--per_device_train_batch_size)"
        )
    if recipe.batch_size % per_pass:
        raise InputError(
            f"a batch of {recipe.batch_size} does not come in passes of {per_pass} (--per_device_train_batch_size "
            f"{settings.per_device_batch_size} on {accelerator.num_processes} processes)"
        )
    evaluates = evaluates and recipe.eval_steps > 0
    if settings.load_best_model_at_end and not evaluates:
        raise InputError("load_best_model_at_end needs evaluations during the training (--eval_steps)")
    if _is_sharded(accelerator) and (settings.ema_decay > 0 or evaluates):
        raise InputError(
            f"{accelerator.distributed_type.value} shards the model, which --ema_decay and evaluation during the "
            "training (--eval_steps, 0 for none) need whole"
        )
    fsdp_plugin = getattr(accelerator.state, "fsdp_plugin", None)  # old ones know the first version only
    if accelerator.distributed_type == DistributedType.FSDP and getattr(fsdp_plugin, "fsdp_version", 1) != 2:
        raise InputError("FSDP is supported in its version 2 (fsdp_version in the configuration of accelerate)")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise InputError("torch dynamo is chosen here by --compile, not in the configuration of accelerate")
    if accelerator.is_main_process:
        remove_leftovers(settings.output_dir)
    accelerator.wait_for_everyone()
    find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)


def _is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


class Trainer:
    """Trains a model by a recipe.

    The gradient of a step is that of the joined batch of all passes and processes: the cross entropies divide by the
    labelled pixels of all of them. OHEM and the category-consistent loss choose and average within one pass.

    Args:
        accelerator: says where and in which precision.
        model: a `CCNetForSemanticSegmentation`, trained in place.
        image_processor: is saved beside the model.
        dataset: training examples with the recipe's augmentation.
        recipe: what is trained.
        settings: how it runs.
        class_weights: (num_labels,) weights of the cross entropy, or `None`.
        evaluate: scores a model, called every `recipe.eval_steps` steps; its numbers are logged, and the model with
            the highest `eval_mean_iou` is kept in `checkpoint-best`.

    Attributes:
        step: steps done.
        corrupt: messages about the examples this process had to replace.

    Raises:
        InputError: as for `check_settings`, or a module to freeze is not there.
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
        check_settings(accelerator, recipe, settings, evaluates=evaluate is not None)
        self.accumulation_steps = recipe.batch_size // (settings.per_device_batch_size * accelerator.num_processes)

        if accelerator.device.type == "cpu":
            speed_up_dilated_depthwise(model)
        elif accelerator.distributed_type != DistributedType.NO:
            model = synchronize_batch_norm(model)
        self.frozen = freeze(model, settings.frozen_modules)  # after that: it replaces modules
        model.to(accelerator.device)
        if not _is_sharded(accelerator):
            # FSDP takes contiguous weights only; there the images alone make the convolutions channels_last.
            model.to(memory_format=torch.channels_last)
        self.loss = SegmentationLoss(model.config, class_weights).to(accelerator.device)
        optimizer = build_optimizer(model, recipe)
        # Stepped by hand, once per step of the recipe: a prepared scheduler would step once per process.
        self.scheduler = build_scheduler(optimizer, recipe)
        self.average = None
        if settings.ema_decay > 0:
            decay = get_ema_multi_avg_fn(settings.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # What it would take from a prepared loader, and what it would divide and clip by beside this loop.
            deepspeed_config = accelerator.state.deepspeed_plugin.deepspeed_config
            deepspeed_config.update(
                train_micro_batch_size_per_gpu=settings.per_device_batch_size,
                gradient_accumulation_steps=1,
                gradient_clipping=recipe.max_grad_norm,
            )
            # Else a stage 3 training would end at its first checkpoint.
            deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.state = TrainingState(accelerator, self.model, self.optimizer, self.average)
        # Beside the model, which stays as it is for evaluation at changing sizes.
        self._forward = torch.compile(self.model) if settings.compile else self.model
        self.step = 0
        self.corrupt: list[str] = []
        self._sampler: torch.utils.data.Sampler | None = None
        self._stream_position: tuple[int, int] | None = None
        self._best_mean_iou: float | None = None
        self._told_of_turned = False
        self._stop_requested = False

    @property
    def trained_model(self) -> PreTrainedModel:
        """The model as it would be saved now: the average where there is one."""
        return self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)

    def run(self) -> dict[str, float]:
        """Train to the recipe's last step and save the model in `output_dir`.

        SIGTERM, on whichever process, ends the training after the step in progress with a checkpoint and
        `SystemExit(143)` on all of them.

        Returns:
            The numbers of the saved model's evaluation, empty without one.

        Raises:
            InputError: the loss is not finite; the message names the step and the batch's examples.
        """
        if self.settings.resume_from_checkpoint:
            self._resume()
        previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            loader = self._data_loader()
            self._sampler = loader.batch_sampler
            with closing(read_batches(loader)) as batches:  # an open one keeps its workers
                return self._run(batches)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)

    def _run(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        progress = Progress(
            self.accelerator,
            self.trained_model,
            self.settings.output_dir,
            self.recipe.batch_size,
            start=self.step,
            stop=self.recipe.max_train_steps,
            every=self.settings.logging_steps,
        )
        with closing(progress):  # whatever ends the training is said on a line of its own
            numbers = self._train(batches, progress)
        return self._save_trained_model() or numbers

    def _train(self, batches: Iterator[dict[str, Any]], progress: Progress) -> dict[str, float]:
        """All steps that are left; the numbers of the last evaluation."""
        recipe, settings = self.recipe, self.settings
        # A checkpoint is older than the evaluation after the same step, so a resumed run does that again.
        with progress.elsewhere():
            numbers = self._evaluate(progress) if self.step else {}
        self._train_mode()
        while self.step < recipe.max_train_steps:
            with progress.waiting():
                passes = [next(batches) for _ in range(self.accumulation_steps)]
            valid_pixels, stop, any_turned = self._agree(passes)
            if any_turned and not self._told_of_turned:
                self._told_of_turned = True
                turned = gather_object([name for batch in passes for name in batch["turned"]])
                progress.note(turned_note(sorted(set(turned))))
            if stop:
                self.save_checkpoint()
                raise SystemExit(128 + signal.SIGTERM)
            learning_rate = self.scheduler.get_last_lr()[0]
            losses = self._train_step(passes, valid_pixels)
            self.step += 1
            progress.advance(self.step, losses, learning_rate)
            with progress.elsewhere():
                if settings.checkpointing_steps and self._is_due(settings.checkpointing_steps):
                    self.save_checkpoint()
                numbers = self._evaluate(progress) or numbers
        return numbers

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.max_train_steps

    def _agree(self, batches: list[dict[str, Any]]) -> tuple[float, bool, bool]:
        """What all processes must know of the coming step: labelled pixels per pass, whether to stop before it, and
        whether label maps were turned with their images."""
        ignore_index = self.loss.config.semantic_loss_ignore_index
        labelled = sum(int((batch["labels"] != ignore_index).sum()) for batch in batches)
        mine = [labelled, self._stop_requested, any(batch["turned"] for batch in batches)]
        mine = torch.tensor(mine, dtype=torch.int64, device=self.accelerator.device)
        total, stop, turned = self.accelerator.reduce(mine, "sum").tolist()
        return total / (self.accelerator.num_processes * self.accumulation_steps), stop > 0, turned > 0

    def _train_step(self, batches: list[dict[str, Any]], valid_pixels: float) -> dict[str, float]:
        """One optimiser step; its losses on this process."""
        device, passes = self.accelerator.device, []
        for batch in batches:
            is_last = batch is batches[-1]
            self.accelerator.sync_gradients = is_last  # or DeepSpeed would step after every pass
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                pixel_values = batch["pixel_values"].to(
                    device, self.trained_model.dtype, non_blocking=True, memory_format=torch.channels_last
                )
                outputs = self._forward(pixel_values=pixel_values)
                losses = self.loss(outputs, batch["labels"].to(device, non_blocking=True), valid_pixels)
                self.accelerator.backward(losses["loss"] / len(batches))
            passes.append(torch.stack([value.detach() for value in losses.values()]))
        # One wait for the device per step, and before the weights take anything from it (but DeepSpeed's have by now).
        for values, batch in zip(torch.stack(passes).tolist(), batches, strict=True):
            loss = dict(zip(losses, values, strict=True))["loss"]
            if not math.isfinite(loss):
                names = ", ".join(batch["names"])
                raise InputError(f"the loss is {loss} at step {self.step + 1}; its batch: {names}")
        if self.recipe.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        new = {message for batch in batches for message in batch["corrupt"]}.difference(self.corrupt)
        self.corrupt += sorted(new)
        return dict(zip(losses, torch.stack(passes).mean(0).tolist(), strict=True))

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        """Score and keep the model if that is due after this step."""
        if not (self.evaluate and self.recipe.eval_steps and self._is_due(self.recipe.eval_steps)):
            return {}
        if self.accelerator.num_processes > 1:
            # Batch statistics differ by process until the next forward pass; the first process's are what is saved.
            for buffer in self.trained_model.buffers():
                torch.distributed.broadcast(buffer, 0)
        numbers = self.evaluate(self.trained_model.eval())
        progress.scores(self.step, numbers)
        mean_iou = numbers.get("eval_mean_iou", math.nan)  # NaN where no pixel is labelled
        if mean_iou > (-math.inf if self._best_mean_iou is None else self._best_mean_iou):
            self._best_mean_iou = mean_iou
            weights = self._weights()
            with whole_folder(self.settings.output_dir / BEST_CHECKPOINT, self.accelerator) as unfinished:
                self._save_model(unfinished, weights)
                if self.accelerator.is_main_process:
                    write_scores(unfinished, self.step, numbers)
        self._train_mode()
        return numbers

    def _data_loader(self) -> torch.utils.data.DataLoader:
        return batch_loader(
            self.dataset,
            buffer_size=self.settings.shuffle_buffer_size,
            num_workers=self.settings.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            position=self._stream_position,
            batch_size=self.recipe.batch_size,
            start=self.step,
            stop=self.recipe.max_train_steps,
            seed=self.settings.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            micro_batches=self.accumulation_steps,
        )

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<step>`: the model, ready for `from_pretrained`, and in `state/` what resuming needs."""
        output_dir, limit = self.settings.output_dir, self.settings.checkpoints_total_limit
        positions = None
        if self.dataset.streamed and self._sampler is not None:
            positions = gather_object([self._sampler.positions.get(self.step)])
        scaler = self.accelerator.scaler
        progress = TrainingProgress(
            step=self.step,
            best_mean_iou=self._best_mean_iou,
            corrupt=self.all_corrupt(),
            kept=self._kept(),
            num_processes=self.accelerator.num_processes,
            scaler={} if scaler is None else scaler.state_dict(),
            stream_positions=positions,
        )
        weights = self._weights()
        with whole_folder(checkpoint_folder(output_dir, self.step), self.accelerator) as unfinished:
            self.state.save(unfinished / "state", progress)
            self._save_model(unfinished, weights)
        if limit and self.accelerator.is_main_process:
            remove_old_checkpoints(output_dir, limit)

    def all_corrupt(self) -> list[str]:
        """Messages about the examples any process had to replace."""
        return sorted(set(gather_object(self.corrupt)))

    def _weights(self) -> dict[str, torch.Tensor] | None:
        """The weights as they are saved, from all processes, each of which may hold a part of them; `None` where the
        trained model has them itself."""
        return self.accelerator.get_state_dict(self.model) if self.average is None else None

    def _save_model(self, folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
        """Write model and image processor."""
        if self.accelerator.is_main_process:
            self.trained_model.save_pretrained(folder, state_dict=weights)
            self.image_processor.save_pretrained(folder)

    def _save_trained_model(self) -> dict[str, float]:
        """Save the model in `output_dir`; the numbers of its evaluation where it is not the last one."""
        output_dir, numbers = self.settings.output_dir, {}
        if self.settings.load_best_model_at_end and self._best_mean_iou is not None:
            best = output_dir / BEST_CHECKPOINT
            with reading(best):
                self.trained_model.load_state_dict(type(self.trained_model).from_pretrained(best).state_dict())
            _, numbers = read_scores(best)
        weights = self._weights()
        with whole_model(output_dir, self.accelerator) as unfinished:
            self._save_model(unfinished, weights)
        return numbers

    def _resume(self) -> None:
        checkpoint = find_checkpoint(self.settings.output_dir, self.settings.resume_from_checkpoint)
        best = self.settings.output_dir / BEST_CHECKPOINT
        with together():
            if best.is_dir():
                read_scores(best)  # now, not at the end
        progress = self.state.resume(checkpoint, self._kept())
        if progress.step > self.recipe.max_train_steps:
            raise InputError(
                f"{checkpoint} is after {progress.step} steps, and this run ends after {self.recipe.max_train_steps} "
                "(--max_train_steps)"
            )
        self.step = progress.step
        self.scheduler = build_scheduler(self.scheduler.optimizer, self.recipe, self.step)
        # Of a checkpoint from elsewhere the best model is not at hand, and another one becomes it.
        if best.is_dir():
            self._best_mean_iou = progress.best_mean_iou
        self.corrupt = progress.corrupt
        # Of another number of processes the positions are unknown, and the loader reads all that came before again.
        if progress.stream_positions and progress.num_processes == self.accelerator.num_processes:
            position = progress.stream_positions[self.accelerator.process_index]
            self._stream_position = None if position is None else tuple(position)

    def _kept(self) -> dict[str, Any]:
        """What a resumed training cannot change: the examples of every step, and what the optimizer's state brings."""
        recipe_fields = ("batch_size", "optimizer", "learning_rate", "momentum", "weight_decay")
        values = {name: getattr(self.recipe, name) for name in (*recipe_fields, "backbone_learning_rate_factor")}
        values |= {"seed": self.settings.seed, "streaming": self.dataset.streamed}
        if self.dataset.streamed:
            return values | {"shuffle_buffer_size": self.settings.shuffle_buffer_size}
        return values | {"number of examples": len(self.dataset)}

    def _request_stop(self, *_: Any) -> None:
        self._stop_requested = True
