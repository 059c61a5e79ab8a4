"""Training states: nothing in them is run, nothing damaged is gone on from, and each refusal names the file."""

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from tiny_training import RECIPE, build_trainer, tiny_model
from torch.optim.swa_utils import AveragedModel

from ccnet_hf.errors import InputError
from ccnet_hf.training.checkpoints import read_scores
from ccnet_hf.training.checks import check_settings
from ccnet_hf.training.optimization import build_optimizer, build_scheduler
from ccnet_hf.training.settings import TrainingSettings
from ccnet_hf.training.state_files import MANIFEST_FILE, write_manifest


AVERAGE = {"ema_decay": 0.5}
FILES = (
    "average.safetensors",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "random_states_0.json",
)
MARKER = "ran.txt"  # what the code in a planted pickle makes in the current folder


class Code:
    """A pickle of it makes the file `MARKER` when it is opened."""

    def __reduce__(self):
        return open, (MARKER, "w")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint after two steps of four."""
    folder = tmp_path_factory.mktemp("saved")
    recipe = replace(RECIPE, max_train_steps=2)
    build_trainer(folder, recipe, streaming=True, checkpointing_steps=2, **AVERAGE).run()
    return folder / "checkpoint-2"


@pytest.fixture
def checkpoint(saved, tmp_path, monkeypatch):
    """A copy of it, to be changed, in a current folder of its own."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(saved, tmp_path / "foreign" / "checkpoint-2")


def resume(checkpoint, recipe=RECIPE, **settings) -> None:
    output_dir = checkpoint.parents[1] / "resumed"
    settings = {"streaming": True, **AVERAGE} | settings
    build_trainer(output_dir, recipe, resume_from_checkpoint=str(checkpoint), **settings).run()


def refusal(checkpoint, **settings) -> str:
    """What resuming is refused with: one line, before the first step."""
    with pytest.raises(InputError) as caught:
        resume(checkpoint, **settings)
    assert not list((checkpoint.parents[1] / "resumed").glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sign(state) -> None:
    """Make the list of the files fit what somebody has changed."""
    (state / MANIFEST_FILE).unlink()
    write_manifest(state)


def test_a_state_is_these_files_and_resumes(checkpoint):
    assert sorted(path.name for path in (checkpoint / "state").iterdir()) == list(FILES)
    resume(checkpoint)


@pytest.mark.parametrize("signed", [False, True], ids=["", "signed"])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_state_is_unpickled(checkpoint, name, dump, signed):
    file = checkpoint / "state" / name
    with file.open("wb") as opened:
        dump(Code(), opened)
    if signed and name != MANIFEST_FILE:
        sign(file.parent)
    assert str(file) in refusal(checkpoint)
    assert not (checkpoint.parents[1] / MARKER).exists()


def test_the_planted_code_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Code())).close()
    assert (tmp_path / MARKER).exists()


def save_as_before(state) -> None:
    """A state as ccnet_hf 0.1 wrote it, by accelerate."""
    accelerator, model = Accelerator(cpu=True), tiny_model()
    average, optimizer = AveragedModel(model), build_optimizer(model, RECIPE)
    scheduler = build_scheduler(optimizer, RECIPE)
    for part in (scheduler, average):
        accelerator.register_for_checkpointing(part)
    accelerator.prepare(model, optimizer)
    accelerator.save_state(str(state))
    (state / "progress.json").write_text(json.dumps({"step": 2, "best_mean_iou": None, "corrupt": [], "kept": {}}))


