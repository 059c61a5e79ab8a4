"""The loop: it learns, resumes bit for bit, keeps checkpoints whole, and stops when it should."""

import errno
import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from tiny_training import ScoredBy, tiny_model
from torch import nn

from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetImageProcessor
from ccnet_hf.models.loss_ccnet import LOSSES, Loss
from ccnet_hf.recipes import get_recipe
from ccnet_hf.training.distributed import synchronize_batch_norm
from ccnet_hf.training.progress import read_log


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_learns_to_tell_three_colours(make_trainer, recipe):
    losses = []
    trainer = make_trainer(recipe=replace(recipe, batch_size=4, max_train_steps=50, learning_rate=2e-2))
    trainer.accelerator.log = lambda numbers, step: losses.append(numbers["decode_loss"])
    trainer.run()
    assert len(losses) == 50
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_saves_what_auto_classes_read(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.run()
    saved = CCNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert_equal(weights(saved), weights(trainer.state.trained_model))
    assert CCNetImageProcessor.from_pretrained(tmp_path).size["longest_edge"] == 48
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_resumed_training_gives_the_same_bits(make_trainer, tmp_path, ema_decay):
    straight = make_trainer(output_dir=tmp_path / "straight", ema_decay=ema_decay)
    straight.run()
    make_trainer(output_dir=tmp_path / "broken", ema_decay=ema_decay, checkpointing_steps=3).run()
    (tmp_path / "broken" / "checkpoint-4").rename(tmp_path / "elsewhere")
    resumed = make_trainer(output_dir=tmp_path / "broken", ema_decay=ema_decay, resume_from_checkpoint="last")
    torch.manual_seed(99)
    resumed.run()
    assert resumed.state.step == 4
    assert_equal(weights(straight.state.trained_model), weights(resumed.state.trained_model))


def test_checkpoints_hold_a_loadable_model_and_the_step(make_trainer, tmp_path):
    make_trainer(checkpointing_steps=3).run()
    folders = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert folders == ["checkpoint-3", "checkpoint-4"]
    assert json.loads((tmp_path / "checkpoint-3" / "state" / "progress.json").read_text())["step"] == 3
    CCNetForSemanticSegmentation.from_pretrained(tmp_path / "checkpoint-3")


def test_resume_names_what_is_missing(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        make_trainer(resume_from_checkpoint="last").run()
    with pytest.raises(ValueError, match="is not a checkpoint"):
        make_trainer(resume_from_checkpoint=str(tmp_path)).run()


def test_an_older_training_is_not_written_over(make_trainer):
    make_trainer(checkpointing_steps=4).run()
    with pytest.raises(ValueError, match="holds checkpoint-4 of an earlier training"):
        make_trainer(checkpointing_steps=4)


def test_an_earlier_checkpoint_is_resumed_elsewhere(make_trainer, tmp_path):
    """In the same folder its own checkpoints would be older than those that are there."""
    straight = make_trainer(output_dir=tmp_path / "first", checkpointing_steps=2)
    straight.run()
    earlier = str(tmp_path / "first" / "checkpoint-2")
    with pytest.raises(ValueError, match="holds checkpoint-4 of an earlier training"):
        make_trainer(output_dir=tmp_path / "first", resume_from_checkpoint=earlier)
    make_trainer(output_dir=tmp_path / "first", resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))
    again = make_trainer(output_dir=tmp_path / "second", resume_from_checkpoint=earlier)
    again.run()
    assert_equal(weights(straight.state.trained_model), weights(again.state.trained_model))


def test_a_checkpoint_that_was_being_replaced_is_resumed(make_trainer, tmp_path):
    make_trainer(checkpointing_steps=4).run()
    (tmp_path / "checkpoint-4").rename(tmp_path / ".checkpoint-4.0123abcd.replaced")
    resumed = make_trainer(resume_from_checkpoint="last")
    resumed.run()
    assert resumed.state.step == 4 and (tmp_path / "checkpoint-4").is_dir()


def test_resuming_something_else_is_refused(make_trainer, recipe):
    make_trainer(checkpointing_steps=4).run()
    longer = replace(recipe, max_train_steps=6)
    resume = {"recipe": longer, "resume_from_checkpoint": "last"}
    with pytest.raises(ValueError, match="checkpoint-4 was trained with seed 0, this run has seed 1: resume with"):
        make_trainer(**resume, seed=1).run()
    resume["recipe"] = replace(longer, optimizer="sgd", weight_decay=0.5)
    with pytest.raises(ValueError, match=r"with optimizer adamw, weight_decay .* optimizer sgd, weight_decay 0.5"):
        make_trainer(**resume).run()
    resume["recipe"] = longer
    with pytest.raises(ValueError, match="checkpoint-4 is of another model or other settings"):
        make_trainer(**resume, model=tiny_model(recurrence=0)).run()
    with pytest.raises(ValueError, match="checkpoint-4 is of another model or other settings"):
        make_trainer(**resume, ema_decay=0.9).run()


def test_accelerates_own_compilation_is_refused(make_trainer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    with pytest.raises(ValueError, match="torch dynamo is chosen here by --compile"):
        make_trainer()


def test_a_resumed_stream_begins_where_it_stopped(make_trainer, recipe):
    recipe = replace(recipe, max_train_steps=9)
    make_trainer(recipe=replace(recipe, max_train_steps=6), streaming=True, checkpointing_steps=6).run()
    resumed = make_trainer(recipe=recipe, streaming=True, resume_from_checkpoint="last")
    resumed.run()
    resumed._resume()
    assert resumed._data_loader().batch_sampler.position == (1, 4)  # 12 of 8 examples


def test_synchronized_batch_norm_keeps_activations():
    """timm's batch norms have their activation in them."""
    pytest.importorskip("timm")
    model = get_recipe("ccnet-mobilenetv2-camvid").model
    model = CCNetForSemanticSegmentation(CCNetConfig(**model)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image).logits
        converted = synchronize_batch_norm(model)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        torch.testing.assert_close(converted(image).logits, expected)


def test_failed_save_leaves_the_older_checkpoint(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(checkpointing_steps=2)
    save = trainer.checkpoints._save_model

    def fail_later(folder, weights):
        if trainer.state.step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, weights)

    monkeypatch.setattr(trainer.checkpoints, "_save_model", fail_later)
    with pytest.raises(OSError, match="checkpoint-4 cannot be written: no space left on device"):
        trainer.run()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = make_trainer(resume_from_checkpoint="last", checkpointing_steps=2)
    resumed.run()
    assert (tmp_path / "checkpoint-4").is_dir()


def test_sigterm_saves_and_exits(make_trainer, tmp_path):
    trainer = make_trainer()

    def terminate(numbers, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.accelerator.log = terminate
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        trainer.run()
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    resumed = make_trainer(resume_from_checkpoint="last")
    resumed.run()
    straight = make_trainer(output_dir=tmp_path / "straight")
    straight.run()
    assert_equal(weights(straight.state.trained_model), weights(resumed.state.trained_model))


def test_nan_stops_with_step_and_names(make_trainer, tmp_path):
    def poison(chain):
        def transform(image, label):
            pixel_values, labels = chain(image, label)
            return torch.full_like(pixel_values, torch.nan), labels

        return transform

    with pytest.raises(ValueError, match=r"the loss is nan at step 1; its batch: image\d, image\d"):
        make_trainer(transform=poison, checkpointing_steps=1).run()
    assert list(tmp_path.iterdir()) == []


def test_accumulation_takes_the_same_examples_and_divides_the_loss(make_trainer, recipe, model):
    recipe = replace(recipe, max_train_steps=1, optimizer="sgd", max_grad_norm=0.0)
    # Batch statistics and dropout differ between parts and whole by nature; all that is left learns alike.
    frozen = ["model", "auxiliary_head.projection", "dropout", "auxiliary_head.dropout"]
    whole = make_trainer(recipe=recipe, model=model(), freeze=frozen)
    parts = make_trainer(recipe=recipe, model=model(), freeze=frozen, per_device_train_batch_size=1)
    assert parts.accumulation_steps == 2
    for trainer in (whole, parts):
        trainer.run()
    for name, tensor in whole.state.trained_model.state_dict().items():
        torch.testing.assert_close(parts.state.trained_model.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"logging_steps": 0}, "logging_steps must be at least 1, got 0"),
        ({"checkpoints_total_limit": -1}, "checkpoints_total_limit must be at least 0, got -1"),
        ({"checkpointing_steps": -1}, "checkpointing_steps must be at least 0, got -1"),
        ({"shuffle_buffer_size": 0}, "shuffle_buffer_size must be at least 1, got 0"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0, got -1"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations"),
    ],
)
def test_settings_say_what_is_allowed(make_trainer, setting, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**setting)


