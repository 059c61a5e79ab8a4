"""What of a training does not go together, found out before anything is read."""

from __future__ import annotations

import math

from accelerate import Accelerator

from ccnet_hf.errors import InputError
from ccnet_hf.files import remove_leftovers
from ccnet_hf.limits import MAX_PIXELS
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.checkpoints import find_checkpoint
from ccnet_hf.training.distributed import check_distribution
from ccnet_hf.training.settings import TrainingSettings


def check_settings(
    accelerator: Accelerator, recipe: TrainingRecipe, settings: TrainingSettings, evaluates: bool
) -> None:
    """Find out what does not go together, and clear away what a killed training left.

    Args:
        accelerator: says how many processes there are, and what they share out.
        recipe: what is trained.
        settings: how it runs.
        evaluates: whether there is something to evaluate on.

    Raises:
        InputError: the batch sizes do not go into each other, there is no such checkpoint, or an older training's are
            in the way; or what Accelerate was told excludes something else.
    """
    _check_batch_size(recipe, settings.images_per_pass(recipe, accelerator.num_processes), accelerator.num_processes)
    evaluates = evaluates and recipe.eval_steps > 0
    if settings.load_best_model_at_end and not evaluates:
        raise InputError("load_best_model_at_end needs evaluations during the training (--eval_steps)")
    check_distribution(accelerator, needs_whole_model=recipe.ema_decay > 0 or evaluates)
    if accelerator.is_main_process:
        remove_leftovers(settings.output_dir)
    accelerator.wait_for_everyone()
    find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)


def _check_batch_size(recipe: TrainingRecipe, images: int, num_processes: int) -> None:
    """Refuse passes of so many images a process that the recipe's batch does not consist of."""
    per_pass = images * num_processes
    if per_pass < 1:
        raise InputError(f"a batch of {recipe.batch_size} is too small for {num_processes} processes (--batch_size)")
    pixels = images * math.prod(recipe.crop_size)
    if pixels > MAX_PIXELS:
        raise InputError(
            f"a pass of {images} images of {recipe.crop_size[0]}x{recipe.crop_size[1]} has {pixels:,} pixels, "
            f"{MAX_PIXELS:,} are allowed: accumulate more passes (--per_device_train_batch_size)"
        )
    if recipe.batch_size % per_pass:
        raise InputError(
            f"a batch of {recipe.batch_size} does not come in passes of {per_pass} (--per_device_train_batch_size "
            f"{images} on {num_processes} processes)"
        )