@pytest.mark.parametrize(
    "planted", [None, "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "optimizer.bin", "random_states_0.pkl"]
)
def test_a_state_of_0_1_is_refused_with_what_to_do(tmp_path, monkeypatch, planted):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "old" / "checkpoint-2"
    save_as_before(checkpoint / "state")
    if planted:
        assert (checkpoint / "state" / planted).is_file()
        with (checkpoint / "state" / planted).open("wb") as file:
            torch.save(Code(), file)
    told = refusal(checkpoint)
    assert str(checkpoint) in told and "saved by ccnet_hf 0.1" in told and "--model_name_or_path" in told
    assert not (tmp_path / MARKER).exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = 2 * len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "cut": cut,
    "flipped bit": flip,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"hello",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(checkpoint, name, damage):
    file = checkpoint / "state" / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    told = refusal(checkpoint)
    # A list with other digits in it is another list: the file that it then does not fit is named with it.
    assert str(file) in told or (name == MANIFEST_FILE and damage == "flipped bit" and str(file.parent) in told)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoint, name):
    (checkpoint / "state" / name).unlink()
    assert str(checkpoint / "state" / name) in refusal(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_named(checkpoint, name):
    (checkpoint / "state" / name).unlink()
    (checkpoint / "state" / name).mkdir()
    assert str(checkpoint / "state" / name) in refusal(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "null",
        "3",
        '"text"',
        "[" * 100_000,
        "{",
        '{"a": 1}',
        '{"format": 2, "files": [1]}',
        '{"format": 4, "files": {}}',
    ],
    ids=lambda content: content[:20],
)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_other_json_is_refused(checkpoint, name, content):
    file = checkpoint / "state" / name
    file.write_text(content)
    if name != MANIFEST_FILE:
        sign(file.parent)
    assert str(file) in refusal(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", 1.5),
        ("step", "2"),
        ("step", True),
        ("step", None),
        ("best_score", float("nan")),
        ("best_score", "high"),
        ("corrupt", "image0"),
        ("corrupt", [1]),
        ("fixed", []),
        ("num_processes", 0),
        ("num_processes", 1.0),
        ("scaler", [1]),
        ("scaler", {"scale": float("inf")}),
        ("stream_positions", 7),
        ("stream_positions", [[1]]),
        ("stream_positions", [[0, -1]]),
        ("stream_positions", [[0, 1], [0, 1]]),
        ("something", 1),
    ],
)
def test_odd_progress_is_refused(checkpoint, key, value):
    file = checkpoint / "state" / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    sign(file.parent)
    told = refusal(checkpoint)
    assert str(file) in told and key in told


@pytest.mark.parametrize("key", ["step", "best_score", "corrupt", "fixed", "num_processes", "scaler"])
def test_missing_progress_is_refused(checkpoint, key):
    file = checkpoint / "state" / "progress.json"
    progress = json.loads(file.read_text())
    del progress[key]
    file.write_text(json.dumps(progress))
    sign(file.parent)
    told = refusal(checkpoint)
    assert str(file) in told and key in told


def test_a_state_with_the_names_of_before_resumes(tmp_path):
    """`best_score` and `fixed` had other names, and some of a stream's positions could be unknown."""
    for name in ("now", "before"):
        build_trainer(tmp_path / name, replace(RECIPE, max_train_steps=2), checkpointing_steps=2).run()
        file = tmp_path / name / "checkpoint-2" / "state" / "progress.json"
        progress = json.loads(file.read_text()) | {"best_score": 0.25}
        if name == "before":
            progress |= {"best_mean_iou": progress.pop("best_score"), "kept": progress.pop("fixed")}
            progress["stream_positions"] = [None]
        file.write_text(json.dumps(progress))
        sign(file.parent)
        if name == "before":
            manifest = file.parent / MANIFEST_FILE
            manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
        resumed = build_trainer(tmp_path / name, resume_from_checkpoint="last")
        resumed.state.resume(tmp_path / name / "checkpoint-2")
        assert (resumed.state.step, resumed.state.best_score, resumed.state.stream_position) == (2, 0.25, None)
        resumed.run()
    now, before = (load_file(tmp_path / name / "model.safetensors") for name in ("now", "before"))
    assert [name for name in now if not torch.equal(now[name], before[name])] == []


def test_a_state_beyond_the_end_is_refused(checkpoint):
    told = refusal(checkpoint, recipe=replace(RECIPE, max_train_steps=1))
    assert "checkpoint-2 is after 2 steps, and this run ends after 1 (--max_train_steps)" in told


