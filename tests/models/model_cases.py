"""What every model of this package does, the way transformers' users meet it: a base class for its tests."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
import transformers
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel, Trainer, TrainingArguments

import ccnet_hf.models.layers_ccnet


LOADED_IN_A_FRESH_PROCESS = """
import json, sys
import ccnet_hf, transformers
folder, auto_class = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(folder)
model = getattr(transformers, auto_class).from_pretrained(folder)
backbone = transformers.AutoBackbone.from_config(config.backbone_config)
print(json.dumps([type(thing).__name__ for thing in (config, model, backbone)]))
"""


class ModelTests:
    """Tests of one class of models. A subclass says how a small one is built and what it is given.

    A test that takes `form` runs once for each of the model's `forms`.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    auto_class: ClassVar[type] = AutoModelForSemanticSegmentation
    forms: ClassVar[dict[str, dict]] = {"default": {}}
    """Options of `build`, by name."""

    def build(self, **options) -> PreTrainedModel:
        """A small model in eval mode whose attention does something."""
        raise NotImplementedError

    def inputs(self) -> dict:
        """Images and labels, the same in every call."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc):
        if "form" in metafunc.fixturenames:
            metafunc.parametrize("form", self.forms.values(), ids=self.forms)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
    def test_save_pretrained_round_trip_is_bit_equal(self, tmp_path, form, dtype, max_shard_size):
        model = self.build(**form).to(dtype)
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        assert len(list(tmp_path.glob("*.safetensors"))) == 1 or max_shard_size == "100KB"
        loaded, info = self.auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is self.model_class and loaded.dtype == dtype
        assert not any(info.values())
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name

    def test_auto_classes_in_a_fresh_process(self, tmp_path):
        model = self.build()
        model.save_pretrained(tmp_path)
        command = [sys.executable, "-c", LOADED_IN_A_FRESH_PROCESS, str(tmp_path), self.auto_class.__name__]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        expected = [self.model_class.config_class.__name__, self.model_class.__name__, "CCNetResNetBackbone"]
        assert json.loads(result.stdout) == expected
        noise = [line for line in result.stderr.splitlines() if "Loading weights" not in line and line.strip()]
        assert not noise, noise

    def test_a_tuple_when_asked_for(self, form):
        model, inputs = self.build(**form), self.inputs()
        del inputs["labels"]
        with torch.no_grad():
            expected, found = model(**inputs), model(**inputs, return_dict=False)
        assert isinstance(found, tuple)
        assert all(map(torch.equal, found, expected.to_tuple()))

    def test_gradient_checkpointing_gives_equal_gradients(self, form):
        plain = self.build(**form).train()
        checkpointed = copy.deepcopy(plain)
        checkpointed.gradient_checkpointing_enable()
        for model in (plain, checkpointed):
            torch.manual_seed(5)  # of dropout, and of the regions that a loss is taken at
            model(**self.inputs()).loss.backward()
        assert checkpointed.is_gradient_checkpointing
        for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad), name

    def test_modules_that_are_not_split_are_there(self, form):
        """FSDP refuses a model that lacks one."""
        model = self.build(**form)
        names = {type(module).__name__ for module in model.modules()}
        assert {"CCNetResNetBottleneck"} <= set(model._no_split_modules) <= names


class DenseModelTests(ModelTests):
    """Tests of a model that gives a class to every pixel: `logits` (N, classes, H, W) and labels of 5 classes."""

    classifiers: ClassVar[set[str]] = {"classifier"}
    """Modules whose weights depend on the number of classes."""

    def test_another_number_of_classes_needs_only_new_classifiers(self, tmp_path):
        self.build().save_pretrained(tmp_path)
        loaded, info = self.model_class.from_pretrained(
            tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
        )
        inputs = self.inputs()
        del inputs["labels"]
        assert loaded(**inputs).logits.shape[1] == 7
        assert {name.rsplit(".", 1)[0] for name, *_ in info["mismatched_keys"]} == self.classifiers

    def test_the_operator_matters(self, monkeypatch):
        """What every other test rests on: without the operator the numbers change."""
        model, inputs = self.build(), self.inputs()
        expected = model(**inputs).logits

        def without_attention(query, key, value, gamma, residual, **options):
            return gamma * value + residual

        monkeypatch.setattr(ccnet_hf.models.layers_ccnet, "criss_cross_attention_round", without_attention)
        assert (model(**inputs).logits - expected).norm() > 1e-3 * expected.norm()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_pure_half_precision(self, form, dtype):
        model, inputs = self.build(**form), self.inputs()
        expected = model(**inputs)
        half = copy.deepcopy(model).to(dtype)
        outputs = half(**{name: value.to(dtype) if name != "labels" else value for name, value in inputs.items()})
        outputs.loss.backward()
        assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
        assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)
        assert all(torch.isfinite(parameter.grad).all() for parameter in half.parameters())

    def test_autocast(self, form):
        model, inputs = self.build(**form), self.inputs()
        expected = model(**inputs).loss
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=2e-2)

    @pytest.mark.parametrize("labelled", [True, False])
    def test_every_parameter_gets_a_gradient(self, form, labelled):
        model, inputs = self.build(**form).train(), self.inputs()
        if not labelled:
            inputs["labels"] = torch.full_like(inputs["labels"], 255)
        loss = model(**inputs).loss
        loss.backward()
        assert any(bool(parameter.grad.any()) for parameter in model.parameters()) is labelled
        assert (loss.item() > 0) is labelled
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    def test_a_loss_function_of_the_users(self):
        """As in every model of transformers."""
        model, inputs = self.build(), self.inputs()
        model.loss_function = lambda logits, labels, **kwargs: logits.square().mean() + labels.sum()
        outputs = model(**inputs)
        assert outputs.loss == outputs.logits.square().mean() + inputs["labels"].sum()

    def test_channels_last_throughout(self):
        model, inputs = self.build(), self.inputs()
        layouts = {}
        for name, module in model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: layouts.update({name: output.stride(1) == 1})
                )
        model(**inputs)
        assert {name for name, innermost in layouts.items() if not innermost} == set()

    @pytest.mark.nightly
    def test_compile_without_graph_breaks(self, form):
        torch.compiler.reset()  # other tests compile the same code
        model, inputs = self.build(**form, classifier_dropout_prob=0.0), self.inputs()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected = model.train()(**inputs).loss
        outputs = compiled(**inputs)
        outputs.loss.backward()
        torch.testing.assert_close(outputs.loss, expected)
        del inputs["labels"]
        torch.testing.assert_close(compiled.eval()(**inputs).logits, model(**inputs).logits)


class Halves(torch.utils.data.Dataset):
    """Eight times one image whose left half is black and of class 0, the right one white and of class 1."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        labels = torch.zeros(32, 48, dtype=torch.long)
        labels[:, 24:] = 1
        return {"pixel_values": labels.float().expand(3, -1, -1).clone(), "labels": labels}


def losses_of_a_training(build: Callable[[], PreTrainedModel], learning_rate: float, folder: str) -> list[float]:
    """What transformers' `Trainer` logs in 30 steps on `Halves`, with two accumulation steps."""
    transformers.set_seed(0)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=30,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=learning_rate,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=build(), args=arguments, train_dataset=Halves())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
