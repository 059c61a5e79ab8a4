"""What a training writes: complete or not there, by one training at a time, and one line if that fails."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from test_interruptions import KillBeforeFileOperation, Killed

from ccnet_hf import CCNetForSemanticSegmentation
from ccnet_hf.errors import InputError
from ccnet_hf.training import train as train_module
from ccnet_hf.training.checkpoints import list_checkpoints
from ccnet_hf.training.progress import LOG_FILE, read_log
from ccnet_hf.training.report import CURVES_FILE, PREDICTIONS_FILE, draw_label_maps, save_report
from ccnet_hf.training.train import main as train


SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


def train_arguments(dataset: str, output_dir, *more: str) -> list[str]:
    pytest.importorskip("timm", reason="the demo's backbone comes from timm")
    return (
        f"--variant ccnet-mobilenetv2-camvid --dataset_name {dataset} --output_dir {output_dir} --batch_size 2 "
        "--max_train_steps 2 --eval_steps 0 --crop_size 64 64 --scale 96 72 --dataloader_num_workers 0 "
        "--backbone_checkpoint none --logging_steps 1 --report_to none"
    ).split() + list(more)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@contextmanager
def space_for(number: int):
    """No file gets more bytes than that, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def only_error(told: str) -> str:
    """The one line that says what is wrong, which stands on a line of its own."""
    assert "Traceback" not in told
    lines = [line for line in told.split("\n") if "error" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "\r" not in lines[0] and "[Errno" not in lines[0]
    return lines[0]


def test_a_folder_that_cannot_be_made_is_found_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").touch()
    output_dir = tmp_path / "file" / "model"
    assert train(train_arguments("no/such/dataset", output_dir)) == 1
    assert f"{output_dir} cannot be written: not a directory" in only_error(capsys.readouterr().err)


def test_a_full_disk_is_found_before_anything_is_read(tmp_path, capsys):
    with space_for(100):
        assert train(train_arguments("no/such/dataset", tmp_path / "model")) == 1
    assert f"{tmp_path / 'model'} cannot be written: " in only_error(capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_a_disk_that_fills_is_one_line_and_a_rerun_completes(coloured_folder, tmp_path, capsys):
    arguments = train_arguments(coloured_folder, tmp_path / "model", "--report_to", "tensorboard")
    with space_for(20_000):
        assert train(arguments) == 1
    assert "checkpoint-1 cannot be written: " in only_error(capsys.readouterr().err)
    left = {path.name for path in (tmp_path / "model").iterdir()}
    assert left == {".lock", "ccnet", LOG_FILE}
    assert train(arguments) == 0
    assert [path.name for path in list_checkpoints(tmp_path / "model")] == ["checkpoint-1", "checkpoint-2"]


def test_a_tracker_does_not_hide_what_ended_the_training(coloured_folder, tmp_path, capsys, monkeypatch):
    def fail(accelerator):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "end_training", fail)
    arguments = train_arguments(coloured_folder, tmp_path / "model")
    assert train([*arguments, "--freeze", "nothing"]) == 1
    assert "no module 'nothing' to freeze" in only_error(capsys.readouterr().err)
    assert train([*arguments, "--checkpointing_steps", "0"]) == 1
    assert f"{tmp_path / 'model'} cannot be written: no space left" in only_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(errno.ENOSPC, "No space left on device"), []), (KeyError("bug"), ["bug"])]
)
def test_what_a_trackers_thread_meets_on_a_full_disk_is_told_once(
    coloured_folder, tmp_path, capsys, monkeypatch, error, told
):
    def log(accelerator, numbers, step):
        def write():
            raise error

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        raise OSError(errno.ENOSPC, "No space left on device")

    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda thread: seen.append(*thread.exc_value.args))
    monkeypatch.setattr(Accelerator, "log", log)
    assert train(train_arguments(coloured_folder, tmp_path / "model")) == 1
    assert f"{tmp_path / 'model'} cannot be written: no space left" in only_error(capsys.readouterr().err)
    assert seen == told