def test_batch_sizes_must_fit(make_trainer):
    with pytest.raises(ValueError, match="a batch of 2 does not come in passes of 3"):
        make_trainer(per_device_train_batch_size=3)


def test_frozen_modules_do_not_change(make_trainer):
    trainer = make_trainer(freeze=["model.backbone.stem", "model.head.input_projection.normalization"])
    before = weights(trainer.state.trained_model)
    trainer.run()
    after = weights(trainer.state.trained_model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert not [name for name in changed if "backbone.stem" in name or "input_projection.normalization" in name]
    assert "model.head.input_projection.convolution.weight" in changed
    assert "model.head.output_projection.normalization.running_mean" in changed


def test_evaluates_every_eval_steps_and_at_the_end(make_trainer, recipe):
    trainer = make_trainer(recipe=replace(recipe, eval_steps=3))
    seen = []

    def evaluate(model):
        assert not model.training
        seen.append(trainer.state.step)
        return {"eval_mean_iou": 0.5}

    trainer.evaluator = ScoredBy(evaluate)
    assert trainer.run() == {"eval_mean_iou": 0.5}
    assert seen == [3, 4]


def scoring(trainer, scores: dict[int, float]):
    """An evaluation that gives these mIoU by step, and the steps it was asked at."""
    asked = []

    def evaluate(model):
        asked.append(trainer.state.step)
        return {"eval_mean_iou": scores[trainer.state.step]}

    trainer.evaluator = ScoredBy(evaluate)
    return asked


def test_the_newest_checkpoints_and_the_best_model_are_kept(make_trainer, recipe, tmp_path):
    trainer = make_trainer(
        recipe=replace(recipe, max_train_steps=5, eval_steps=1), checkpointing_steps=1, checkpoints_total_limit=2
    )
    scoring(trainer, {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.4, 5: 0.2})
    trainer.run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-5",
        "checkpoint-best",
    ]
    assert json.loads((tmp_path / "checkpoint-best" / "scores.json").read_text()) == {"step": 2, "eval_mean_iou": 0.4}
    best = weights(CCNetForSemanticSegmentation.from_pretrained(tmp_path / "checkpoint-best"))
    last = weights(CCNetForSemanticSegmentation.from_pretrained(tmp_path))
    assert not torch.equal(best["classifier.weight"], last["classifier.weight"])
    assert_equal(last, weights(trainer.state.trained_model))