@pytest.mark.parametrize(
    "odd",
    [
        lambda states: {name: state for name, state in states.items() if name != "torch"},
        lambda states: states | {"torch": states["torch"][:-2]},
        lambda states: states | {"torch": "no hex"},
        lambda states: states | {"torch": 3},
        lambda states: states | {"torch": "00" * (len(states["torch"]) // 2)},
        lambda states: states | {"python": [3, [1, 2], None]},
        lambda states: states | {"python": [3, [2**40] * 625, None]},
        lambda states: states | {"python": "state"},
        lambda states: states | {"numpy": ["MT19937", states["numpy"][1][:-1], *states["numpy"][2:]]},
        lambda states: states | {"numpy": ["PCG64", *states["numpy"][1:]]},
        lambda states: states | {"numpy": [*states["numpy"][:2], 10**6, 0, 0.0]},
        lambda states: states | {"numpy": [*states["numpy"][:2], -1, 0, 0.0]},
        lambda states: states | {"numpy": ["MT19937", [-1] * 624, *states["numpy"][2:]]},
        lambda states: [states],
    ],
)
def test_odd_random_states_are_refused(checkpoint, odd):
    file = checkpoint / "state" / "random_states_0.json"
    file.write_text(json.dumps(odd(json.loads(file.read_text()))))
    sign(file.parent)
    assert str(file) in refusal(checkpoint)


def with_first(tensors: dict, function) -> dict:
    """Tensors of which the first with two axes or more is another one."""
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    return tensors | {name: function(tensors[name])}


ODD_TENSORS = {
    "none": lambda tensors: {},
    "one is missing": lambda tensors: dict(list(tensors.items())[1:]),
    "one too many": lambda tensors: tensors | {"other.weight": torch.zeros(1)},
    "transposed": lambda tensors: with_first(tensors, lambda tensor: tensor.transpose(0, 1).contiguous()),
    "scalar": lambda tensors: with_first(tensors, lambda tensor: torch.zeros(())),
    "NaN": lambda tensors: with_first(tensors, lambda tensor: torch.full_like(tensor, torch.nan)),
    "inf": lambda tensors: with_first(tensors, lambda tensor: torch.full_like(tensor, torch.inf)),
    "integers": lambda tensors: with_first(tensors, torch.Tensor.long),
    "complex": lambda tensors: with_first(tensors, lambda tensor: tensor.to(torch.complex64)),
    "bool": lambda tensors: with_first(tensors, torch.Tensor.bool),
    "other names": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("odd", ODD_TENSORS)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
def test_odd_tensors_are_refused(checkpoint, name, odd):
    file = checkpoint / "state" / name
    tensors = load_file(file)
    assert tensors
    save_file(ODD_TENSORS[odd](tensors), file)
    sign(file.parent)
    assert str(file) in refusal(checkpoint)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("step", -5.0, "is -5, not one of the 2 steps"),
        ("step", 0.0, "is 0, not one of the 2 steps"),
        ("step", 1.5, "is 1.5, not one of the 2 steps"),
        ("step", 1e9, r"is 1e\+09, not one of the 2 steps"),
        ("exp_avg_sq", -1.0, "has negative values, and is a mean of squares"),
    ],
)
def test_impossible_values_of_the_optimizer_are_refused(checkpoint, key, value, message):
    file = checkpoint / "state" / "optimizer.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(f".{key}"))
    save_file(tensors | {name: torch.full_like(tensors[name], value)}, file)
    sign(file.parent)
    assert re.search(rf"{re.escape(str(file))}, {re.escape(name)} {message}", refusal(checkpoint))


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_the_place_of_a_file_is_named(checkpoint, name):
    (checkpoint / "state" / name).unlink()
    os.mkfifo(checkpoint / "state" / name)
    assert f"{checkpoint / 'state' / name} cannot be read: it is no regular file" in refusal(checkpoint)


def test_another_model_or_other_settings_are_refused(checkpoint):
    told = refusal(checkpoint, model=tiny_model(recurrence=0))
    assert "checkpoint-2 is of another model or other settings: in " in told and "model.safetensors" in told
    assert "average.safetensors" in refusal(checkpoint, ema_decay=0.0)
    sgd = replace(RECIPE, optimizer="sgd")
    assert "optimizer adamw, this run has optimizer sgd" in refusal(checkpoint, recipe=sgd)
    layers = replace(RECIPE, layer_decay=0.9)
    assert "layer_decay 1.0, this run has layer_decay 0.9" in refusal(checkpoint, recipe=layers)


def test_nothing_is_taken_over_from_a_state_that_is_refused(checkpoint):
    (checkpoint / "state" / "random_states_0.json").unlink()
    trainer = build_trainer(
        checkpoint.parents[1] / "resumed", streaming=True, resume_from_checkpoint=str(checkpoint), **AVERAGE
    )
    before = {name: tensor.clone() for name, tensor in trainer.state.trained_model.state_dict().items()}
    with pytest.raises(InputError, match="random_states_0"):
        trainer.run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state.trained_model.state_dict().items())
    assert not trainer.state.optimizer.state and trainer.state.step == 0


