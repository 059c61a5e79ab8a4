"""Killed, terminated, out of disk space: what is on disk afterwards resumes to the same weights, bit for bit."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from processes import CONTEXT
from safetensors.torch import load_file
from tiny_training import RECIPE, build_trainer

from ccnet_hf.files import remove_leftovers
from ccnet_hf.training.checkpoints import find_checkpoint, list_checkpoints
from ccnet_hf.training.progress import LOG_FILE, read_log
from ccnet_hf.training.state_files import StateReader


STEPS = 16
HANGING = 600  # seconds after which a process is given up


def train(output_dir, streaming: bool, resume: bool = False) -> None:
    """The training of this file, in a process of its own."""
    torch.set_num_threads(1)
    build_trainer(
        output_dir,
        recipe=replace(RECIPE, max_train_steps=STEPS),
        streaming=streaming,
        ema_decay=0.9,
        checkpointing_steps=2,
        checkpoints_total_limit=2,
        resume_from_checkpoint="last" if resume else None,
    ).run()


def run(*arguments) -> None:
    process = CONTEXT.Process(target=train, args=arguments)
    process.start()
    process.join(HANGING)
    process.kill()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Final weights without any interruption, by whether the data is streamed."""
    results = {}
    for streaming in (False, True):
        folder = tmp_path_factory.mktemp("uninterrupted")
        run(folder, streaming)
        results[streaming] = load_file(folder / "model.safetensors")
    return results


def assert_complete(checkpoint) -> None:
    """Everything that a resumed run or a user opens is whole."""
    load_file(checkpoint / "model.safetensors")
    reader = StateReader(checkpoint / "state")
    for file in ("model.safetensors", "optimizer.safetensors"):
        reader.tensors(file)
    reader.json("random_states_0.json")
    assert f"checkpoint-{reader.json('progress.json')['step']}" == checkpoint.name
    for file in ("config.json", "preprocessor_config.json"):
        json.loads((checkpoint / file).read_text())


@pytest.mark.parametrize("streaming", [False, True], ids=["mapped", "streamed"])
@pytest.mark.parametrize("attempt", range(5))
def test_killed_training_resumes_to_the_same_bits(tmp_path, uninterrupted, streaming, attempt):
    draw = random.Random(attempt)
    process = CONTEXT.Process(target=train, args=(tmp_path, streaming))
    process.start()
    step = draw.randrange(STEPS // 2)  # the other half takes longer than any of the delays
    while len(read_log(tmp_path / LOG_FILE)) < step and process.is_alive():
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for checkpoint in list_checkpoints(tmp_path):
        assert_complete(checkpoint)

    run(tmp_path, streaming, bool(list_checkpoints(tmp_path)))
    resumed = load_file(tmp_path / "model.safetensors")
    assert resumed.keys() == uninterrupted[streaming].keys()
    assert [name for name in resumed if not torch.equal(resumed[name], uninterrupted[streaming][name])] == []
    assert [row["step"] for row in read_log(tmp_path / LOG_FILE)] == list(range(1, STEPS + 1))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-14", "checkpoint-16"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


class Killed(BaseException):
    pass


class KillBeforeFileOperation:
    """Stands for kill -9 in this process: the n-th operation on files below a folder, and all after it, do not happen.

    An audit hook cannot be taken back, so there is one for all tests, at work between `arm` and `disarm`.
    """

    EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})

    def __init__(self):
        self.folder = None
        sys.addaudithook(self)

    def arm(self, folder, number: int) -> None:
        self.folder, self.left = str(folder), number

    def disarm(self) -> None:
        self.folder = None

    def __call__(self, event, arguments) -> None:
        if self.folder is not None and event in self.EVENTS and str(arguments[0]).startswith(self.folder):
            self.left -= 1
            if self.left < 0:
                raise Killed


def test_a_kill_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint(make_trainer, tmp_path):
    start = tmp_path / "start"
    make_trainer(output_dir=start, recipe=replace(RECIPE, max_train_steps=2), checkpointing_steps=1).run()
    trainer = make_trainer(checkpoints_total_limit=1)
    trainer.state.step = 4
    killer = KillBeforeFileOperation()
    seen, number, finished = set(), 0, False
    while not finished:
        output_dir = tmp_path / f"run{number}"
        shutil.copytree(start, output_dir)
        trainer.checkpoints.output_dir = output_dir
        killer.arm(output_dir, number)
        try:
            trainer.checkpoints.save()
            finished = True
        except Killed:
            pass
        finally:
            killer.disarm()
        last = find_checkpoint(output_dir, "last")
        seen.add(last.name)
        for checkpoint in list_checkpoints(output_dir):
            assert_complete(checkpoint)
        remove_leftovers(output_dir)
        assert find_checkpoint(output_dir, "last").name == last.name
        assert not [path for path in output_dir.iterdir() if path.name.startswith(".")]
        shutil.rmtree(output_dir)
        number += 1
    assert number > 10 and seen == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["model does not fit", "optimizer does not fit"])
def test_a_full_disk_leaves_the_older_checkpoint(make_trainer, tmp_path, share):
    make_trainer(recipe=replace(RECIPE, max_train_steps=2), checkpointing_steps=2).run()
    model_bytes = (tmp_path / "model.safetensors").stat().st_size
    trainer = make_trainer(resume_from_checkpoint="last", checkpointing_steps=2)
    save = trainer.checkpoints.save

    def save_on_full_disk():
        # The largest file a process may write stands for the space that is left.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * model_bytes), hard))
        try:
            save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    trainer.checkpoints.save = save_on_full_disk
    with pytest.raises(OSError, match="checkpoint-4 cannot be written"):
        trainer.run()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert_complete(tmp_path / "checkpoint-2")
    make_trainer(resume_from_checkpoint="last", checkpointing_steps=2).run()
    assert_complete(tmp_path / "checkpoint-4")


def test_workers_outlive_a_termination_sent_to_all_processes(tmp_path):
    process = CONTEXT.Process(target=_train_in_own_group, args=(tmp_path,))
    process.start()
    # The second step's batch is the second worker's: both are ready for signals.
    while len(read_log(tmp_path / LOG_FILE)) < 2 and process.is_alive():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(HANGING)
    assert process.exitcode == 128 + signal.SIGTERM
    assert_complete(find_checkpoint(tmp_path, "last"))


def _train_in_own_group(output_dir) -> None:
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # of the workers, which belong to the group then
    torch.set_num_threads(1)
    build_trainer(output_dir, recipe=replace(RECIPE, max_train_steps=1000), dataloader_num_workers=2).run()
