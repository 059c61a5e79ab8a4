"""transformers' own shared tests of models, configurations and image processors, from its source distribution.

`make build/transformers` puts them where they are looked for; where they are not, this file is skipped.
"""

import importlib
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config

from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetImageProcessor, CCNetModel
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil


SOURCE = Path(__file__).parents[2] / "build" / "transformers"

if not (SOURCE / "tests" / "__init__.py").is_file():
    pytest.skip("needs transformers' own tests: `make build/transformers`", allow_module_level=True)
pytest.importorskip("parameterized")


def shared(module: str):
    """A file of transformers' tests. The distribution holds only some of them; what they import of the others belongs
    to generated text, exporters and the Hub, and stands empty here."""
    package = types.ModuleType("tests")
    package.__path__ = [str(SOURCE / "tests")]
    absent = {
        "tests": package,
        "tests.exporters": types.ModuleType("tests.exporters"),
        "tests.exporters.test_export": types.SimpleNamespace(ExportTesterMixin=type("ExportTesterMixin", (), {})),
        "tests.generation": types.ModuleType("tests.generation"),
        "tests.generation.test_utils": types.SimpleNamespace(
            GenerationTesterMixin=type("GenerationTesterMixin", (), {})
        ),
        "tests.utils": types.ModuleType("tests.utils"),
        "tests.utils.test_configuration_utils": types.SimpleNamespace(config_common_kwargs={}),
        "fetch_hub_objects_for_ci": types.SimpleNamespace(url_to_local_path=lambda address: address),
    }
    for name, content in absent.items():
        sys.modules.setdefault(name, content)
    return importlib.import_module(f"tests.{module}")


configurations = shared("test_configuration_common")
models = shared("test_modeling_common")
image_processors = shared("test_image_processing_common")


class CCNetModelTester:
    """What the shared tests ask for: a small configuration, and inputs."""

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.is_training = True
        self.batch_size, self.image_size, self.num_labels = 2, 32, 3

    def get_config(self) -> CCNetConfig:
        return tiny_config(num_labels=self.num_labels)

    def prepare_config_and_inputs_for_common(self) -> tuple[CCNetConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, 3, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": models.floats_tensor(shape)}


class CCNetModelTest(models.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CCNetModel, CCNetForSemanticSegmentation)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = CCNetModelTester(self)
        self.config_tester = configurations.ConfigTester(self, config_class=CCNetConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images come without a table of embeddings")
    def test_model_get_set_embeddings(self):
        pass

    def test_attention_outputs(self):
        """One tensor a round, where the shared test counts the layers of a transformer."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for by_config in (False, True):
                config.output_attentions = by_config
                model = model_class(config).eval()
                attentions = model(**inputs, **({} if by_config else {"output_attentions": True})).attentions
                self.assertEqual([weights.shape for weights in attentions], [(2, 4, 4, 8)] * config.recurrence)

    def test_hidden_states_output(self):
        """The stem, then every stage of the backbone."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for by_config in (False, True):
                config.output_hidden_states = by_config
                model = model_class(config).eval()
                states = model(**inputs, **({} if by_config else {"output_hidden_states": True})).hidden_states
                sizes = [config.backbone_config.stem_size, *config.backbone_config.hidden_sizes]
                self.assertEqual([state.shape[1] for state in states], sizes)


class CCNetImageProcessingTester(image_processors.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase):
        super().__init__(parent, batch_size=3, max_resolution=60, size={"height": 40, "width": 44}, num_labels=5)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": CCNetImageProcessor, "pil": CCNetImageProcessorPil}

    def expected_output_image_shape(self, images) -> tuple[int, int, int]:
        return 3, self.size["height"], self.size["width"]


class CCNetImageProcessingTest(
    image_processors.PostProcessSemanticSegmentationTestMixin,
    image_processors.ImageProcessingTestMixin,
    unittest.TestCase,
):
    image_processor_tester_class = CCNetImageProcessingTester

    @unittest.skip("downloads a picture; test_image_processing_ccnet.py compares the backends")
    def test_backends_equivalence(self):
        pass

    @unittest.skip("images of four channels become RGB")
    def test_call_numpy_4_channels(self):
        pass
