"""Trainings of instances in processes of their own: the gradient of two is that of one, and kill -9 costs nothing."""

import signal
import time
from dataclasses import replace

import pytest
import torch
from processes import CONTEXT, launch
from safetensors.torch import load_file
from tiny_training import RECIPE, build_instance_trainer
from torch import nn

from ccnet_hf.experiments.shapes_dataset import write_shapes
from ccnet_hf.training.checkpoints import list_checkpoints
from ccnet_hf.training.progress import LOG_FILE, read_log


STEPS = 8
LOSSES = {"objectness_loss", "rpn_box_reg_loss", "classifier_loss", "box_reg_loss", "mask_loss"}
HEADS = ("rpn.head", "roi_heads.box_head", "roi_heads.mask_head", "backbone.stages.2.attention.query")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=6, validation=1)
    return folder


class FirstOnes:
    """In the place of torchvision's sampler, which draws from the random numbers of its process."""

    def __init__(self, sampler):
        self.num_positive = int(sampler.batch_size_per_image * sampler.positive_fraction)
        self.num = sampler.batch_size_per_image

    def __call__(self, matched_indices):
        masks = ([], [])
        for indices in matched_indices:
            positive, negative = ((indices >= 1).nonzero()[:, 0], (indices == 0).nonzero()[:, 0])
            positive = positive[: self.num_positive]
            for chosen, drawn in zip(masks, (positive, negative[: self.num - len(positive)]), strict=True):
                chosen.append(torch.zeros_like(indices, dtype=torch.uint8))
                chosen[-1][drawn] = 1
        return masks


def write_gradients(rank: int, file, folder, per_device_train_batch_size: int) -> None:
    def prepare(model):
        model.double()
        for head in (model.rpn, model.roi_heads):
            head.fg_bg_sampler = FirstOnes(head.fg_bg_sampler)

    # One positive proposal of every picture: as many masks in every pass.
    fields = {"rpn_batch_size_per_image": 16, "box_batch_size_per_image": 8, "box_positive_fraction": 1 / 8}
    trainer = build_instance_trainer(
        file.parent,
        folder,
        replace(RECIPE, batch_size=4, max_train_steps=1, optimizer="sgd", max_grad_norm=0.0),
        change_model=prepare,
        instance_fields=fields,
        per_device_train_batch_size=per_device_train_batch_size,
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


def test_gradients_are_those_of_the_joined_batch(tmp_path, shapes):
    gradients = {}
    for name, (number, per_device_train_batch_size) in {"joined": (1, 4), "two, accumulated": (2, 1)}.items():
        file = tmp_path / name / "gradients.pt"
        file.parent.mkdir()
        assert launch(number, write_gradients, file, shapes, per_device_train_batch_size) == [0] * number
        gradients[name] = torch.load(file)
        log = read_log(file.parent / LOG_FILE)
        assert all(log[0][loss] > 0 for loss in LOSSES), log
    joined, others = gradients.values()
    scale = max(float(gradient.abs().max()) for gradient in joined.values())
    for part in HEADS:
        assert max(joined[name].abs().max() for name in joined if name.startswith(part)) > 1e-6 * scale, part
    for parameter, gradient in joined.items():
        difference = (others[parameter] - gradient).norm() / (gradient.norm() + 1e-9 * scale)
        assert difference < 1e-5, parameter


def train(output_dir, folder, resume: bool) -> None:
    """In bfloat16 by autocast, with activations computed again in the backward pass."""
    torch.set_num_threads(1)
    build_instance_trainer(
        output_dir,
        folder,
        replace(RECIPE, max_train_steps=STEPS, ema_decay=0.9),
        mixed_precision="bf16",
        change_model=lambda model: model.gradient_checkpointing_enable(),
        checkpointing_steps=2,
        checkpoints_total_limit=2,
        resume_from_checkpoint="last" if resume else None,
    ).run()


def run(*arguments) -> None:
    process = CONTEXT.Process(target=train, args=arguments)
    process.start()
    process.join(600)
    process.kill()
    assert process.exitcode == 0


def test_killed_training_resumes_to_the_same_bits(tmp_path, shapes):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run(uninterrupted, shapes, False)
    process = CONTEXT.Process(target=train, args=(killed, shapes, False))
    process.start()
    while len(read_log(killed / LOG_FILE)) < STEPS // 2 and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list_checkpoints(killed)
    run(killed, shapes, True)
    expected, found = (load_file(folder / "model.safetensors") for folder in (uninterrupted, killed))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    logs = [read_log(folder / LOG_FILE) for folder in (uninterrupted, killed)]
    expected, found = ([(row["step"], row["loss"]) for row in log] for log in logs)
    assert found == expected and [step for step, _ in found] == list(range(1, STEPS + 1))