def test_an_error_in_a_step_stands_on_a_line_of_its_own(coloured_folder, tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise InputError("the loss is nan")

    monkeypatch.setattr(train_module.TrainingLoop, "_train_step", fail)
    assert train(train_arguments(coloured_folder, tmp_path / "model")) == 1
    told = capsys.readouterr().err
    assert "train:   0%" in told and only_error(told) == "error: the loss is nan"


def test_one_training_at_a_time_writes_in_a_folder(coloured_folder, tmp_path, capsys):
    output_dir = tmp_path / "model"
    more = ["--max_train_steps", "100000", "--checkpointing_steps", "1", "--dataloader_num_workers", "1"]
    command = [sys.executable, SCRIPT, *train_arguments(coloured_folder, output_dir, *more)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as first:
        try:
            while not list_checkpoints(output_dir) and first.poll() is None:
                time.sleep(0.1)
            for resume in ([], ["--resume_from_checkpoint", "last"]):
                assert train(train_arguments(coloured_folder, output_dir, *resume)) == 1
                assert f"another process is writing {output_dir}" in only_error(capsys.readouterr().err)
        finally:
            first.send_signal(signal.SIGKILL)
    steps = int(list_checkpoints(output_dir)[-1].name.partition("-")[2])
    more = ["--max_train_steps", str(steps + 1), "--resume_from_checkpoint", "last"]
    deadline = time.monotonic() + 60
    while train(train_arguments(coloured_folder, output_dir, *more)):
        # The first one's worker lives on for some seconds, and may hold the lock as long.
        assert "another process" in only_error(capsys.readouterr().err) and time.monotonic() < deadline
        time.sleep(0.5)
    assert [row["step"] for row in read_log(output_dir / LOG_FILE)] == list(range(1, steps + 2))


def test_a_model_is_there_with_its_configuration_or_not_at_all(make_trainer, tmp_path):
    trainer = make_trainer()
    killer, number, seen, finished = KillBeforeFileOperation(), 0, set(), False
    while not finished:
        output_dir = tmp_path / f"run{number}"
        trainer.checkpoints.output_dir = output_dir
        killer.arm(output_dir, number)
        try:
            trainer.checkpoints.save_trained(best=False)
            finished = True
        except Killed:
            pass
        finally:
            killer.disarm()
        seen.add((output_dir / "config.json").exists())
        if (output_dir / "config.json").exists():
            CCNetForSemanticSegmentation.from_pretrained(output_dir)
            assert (output_dir / "preprocessor_config.json").is_file()
        trainer.checkpoints.save_trained(best=False)
        CCNetForSemanticSegmentation.from_pretrained(output_dir)
        number += 1
    assert number > 5 and seen == {False, True}


@pytest.mark.parametrize("name", [CURVES_FILE, PREDICTIONS_FILE])
def test_a_report_is_not_left_half_written(make_trainer, tmp_path, monkeypatch, name):
    trainer = make_trainer()
    trainer.run()
    model, image_processor = trainer.state.trained_model.eval(), trainer.checkpoints.processor
    save, before = Image.Image.save, set(tmp_path.iterdir())

    def fill_disk(image, file, *options, **more):
        if Path(file).name.startswith(f".{name}"):
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, file, *options, **more)

    monkeypatch.setattr(Image.Image, "save", fill_disk)
    with pytest.raises(OSError, match=f"{name} cannot be written: no space left on device"):
        save_report(tmp_path, partial(draw_label_maps, model, image_processor, trainer.dataset))
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {CURVES_FILE} - {name}


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        '{"step": 0}',
        '{"step": "1"}',
        '{"step": 1, "loss": "low"}',
        '{"step": true}',
        "[" * 100_000,
        "\udc80",
    ],
)
def test_a_bad_line_in_the_log_is_named(make_trainer, recipe, tmp_path, line):
    make_trainer(checkpointing_steps=4).run()
    file = tmp_path / LOG_FILE
    lines = file.read_text().splitlines()
    lines[1] = line
    file.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    with pytest.raises(InputError) as caught:
        make_trainer(resume_from_checkpoint="last").run()
    assert str(file) in str(caught.value) and (line == "\udc80" or "line 2" in str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_new_training_begins_a_new_log(make_trainer, tmp_path):
    (tmp_path / LOG_FILE).write_text("of another program\n")
    make_trainer().run()
    assert [json.loads(line)["step"] for line in (tmp_path / LOG_FILE).read_text().splitlines()] == [1, 2, 3, 4]