@pytest.mark.parametrize("change", [{"momentum": 0.0}, {"momentum": 0.9}, {"optimizer": "adamw"}], ids=str)
def test_every_optimizer_resumes_to_the_same_bits(tmp_path, change):
    recipe = replace(RECIPE, optimizer="sgd", learning_rate=0.05)
    recipe = replace(recipe, **change)
    for name, resumed in {"straight": None, "resumed": str(tmp_path / "straight" / "checkpoint-2")}.items():
        build_trainer(tmp_path / name, recipe, checkpointing_steps=2, resume_from_checkpoint=resumed).run()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert bool(load_file(tmp_path / "straight" / "checkpoint-2" / "state" / "optimizer.safetensors")) is (
        change.get("momentum") != 0.0
    )


def test_a_training_that_was_stopped_before_its_first_step_resumes(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=tmp_path / "stopped")
    trainer._request_stop()
    with pytest.raises(SystemExit):
        trainer.run()
    make_trainer(output_dir=tmp_path / "stopped", resume_from_checkpoint="last").run()
    make_trainer(output_dir=tmp_path / "straight").run()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_the_schedule_goes_on_where_it_stopped(recipe):
    optimizer = build_optimizer(tiny_model(), recipe)
    schedule = build_scheduler(optimizer, recipe)
    rates = []
    for _ in range(recipe.max_train_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    for step, expected in enumerate(rates):
        optimizer = build_optimizer(tiny_model(), recipe)
        build_scheduler(optimizer, recipe)
        build_scheduler(optimizer, recipe, step)
        assert [group["lr"] for group in optimizer.param_groups] == expected


def test_the_first_version_of_fsdp_is_refused(tmp_path):
    accelerator = SimpleNamespace(
        num_processes=1,
        distributed_type=DistributedType.FSDP,
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1)),
    )
    settings = TrainingSettings(output_dir=tmp_path, per_device_train_batch_size=2)
    with pytest.raises(InputError, match="FSDP is supported in its version 2"):
        check_settings(accelerator, RECIPE, settings, evaluates=False)


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"step": "2"}', '{"step": 2, "eval_mean_iou": "high"}', "\udc80"]
)
def test_damaged_scores_of_the_best_model_are_found_before_the_first_step(make_trainer, recipe, tmp_path, content):
    recipe = replace(recipe, eval_steps=2)
    scores = {"eval_mean_iou": 0.5}
    make_trainer(recipe=recipe, evaluate=lambda model: scores, checkpointing_steps=2).run()
    file = tmp_path / "checkpoint-best" / "scores.json"
    assert read_scores(file.parent) == (2, scores)
    file.unlink()
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"scores\.json cannot be read"):
        make_trainer(recipe=recipe, evaluate=lambda model: scores, resume_from_checkpoint="last").run()


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (None, "holds no model.safetensors"),
        (ODD_TENSORS["one is missing"], "1 weights are missing"),
        (ODD_TENSORS["NaN"], "has values that are not finite"),
        (ODD_TENSORS["bool"], "is of dtype BOOL, not F16"),
        (ODD_TENSORS["transposed"], "has shape"),
        ("cut", "cannot be read: "),
        ("config.json", "holds no config.json"),
    ],
)
def test_damaged_weights_of_the_best_model_are_found_before_the_first_step(
    make_trainer, recipe, tmp_path, odd, message
):
    recipe = replace(recipe, eval_steps=2)
    settings = {"evaluate": lambda model: {"eval_mean_iou": 0.5}, "load_best_model_at_end": True}
    make_trainer(recipe=recipe, checkpointing_steps=2, **settings).run()
    file = tmp_path / "checkpoint-best" / "model.safetensors"
    if callable(odd):
        save_file(odd(load_file(file)), file, metadata={"format": "pt"})
    elif odd == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        (file.parent / (odd or file.name)).unlink()
    trainer = make_trainer(recipe=recipe, resume_from_checkpoint="last", **settings)
    with pytest.raises(InputError, match=message) as refused:
        trainer.run()
    assert "checkpoint-best" in str(refused.value) and trainer.state.step == 0