def test_the_best_model_can_be_the_result(make_trainer, recipe, tmp_path):
    scores = {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.1}
    trainer = make_trainer(
        recipe=replace(recipe, eval_steps=1),
        load_best_model_at_end=True,
        ema_decay=0.5,
        evaluate=lambda model: {"eval_mean_iou": scores[trainer.state.step]},
    )
    trainer.run()
    best = weights(CCNetForSemanticSegmentation.from_pretrained(tmp_path / "checkpoint-best"))
    assert_equal(best, weights(CCNetForSemanticSegmentation.from_pretrained(tmp_path)))


def test_resumed_elsewhere_the_best_model_is_the_best_from_there_on(make_trainer, recipe, tmp_path):
    recipe = replace(recipe, eval_steps=2)
    first = make_trainer(recipe=recipe, output_dir=tmp_path / "first", checkpointing_steps=3)
    scoring(first, {2: 0.9, 4: 0.8})
    first.run()
    earlier = str(tmp_path / "first" / "checkpoint-3")
    settings = {"output_dir": tmp_path / "second", "resume_from_checkpoint": earlier, "load_best_model_at_end": True}
    scores = {"eval_mean_iou": 0.3}
    assert make_trainer(recipe=recipe, evaluate=lambda model: scores, **settings).run() == scores
    assert json.loads((tmp_path / "second" / "checkpoint-best" / "scores.json").read_text())["step"] == 4


