"""The training loop, on Accelerate. It knows no pixels, no classes and no cluster: those are the objective's, the
evaluator's and `distributed`'s."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel
from transformers.processing_utils import PushToHubMixin

from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.evaluator import Evaluator
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.batches import Batches, batch_loader, read_batches
from ccnet_hf.training.checkpoints import Checkpoints, find_checkpoint
from ccnet_hf.training.checks import check_settings
from ccnet_hf.training.distributed import broadcast_buffers, place, share_out, to_device
from ccnet_hf.training.initialization import freeze
from ccnet_hf.training.objective import Objective
from ccnet_hf.training.optimization import build_optimizer, build_scheduler
from ccnet_hf.training.progress import Progress
from ccnet_hf.training.settings import TrainingSettings
from ccnet_hf.training.training_state import TrainingState, fixed_settings


class TrainingLoop:
    """Trains a model by a recipe.

    The gradient of a step is that of the joined batch of all passes and processes, as far as the objective goes.

    Args:
        accelerator: says where and in which precision.
        model: trained in place.
        processor: of the model's inputs; is saved beside it.
        dataset: training examples with the recipe's augmentation, as `SegmentationDataset` gives them.
        objective: what is minimised.
        recipe: what is trained.
        settings: how it runs.
        evaluator: scores the model every `recipe.eval_steps` steps; its numbers are logged, and the model whose
            deciding score is the highest is kept in `checkpoint-best`.

    Attributes:
        state: what a resumed training goes on from; its `step` says how many are done.

    Raises:
        InputError: as for `check_settings`, or a module to freeze is not there.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        processor: PushToHubMixin,
        dataset: Dataset,
        objective: Objective,
        recipe: TrainingRecipe,
        settings: TrainingSettings,
        evaluator: Evaluator | None = None,
    ):
        check_settings(accelerator, recipe, settings, evaluates=evaluator is not None)
        self.accelerator = accelerator
        self.dataset = dataset
        self.recipe = recipe
        self.settings = settings
        self.evaluator = evaluator
        images_per_pass = settings.images_per_pass(recipe, accelerator.num_processes)
        self.accumulation_steps = recipe.batch_size // (images_per_pass * accelerator.num_processes)

        model = place(accelerator, model)
        self.frozen = freeze(model, [*recipe.frozen_modules, *settings.freeze])  # after that: it replaces modules
        self.objective = objective.to(accelerator.device)
        optimizer = build_optimizer(model, recipe)
        # Stepped by hand, once per step of the recipe: a prepared scheduler would step once per process.
        self.scheduler = build_scheduler(optimizer, recipe)
        self.average = None
        if recipe.ema_decay > 0:
            decay = get_ema_multi_avg_fn(recipe.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        self.model, self.optimizer = share_out(accelerator, model, optimizer, images_per_pass, recipe.max_grad_norm)
        # Beside the model, which stays as it is for evaluation at changing sizes.
        self._forward = torch.compile(self.model) if settings.compile else self.model
        fixed = fixed_settings(recipe, settings, dataset)
        self.state = TrainingState(accelerator, self.model, self.optimizer, self.average, fixed)
        self.checkpoints = Checkpoints(
            self.state, processor, settings.output_dir, limit=settings.checkpoints_total_limit
        )
        self._has_noted = False
        self._stop_requested = False

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
        with _on_sigterm(self._request_stop):
            loader = self._data_loader()
            # Whatever ends the training: an open iterator keeps its workers, an open line would share its own.
            with closing(read_batches(loader)) as batches, closing(self._progress()) as progress:
                numbers = self._train(batches, loader.batch_sampler, progress)
            best = self.settings.load_best_model_at_end and self.state.best_score is not None
            return self.checkpoints.save_trained(best) or numbers

    def _train(self, batches: Iterator[dict[str, Any]], sampler: Batches, progress: Progress) -> dict[str, float]:
        """All steps that are left; the numbers of the last evaluation."""
        state, checkpoint_interval = self.state, self.settings.checkpoint_interval(self.recipe)
        # A checkpoint is older than the evaluation after the same step, so a resumed run does that again.
        with progress.elsewhere():
            numbers = self._evaluate(progress) if state.step else {}
        self._train_mode()
        while state.step < self.recipe.max_train_steps:
            with progress.waiting():
                passes = [next(batches) for _ in range(self.accumulation_steps)]
            counts, stop, has_notes = self._agree(passes)
            if has_notes and not self._has_noted:
                self._has_noted = True
                noted = gather_object([name for batch in passes for name in batch["noted"]])
                progress.note(self.dataset.note(sorted(set(noted))))
            if stop:
                self.checkpoints.save()
                raise SystemExit(128 + signal.SIGTERM)
            learning_rate = self.scheduler.get_last_lr()[0]
            losses = self._train_step(passes, counts)
            state.step += 1
            state.stream_position = sampler.position_after(state.step)
            progress.advance(state.step, losses, learning_rate)
            with progress.elsewhere():
                if self._is_due(checkpoint_interval):
                    self.checkpoints.save()
                numbers = self._evaluate(progress) or numbers
        return numbers

    def _is_due(self, interval: int) -> bool:
        """Whether something comes after this step that comes so often, and at the end; 0 for never."""
        step = self.state.step
        return interval > 0 and (step % interval == 0 or step == self.recipe.max_train_steps)

    def _agree(self, batches: list[dict[str, Any]]) -> tuple[dict[str, float], bool, bool]:
        """What all processes must know of the coming step: the objective's counts per pass, whether to stop before
        it, and whether there is something to note about its examples."""
        counts = [self.objective.counts(batch) for batch in batches]
        mine = [sum(its[name] for its in counts) for name in counts[0]]
        mine += [self._stop_requested, any(batch["noted"] for batch in batches)]
        mine = torch.tensor(mine, dtype=torch.int64, device=self.accelerator.device)
        *totals, stop, noted = self.accelerator.reduce(mine, "sum").tolist()
        passes = self.accelerator.num_processes * self.accumulation_steps
        return {name: total / passes for name, total in zip(counts[0], totals, strict=True)}, stop > 0, noted > 0

    def _train_step(self, batches: list[dict[str, Any]], counts: dict[str, float]) -> dict[str, float]:
        """One optimiser step; its losses on this process."""
        accelerator, state, passes = self.accelerator, self.state, []
        for batch in batches:
            is_last = batch is batches[-1]
            accelerator.sync_gradients = is_last  # or DeepSpeed would step after every pass
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                inputs = to_device(batch, accelerator.device, state.trained_model.dtype)
                losses = self.objective(self._forward, inputs, counts)
                losses = {"loss": sum(losses.values()), **losses}
                accelerator.backward(losses["loss"] / len(batches))
            passes.append(torch.stack([value.detach() for value in losses.values()]))
        # One wait for the device per step, and before the weights take anything from it (but DeepSpeed's have by now).
        for (loss, *_), batch in zip(torch.stack(passes).tolist(), batches, strict=True):
            if not math.isfinite(loss):
                names = ", ".join(batch["names"])
                raise InputError(f"the loss is {loss} at step {state.step + 1}; its batch: {names}")
        if self.recipe.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model))
        new = {message for batch in batches for message in batch["corrupt"]}.difference(state.corrupt)
        state.corrupt += sorted(new)
        return dict(zip(losses, torch.stack(passes).mean(0).tolist(), strict=True))

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        """Score and keep the model if that is due after this step."""
        if self.evaluator is None or not self._is_due(self.recipe.eval_steps):
            return {}
        state = self.state
        broadcast_buffers(self.accelerator, state.trained_model)
        scores = self.evaluator(state.trained_model.eval())
        progress.scores(state.step, scores)
        score = scores.get(self.evaluator.deciding_score, math.nan)  # NaN where nothing could be scored
        if score > (-math.inf if state.best_score is None else state.best_score):
            state.best_score = score
            self.checkpoints.save_best(scores)
        self._train_mode()
        return scores

    def _data_loader(self) -> DataLoader:
        return batch_loader(
            self.dataset,
            buffer_size=self.settings.shuffle_buffer_size,
            num_workers=self.settings.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            group_by_shape=self.recipe.group_by_shape,
            position=self.state.stream_position,
            batch_size=self.recipe.batch_size,
            start=self.state.step,
            stop=self.recipe.max_train_steps,
            seed=self.settings.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            micro_batches=self.accumulation_steps,
        )

    def _progress(self) -> Progress:
        return Progress(
            self.accelerator,
            self.state.trained_model,
            self.settings.output_dir,
            self.recipe.batch_size,
            start=self.state.step,
            stop=self.recipe.max_train_steps,
            every=self.settings.logging_steps,
        )

    def _resume(self) -> None:
        checkpoint = find_checkpoint(self.settings.output_dir, self.settings.resume_from_checkpoint)
        has_best = self.checkpoints.check_best()  # now, not at the end
        self.state.resume(checkpoint)
        if self.state.step > self.recipe.max_train_steps:
            raise InputError(
                f"{checkpoint} is after {self.state.step} steps, and this run ends after "
                f"{self.recipe.max_train_steps} (--max_train_steps)"
            )
        self.scheduler = build_scheduler(self.scheduler.optimizer, self.recipe, self.state.step)
        if not has_best:
            self.state.best_score = None  # of a checkpoint from elsewhere it is not at hand, and another becomes it

    def _request_stop(self, *_: Any) -> None:
        self._stop_requested = True


@contextmanager
def _on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
