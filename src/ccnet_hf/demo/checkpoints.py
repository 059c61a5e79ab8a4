"""The checkpoints that the page offers, loaded when they are first asked for."""

import dataclasses
import reprlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from ccnet_hf.demo.demo_arguments import DemoArguments
from ccnet_hf.errors import InputError
from ccnet_hf.inference.loading import load_config
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.inference.predictor_arguments import PredictorArguments
from ccnet_hf.inference.video import CCNetVideoSession
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig


Use = Literal["pictures", "attention", "video"]


class Checkpoints:
    """The checkpoints by the names that the page shows, which say nothing of where the folders are.

    Args:
        arguments: of the command.

    Attributes:
        names: in the order given.

    Raises:
        InputError: one is no checkpoint, or one of a kind that the page has no view for.
    """

    def __init__(self, arguments: DemoArguments):
        self._arguments = arguments
        sources = list(dict.fromkeys(arguments.model_name_or_path))
        last_parts = [Path(source).name for source in sources]
        self._sources = {
            (last if last and last_parts.count(last) == 1 else source): source
            for source, last in zip(sources, last_parts, strict=True)
        }
        self.names = list(self._sources)
        for source in sources:
            if isinstance(load_config(source), CCNetInstanceConfig):
                raise InputError(f"{source} finds instances, which the page does not show; ccnet-hf segment does")
        self._load = lru_cache(maxsize=None)(self._load)

    def predictor(self, name: str, use: Use = "pictures") -> Predictor | CCNetVideoSession:
        """What predicts with a checkpoint.

        A video has an instance of its own, which remembers frames while other people's pictures are segmented; and
        attention is asked of the model as it is, which another runtime does not tell.

        Raises:
            InputError: the checkpoint cannot be used, or there is none of this name.
        """
        if name not in self.names:  # whatever a program sent in place of a name
            raise InputError(f"there is no checkpoint {reprlib.repr(name)} here; choose from {', '.join(self.names)}")
        if use == "attention" and self._arguments.runtime is None:
            use = "pictures"
        return self._load(name, use)

    def _load(self, name: str, use: Use) -> Predictor | CCNetVideoSession:
        fields = {field.name: getattr(self._arguments, field.name) for field in dataclasses.fields(PredictorArguments)}
        fields["model_name_or_path"] = self._sources[name]
        if use == "attention":
            fields["runtime"] = None
        return PredictorArguments(**fields).load_predictor()


def describe_runtime(predictor: Predictor | CCNetVideoSession) -> str:
    """What computes the logits, for people: program, dtype and device."""
    runtime = predictor.model
    weight = next(runtime.parameters()) if isinstance(runtime, torch.nn.Module) else runtime
    program = getattr(runtime, "backend", "PyTorch" if weight is not runtime else "exported program")
    return f"{program}, {str(weight.dtype).removeprefix('torch.')} on {weight.device}"