def test_a_resumed_run_evaluates_what_the_killed_one_did_not(make_trainer, recipe, tmp_path):
    recipe = replace(recipe, eval_steps=2)
    trainer = make_trainer(recipe=recipe, checkpointing_steps=2)

    def killed(model):
        raise KeyboardInterrupt

    trainer.evaluator = ScoredBy(killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = make_trainer(recipe=recipe, checkpointing_steps=2, resume_from_checkpoint="last")
    asked = scoring(resumed, {2: 0.7, 4: 0.1})
    resumed.run()
    assert asked == [2, 4]
    assert json.loads((tmp_path / "checkpoint-best" / "scores.json").read_text())["step"] == 2
    assert [(row["step"], "lr" in row) for row in read_log(tmp_path / "training_log.jsonl")] == [
        (1, True),
        (2, True),
        (2, False),
        (3, True),
        (4, True),
        (4, False),
    ]


def test_the_log_says_what_happens(make_trainer, recipe, tmp_path, capsys):
    seen = []
    trainer = make_trainer(logging_steps=2, model=tiny_model(category_consistent_loss_weight=0.5))
    trainer.accelerator.log = lambda numbers, step: seen.append({"step": step, **numbers})
    with torch.no_grad():
        trainer.state.trained_model.model.head.attention.gamma.fill_(0.7)
    losses = []
    train_step = trainer._train_step

    def remember(*arguments):
        losses.append(train_step(*arguments))
        return losses[-1]

    trainer._train_step = remember
    trainer.run()
    rows = read_log(tmp_path / "training_log.jsonl")
    assert rows == seen and [row["step"] for row in rows] == [2, 4]
    names = {"lr", "loss", "decode_loss", "auxiliary_loss", "category_loss", "gamma"}
    assert rows[0].keys() == names | {"images_per_second", "data_wait", "memory_gb", "step"}
    for name in ("loss", "decode_loss", "auxiliary_loss", "category_loss"):
        assert rows[1][name] == pytest.approx((losses[2][name] + losses[3][name]) / 2, rel=1e-5)
    parts = sum(losses[3][name] for name in losses[3] if name != "loss")
    assert losses[3]["loss"] == pytest.approx(parts, rel=1e-5)
    assert rows[1]["gamma"] == pytest.approx(trainer.state.trained_model.model.head.attention.gamma.item(), rel=1e-6)
    assert rows[1]["lr"] == pytest.approx(5e-3 * (1 / 4) ** 0.9)  # of the step it stands at
    assert 0 < rows[1]["data_wait"] < 1 and 0.05 < rows[1]["memory_gb"] < 50
    line = [part for part in re.split(r"[\r\n]", capsys.readouterr().err) if part.startswith("train: ")][-1]
    for text in ("4/4", "<00:00", "lr=", "decode=", "aux=", "category=", "gamma=", "img/s=", "wait=", "GB="):
        assert text in line


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    file = tmp_path / "training_log.jsonl"
    file.write_text('{"step": 1, "lr": 0.5}\n{"step": 2, "l')
    assert read_log(file) == [{"step": 1, "lr": 0.5}]
    assert read_log(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("per_device_train_batch_size", [2, 1])
def test_bfloat16_learns_in_float32(make_trainer, tmp_path, per_device_train_batch_size):
    trainer = make_trainer(
        mixed_precision="bf16", per_device_train_batch_size=per_device_train_batch_size, checkpointing_steps=2
    )
    dtypes = set()
    trainer.model.model.head.attention.query.register_forward_hook(lambda *hook: dtypes.add(hook[-1].dtype))
    trainer.run()
    assert dtypes == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights(trainer.state.trained_model).values()} == {torch.float32, torch.int64}
    resumed = make_trainer(
        mixed_precision="bf16",
        per_device_train_batch_size=per_device_train_batch_size,
        output_dir=tmp_path / "resumed",
        resume_from_checkpoint=str(trainer.settings.output_dir / "checkpoint-2"),
    )
    resumed.run()
    assert_equal(weights(trainer.state.trained_model), weights(resumed.state.trained_model))


def test_a_batch_without_labels_changes_nothing_but_decay(make_trainer, recipe):
    def ignore_all(chain):
        def transform(image, label):
            pixel_values, labels = chain(image, label)
            return pixel_values, torch.full_like(labels, 255)

        return transform

    recipe = replace(recipe, optimizer="sgd", weight_decay=0.0)
    trainer = make_trainer(recipe=recipe, transform=ignore_all)
    before = {name: parameter.clone() for name, parameter in trainer.state.trained_model.named_parameters()}
    trainer.run()
    assert_equal(before, dict(trainer.state.trained_model.named_parameters()))


def test_average_is_the_recurrence_of_its_definition(make_trainer):
    trainer = make_trainer(ema_decay=0.75)
    name = "classifier.weight"
    expected = None
    update = trainer.average.update_parameters

    def follow(model):
        nonlocal expected
        value = model.state_dict()[name].clone()
        expected = value if expected is None else 0.75 * expected + 0.25 * value
        update(model)

    trainer.average.update_parameters = follow
    trainer.run()
    torch.testing.assert_close(trainer.state.trained_model.state_dict()[name], expected)


def test_a_loss_of_another_row_is_learnt_and_shown(make_trainer, tmp_path, monkeypatch, capsys):
    def size(config, logits, targets):
        return logits.square().mean()

    plain = make_trainer(output_dir=tmp_path / "plain")
    plain.run()
    monkeypatch.setitem(LOSSES, "size_loss", Loss(size, of="logits"))
    trainer = make_trainer(output_dir=tmp_path / "more")
    trainer.run()
    rows = read_log(tmp_path / "more" / "training_log.jsonl")
    for row in rows:
        parts = row["decode_loss"] + row["auxiliary_loss"] + row["size_loss"]
        assert row["size_loss"] > 0 and row["loss"] == pytest.approx(parts, rel=1e-5)
    assert "size=" in capsys.readouterr().err
    weight = "classifier.weight"
    assert not torch.equal(weights(trainer.state.trained_model)[weight], weights(plain.state.trained_model)[weight])
