"""Where a training runs: on which device, in how many processes, the model whole or shared out among them.

The processes do as one: they know the same, and they fail together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    broadcast_object_list,
    gather_object,
)
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ccnet_hf.deployment.machine import has_bfloat16
from ccnet_hf.errors import InputError
from ccnet_hf.training.depthwise import speed_up_depthwise
from ccnet_hf.training.initialization import is_of_transformers


T = TypeVar("T")


def check_distribution(accelerator: Accelerator, needs_whole_model: bool) -> None:
    """Refuse what Accelerate was told and this training cannot do.

    Args:
        accelerator: knows what it was told.
        needs_whole_model: whether something looks at all of the model during the training.

    Raises:
        InputError: the message names what excludes each other.
    """
    if _is_sharded(accelerator) and needs_whole_model:
        raise InputError(
            f"{accelerator.distributed_type.value} shards the model, which --ema_decay and evaluation during the "
            "training (--eval_steps, 0 for none) need whole"
        )
    fsdp_plugin = getattr(accelerator.state, "fsdp_plugin", None)  # old ones know the first version only
    if accelerator.distributed_type == DistributedType.FSDP and getattr(fsdp_plugin, "fsdp_version", 1) != 2:
        raise InputError("FSDP is supported in its version 2 (fsdp_version in the configuration of accelerate)")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise InputError("torch dynamo is chosen here by --compile, not in the configuration of accelerate")


def precision_hint(accelerator: Accelerator) -> str | None:
    """A line that suggests bfloat16 where a training on a CPU leaves the processor's instructions for it unused."""
    is_off = accelerator.device.type == "cpu" and accelerator.mixed_precision == "no"
    if not (is_off and has_bfloat16(accelerator.device)):
        return None
    return (
        "this processor has instructions for bfloat16: steps are faster with accelerate launch --mixed_precision bf16"
    )


def _is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def place(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Bring a model to the accelerator's device, in the forms of its layers and of its memory that are fastest there.

    Of several processes on GPUs, batch norms take their statistics over the images of all.

    Returns:
        The model; in place where that is possible.
    """
    if accelerator.device.type == "cpu":
        speed_up_depthwise(model)
    elif accelerator.distributed_type != DistributedType.NO:
        model = synchronize_batch_norm(model)
    model.to(accelerator.device)
    if not _is_sharded(accelerator):
        # FSDP takes contiguous weights only; there the images alone make the convolutions channels_last.
        model.to(memory_format=torch.channels_last)
    return model


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Make batch norms take their statistics over the images of all processes, in place where that is possible."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        # Its batch norms have an activation in them, which torch's conversion would drop.
        from timm.layers import convert_sync_batchnorm as convert
    return convert(model)


def share_out(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images_per_pass: int,
    max_grad_norm: float,
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Let Accelerate share out a model and its optimizer among the processes.

    Args:
        accelerator: says how.
        model: what [`place`] returned.
        optimizer: of its parameters.
        images_per_pass: that a process takes at a time.
        max_grad_norm: what gradients are clipped to, 0 for not at all.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # What it would take from a prepared loader, and what it would divide and clip by beside the loop.
        deepspeed_config = accelerator.state.deepspeed_plugin.deepspeed_config
        deepspeed_config.update(
            train_micro_batch_size_per_gpu=images_per_pass,
            gradient_accumulation_steps=1,
            gradient_clipping=max_grad_norm,
        )
        # Else a stage 3 training would end at its first checkpoint.
        deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    # Some networks of transformers have tensors that their feature maps do not depend on, such as DINOv3's mask token:
    # the processes would wait for their gradients.
    has_such = any(map(is_of_transformers, model.modules()))
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=has_such)
    return accelerator.prepare(model, optimizer)


def to_device(values: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring all tensors in a batch, in whatever dicts and lists they are, to a device.

    Images and clips, which are the floating-point tensors of four axes and more, get the model's `dtype` on the way,
    and images channels_last.
    """
    if isinstance(values, dict):
        return {name: to_device(value, device, dtype) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [to_device(value, device, dtype) for value in values]
    if not isinstance(values, torch.Tensor):
        return values
    if values.dim() < 4 or not values.is_floating_point():
        return values.to(device, non_blocking=True)
    memory_format = torch.channels_last if values.dim() == 4 else torch.preserve_format
    return values.to(device, dtype, non_blocking=True, memory_format=memory_format)


def broadcast_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give all processes the first one's buffers, which are what is saved: batch statistics differ by process until
    the next forward pass."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def from_main_process(value: T) -> T:
    """The main process's `value`, in every process."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


@contextmanager
def together() -> Iterator[None]:
    """Let every process raise what one of them met, a bad file or a full disk; the others would wait for it without
    end. All processes meet at the end of the block, in which they must not wait for each other.

    Raises:
        InputError, OSError: what the block raised here, else what it raised in the first process that failed.
    """
    error = None
    try:
        yield
    except (InputError, OSError) as caught:
        error = caught
    mine = None if error is None else (isinstance(error, InputError), getattr(error, "errno", None), _said(error))
    failed = [failure for failure in gather_object([mine]) if failure is not None]
    if error is not None:
        raise error
    if failed:
        is_input_error, errno, said = failed[0]
        if is_input_error:
            raise InputError(said)
        raise OSError(said) if errno is None else OSError(errno, said)


def _said(error: InputError | OSError) -> str:
    return getattr(error, "strerror", None) or str(error)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that the processes may have shared out among them; all processes ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, shared out among them as `like` is; all of them ask together."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
