"""Two processes (gloo, CPU) against one: the same gradients, and a common end."""

import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from tiny_training import RECIPE, build_trainer, coloured_split, tiny_model
from torch import nn
from torch.distributed import TCPStore
from torch.distributed.fsdp import FSDPModule

from ccnet_hf.training.checkpoints import list_checkpoints


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ccnet_hf.training.loop", "ccnet_hf.training.augmentation"])


def launch(number: int, function, *arguments) -> list[int]:
    """Run `function(rank, *arguments)` in `number` processes that know of each other; their exit codes."""
    # They meet at this process, as at torchrun: a port that one of them opens might be taken meanwhile.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(number):
        process = CONTEXT.Process(target=_enter, args=(rank, number, store.port, function, arguments))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(900)
    return [process.exitcode for process in processes]


def _enter(rank, number, port, function, arguments) -> None:
    torch.set_num_threads(1)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    if number > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        os.environ.update({name: str(value) for name, value in (world | address).items()})
    os.environ["ACCELERATE_USE_CPU"] = "true"
    function(rank, *arguments)


def ignore_some(chain):
    """Labels of which the examples ignore very different shares: none, all, and much between."""

    def transform(image, label):
        pixel_values, labels = chain(image, label)
        rows = int(torch.randint(0, labels.shape[0] + 1, ()))
        labels[: rows if rows % 3 else labels.shape[0]] = 255
        return pixel_values, labels

    return transform


def write_gradients(rank: int, file, reduction: str, per_device_batch_size: int) -> None:
    model = tiny_model(classifier_dropout_prob=0.0, loss_reduction=reduction).double()
    with torch.no_grad():
        model.model.head.attention.gamma.fill_(0.7)
    recipe = replace(RECIPE, batch_size=4, max_train_steps=1, optimizer="sgd", max_grad_norm=0.0)
    trainer = build_trainer(file.parent, recipe, model, ignore_some, per_device_batch_size=per_device_batch_size)

    def freeze_batch_norm():
        trainer.model.train()
        for module in trainer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    step = trainer.optimizer.step

    def keep_gradients():
        if rank == 0:
            named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
            torch.save({name: parameter.grad.clone() for name, parameter in named}, file)
        step()

    trainer._train_mode, trainer.optimizer.step = freeze_batch_norm, keep_gradients
    trainer.run()


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_gradients_are_those_of_the_joined_batch(tmp_path, reduction):
    cases = {"joined": (1, 4), "accumulated": (1, 1), "two": (2, 2), "two, accumulated": (2, 1)}
    gradients = {}
    for name, (number, per_device_batch_size) in cases.items():
        file = tmp_path / name / "gradients.pt"
        file.parent.mkdir()
        assert launch(number, write_gradients, file, reduction, per_device_batch_size) == [0] * number
        gradients[name] = torch.load(file)
    joined = gradients.pop("joined")
    scale = max(float(gradient.abs().max()) for gradient in joined.values())
    assert joined["model.head.attention.query.weight"].abs().max() > 1e-6 * scale
    for name, others in gradients.items():
        assert others.keys() == joined.keys()
        for parameter, gradient in joined.items():
            difference = (others[parameter] - gradient).norm() / (gradient.norm() + 1e-9 * scale)
            assert difference < 1e-6, (name, parameter)


def train(rank: int, output_dir, terminated: bool, resume: bool) -> None:
    trainer = build_trainer(
        output_dir,
        per_device_batch_size=1,
        checkpointing_steps=4,
        ema_decay=0.5,
        resume_from_checkpoint="last" if resume else None,
    )

    def terminate(numbers, step):
        if terminated and rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.accelerator.log = terminate
    trainer.evaluate = lambda model: {"eval_mean_iou": float(model.classifier.weight.abs().sum())}
    trainer.run()


def test_a_termination_of_one_process_stops_and_saves_both(tmp_path):
    assert launch(2, train, tmp_path / "straight", False, False) == [0, 0]
    broken = tmp_path / "broken"
    assert launch(2, train, broken, True, False) == [143, 143]
    assert [path.name for path in list_checkpoints(broken)] == ["checkpoint-2"]
    assert launch(2, train, broken, False, True) == [0, 0]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def share_of_corrupt(rank: int, output_dir) -> None:
    split = coloured_split()
    rows = split.with_format(None).cast_column("image", split.features["image"].__class__(decode=False))["image"]
    broken = [{"bytes": b"", "path": None} if index in (2, 5) else row for index, row in enumerate(rows)]
    split = split.remove_columns("image").add_column("image", broken, feature=split.features["image"])
    recipe = replace(RECIPE, batch_size=4, max_train_steps=4)
    trainer = build_trainer(output_dir, recipe, split=split, skip_corrupt=True, per_device_batch_size=2)
    trainer.run()
    messages = trainer.all_corrupt()
    assert messages == [f"image{index}: cannot be read (it is not an image)" for index in (2, 5)], messages
    assert len(trainer.corrupt) < 3


def test_corrupt_examples_are_collected_from_all(tmp_path):
    assert launch(2, share_of_corrupt, tmp_path) == [0, 0]


def fully_sharding(**options) -> Accelerator:
    """With FSDP2, which Accelerate offers on accelerators only: let it take these processes for such."""
    state = PartialState(cpu=True)
    state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state._shared_state["device"] = torch.device("cpu")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    return Accelerator(fsdp_plugin=plugin, **options)


def train_sharded(rank: int, output_dir, sharded: bool, resume: bool) -> None:
    model = tiny_model(classifier_dropout_prob=0.0)
    # Statistics of a process's own images are no subject here.
    frozen = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    trainer = build_trainer(
        output_dir,
        replace(RECIPE, batch_size=4),
        model,
        per_device_batch_size=1,
        checkpointing_steps=2,
        frozen_modules=frozen,
        resume_from_checkpoint=str(output_dir.parent / "sharded" / "checkpoint-2") if resume else None,
        make_accelerator=fully_sharding if sharded else Accelerator,
    )
    assert isinstance(trainer.model, FSDPModule) is sharded
    trainer.run()


def test_a_sharded_model_trains_as_a_whole_one_and_resumes(tmp_path):
    runs = {"whole": (False, False), "sharded": (True, False), "resumed": (True, True)}
    weights = {}
    for name, (sharded, resume) in runs.items():
        assert launch(2, train_sharded, tmp_path / name, sharded, resume) == [0, 0]
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    assert weights["whole"].keys() == weights["sharded"].keys() == weights["resumed"].keys()
    for name, tensor in weights["whole"].items():
        torch.testing.assert_close(weights["sharded"][name], tensor, rtol=1e-4, atol=1e-4)
        assert torch.equal(weights["resumed"][name], weights["sharded"][name]), name
