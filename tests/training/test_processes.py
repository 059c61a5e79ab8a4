"""Two processes (gloo, CPU) against one: the same gradients, and a common end."""

import contextlib
import io
import os
import resource
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from processes import launch
from safetensors.torch import load_file
from tiny_training import RECIPE, ScoredBy, build_trainer, coloured_split, tiny_model
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ccnet_hf.errors import InputError
from ccnet_hf.training.checkpoints import list_checkpoints
from ccnet_hf.training.state_files import write_manifest


def ignore_some(chain):
    """Labels of which the examples ignore very different shares: none, all, and much between."""

    def transform(image, label):
        pixel_values, labels = chain(image, label)
        rows = int(torch.randint(0, labels.shape[0] + 1, ()))
        labels[: rows if rows % 3 else labels.shape[0]] = 255
        return pixel_values, labels

    return transform


def write_gradients(rank: int, file, reduction: str, per_device_train_batch_size: int) -> None:
    model = tiny_model(classifier_dropout_prob=0.0, loss_reduction=reduction).double()
    with torch.no_grad():
        model.model.head.attention.gamma.fill_(0.7)
    recipe = replace(RECIPE, batch_size=4, max_train_steps=1, optimizer="sgd", max_grad_norm=0.0)
    trainer = build_trainer(
        file.parent, recipe, model, ignore_some, per_device_train_batch_size=per_device_train_batch_size
    )

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
    for name, (number, per_device_train_batch_size) in cases.items():
        file = tmp_path / name / "gradients.pt"
        file.parent.mkdir()
        assert launch(number, write_gradients, file, reduction, per_device_train_batch_size) == [0] * number
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
        per_device_train_batch_size=1,
        checkpointing_steps=4,
        ema_decay=0.5,
        resume_from_checkpoint="last" if resume else None,
    )

    def terminate(numbers, step):
        if terminated and rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.accelerator.log = terminate
    trainer.evaluator = ScoredBy(lambda model: {"eval_mean_iou": float(model.classifier.weight.abs().sum())})
    trainer.run()


def test_a_termination_of_one_process_stops_and_saves_both(tmp_path):
    assert launch(2, train, tmp_path / "straight", False, False) == [0, 0]
    broken = tmp_path / "broken"
    assert launch(2, train, broken, True, False) == [143, 143]
    assert [path.name for path in list_checkpoints(broken)] == ["checkpoint-2"]
    assert launch(2, train, broken, False, True) == [0, 0]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def train_dinov3(rank: int, output_dir) -> None:
    backbone = {
        **{"model_type": "dinov3_vit", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2},
        **{"num_attention_heads": 1, "out_features": ["stage1", "stage2"]},
    }
    model = tiny_model(backbone_config=backbone)
    build_trainer(output_dir, replace(RECIPE, max_train_steps=2), model, per_device_train_batch_size=1).run()


def test_processes_do_not_wait_for_tensors_that_nothing_depends_on(tmp_path):
    assert launch(2, train_dinov3, tmp_path) == [0, 0]
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())


def meet(rank: int, output_dir, resume: str | None, message: str, full: bool = False) -> None:
    """A training that every process ends with this message."""
    recipe = replace(RECIPE, max_train_steps=2)
    settings = {"per_device_train_batch_size": 1, "checkpointing_steps": 2, "ema_decay": 0.5}
    trainer = build_trainer(output_dir, recipe, resume_from_checkpoint=resume, **settings)
    if full and rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with pytest.raises((InputError, OSError), match=message):
        trainer.run()


def test_what_one_process_meets_ends_both(tmp_path):
    full = tmp_path / "full"
    assert launch(2, meet, full, None, "checkpoint-2 cannot be written: ", True) == [0, 0]
    assert [path.name for path in full.iterdir()] == ["training_log.jsonl"]

    assert launch(2, train, tmp_path / "saved", False, False) == [0, 0]
    checkpoint = tmp_path / "saved" / "checkpoint-4"
    file = checkpoint / "state" / "random_states_1.json"
    content = file.read_text()
    file.write_text(content[:-1])
    assert launch(2, meet, tmp_path / "resumed", str(checkpoint), r"random_states_1\.json is damaged") == [0, 0]


