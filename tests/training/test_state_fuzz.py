"""Odd and damaged training states, drawn by seed: gone on from rightly, or refused by one clear sentence."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from hostile import Case, check, hostile_bytes, hostile_tree
from tiny_training import RECIPE, build_trainer

from ccnet_hf.training import state_files


def resume(checkpoint: Path, output_dir: Path) -> None:
    """Go on from a state to the end of the training."""
    trainer = build_trainer(output_dir, resume_from_checkpoint=str(checkpoint), ema_decay=0.5)
    trainer.run()
    assert trainer.state.step == RECIPE.max_train_steps
    shutil.rmtree(output_dir)


def training_states(saved: Path, folder: Path) -> Iterator[Case]:
    """A state with one file changed, and in every second case listed again, as somebody would who means it."""
    names = sorted(path.name for path in (saved / "state").iterdir())
    for seed in range(40):
        checkpoint = folder / str(seed) / saved.name
        shutil.copytree(saved, checkpoint)
        state = checkpoint / "state"
        file = state / random.Random(seed).choice(names)
        if file.suffix == ".json" and seed % 4 < 2:
            done, tree = hostile_tree(json.loads(file.read_text()), seed, ("step", "format", "files"))
            file.write_text(json.dumps(tree))
        else:
            done, content = hostile_bytes(file.read_bytes(), seed, other=b"\x80\x04cos\nabort\n)R.")
            file.write_bytes(content)
        listed = seed % 2 and file.name != state_files.MANIFEST_FILE
        if listed:
            (state / state_files.MANIFEST_FILE).unlink()
            state_files.write_manifest(state)
        yield f"{file.name} {seed}{' listed' * listed}: {done}", partial(resume, checkpoint, folder / "resumed")


def test_training_states(tmp_path):
    recipe = replace(RECIPE, max_train_steps=2)
    build_trainer(tmp_path / "saved", recipe, checkpointing_steps=2, ema_decay=0.5).run()
    check(training_states(tmp_path / "saved" / "checkpoint-2", tmp_path))
