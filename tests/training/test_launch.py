"""The command as it is typed, with two processes; and compiled steps."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


@pytest.mark.slow
def test_two_processes_from_the_command_line(coloured_folder, tmp_path):
    # torchrun, because `accelerate launch --cpu` starts one process whatever --num_processes says.
    pytest.importorskip("timm", reason="the demo's backbone comes from timm")
    train = (
        f"--variant ccnet-mobilenetv2-camvid --dataset_name {coloured_folder} --output_dir {tmp_path / 'model'} "
        "--batch_size 4 --per_device_train_batch_size 1 --max_train_steps 2 --eval_steps 2 --crop_size 64 64 "
        "--scale 96 72 --checkpointing_steps 1 --checkpoints_total_limit 1 --logging_steps 1 --report_to none "
        "--dataloader_num_workers 1"
    )
    done = subprocess.run(
        [*f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2 {SCRIPT} {train}".split()],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 2: eval_mean_iou") == 1
    rows = [json.loads(line) for line in (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert [path.name for path in (tmp_path / "model").glob("checkpoint-[0-9]*")] == ["checkpoint-2"]
    state = tmp_path / "model" / "checkpoint-2" / "state"
    assert {path.name for path in state.glob("random_states_*")} == {"random_states_0.json", "random_states_1.json"}
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model" / "model.safetensors").values())


def test_compiled_steps_learn_the_same(make_trainer, recipe, tmp_path, monkeypatch):
    torch.compiler.reset()  # other tests compile the same code
    # Everything but the code generation, which takes minutes; as one graph, and with the dropout of the plain steps.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    recipe = replace(recipe, optimizer="sgd", max_train_steps=2)
    results = []
    for flag in (False, True):
        trainer = make_trainer(recipe=recipe, output_dir=tmp_path / str(flag), compile=flag)
        assert (trainer._forward is trainer.model) is not flag
        trainer.run()
        results.append(load_file(trainer.settings.output_dir / "model.safetensors"))
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-3, atol=1e-4)