def resume_alone(rank: int, checkpoint, output_dir) -> None:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        recipe = replace(RECIPE, max_train_steps=5)
        build_trainer(output_dir, recipe, ema_decay=0.5, resume_from_checkpoint=str(checkpoint)).run()
    assert "checkpoint-4 was saved by 2 processes and goes on in 1: the random numbers" in errors.getvalue()


def test_another_number_of_processes_goes_on_and_says_what_that_changes(tmp_path):
    assert launch(2, train, tmp_path / "saved", False, False) == [0, 0]
    assert launch(1, resume_alone, tmp_path / "saved" / "checkpoint-4", tmp_path / "resumed") == [0]


def share_of_corrupt(rank: int, output_dir) -> None:
    split = coloured_split()
    rows = split.with_format(None).cast_column("image", split.features["image"].__class__(decode=False))["image"]
    broken = [{"bytes": b"", "path": None} if index in (2, 5) else row for index, row in enumerate(rows)]
    split = split.remove_columns("image").add_column("image", broken, feature=split.features["image"])
    recipe = replace(RECIPE, batch_size=4, max_train_steps=4)
    trainer = build_trainer(output_dir, recipe, split=split, skip_corrupt=True, per_device_train_batch_size=2)
    trainer.run()
    messages = trainer.state.all_corrupt()
    refused = [message.partition(" in AVIF")[0] for message in messages]
    assert refused == [f"image{index}: cannot be read (it is not an image" for index in (2, 5)], messages
    assert len(trainer.state.corrupt) < 3


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
        per_device_train_batch_size=1,
        checkpointing_steps=2,
        freeze=frozen,
        resume_from_checkpoint=str(output_dir.parent / "sharded" / "checkpoint-2") if resume else None,
        make_accelerator=fully_sharding if sharded else Accelerator,
    )
    assert isinstance(trainer.model, FSDPModule) is sharded
    trainer.run()


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 shards models on accelerators alone")
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


def deepspeed(**options) -> Accelerator:
    """With DeepSpeed on CPUs; Accelerate offers it on accelerators only."""
    import deepspeed

    state = PartialState(cpu=True)
    deepspeed.init_distributed("gloo")
    state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state._shared_state["device"] = torch.device("cpu")
    plugin = DeepSpeedPlugin(zero_stage=2, gradient_accumulation_steps=1)
    plugin.deepspeed_config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return Accelerator(deepspeed_plugin=plugin, **options | {"cpu": False})


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["MARKER"],)


def train_with_deepspeed(rank: int, output_dir, resume, refused: str | None) -> None:
    del os.environ["ACCELERATE_USE_CPU"]
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
    trainer = build_trainer(
        output_dir,
        replace(RECIPE, batch_size=4),
        tiny_model(classifier_dropout_prob=0.0),
        per_device_train_batch_size=1,
        checkpointing_steps=2,
        resume_from_checkpoint=resume,
        make_accelerator=deepspeed,
    )
    assert trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
    with pytest.raises(InputError, match=refused) if refused else contextlib.nullcontext():
        trainer.run()


def test_deepspeed_resumes_and_runs_nothing(tmp_path, monkeypatch):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not among the package's dependencies")
    checkpoint = tmp_path / "straight" / "checkpoint-2"
    assert launch(2, train_with_deepspeed, tmp_path / "straight", None, None) == [0, 0]
    assert launch(2, train_with_deepspeed, tmp_path / "resumed", str(checkpoint), None) == [0, 0]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []

    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    state = checkpoint / "state"
    (file,) = (state / "deepspeed").glob("*model_states.pt")
    torch.save(Code(), file)
    told = rf"{file.name} is damaged"
    assert launch(2, train_with_deepspeed, tmp_path / "planted", str(checkpoint), told) == [0, 0]
    (state / "manifest.json").unlink()
    write_manifest(state)
    told = rf"{file.name} cannot be read: its pickle asks for posix\.mkdir"
    assert launch(2, train_with_deepspeed, tmp_path / "signed", str(checkpoint), told) == [0, 0]
    assert not (tmp_path / "ran").exists()
