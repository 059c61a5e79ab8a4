"""The command that exports a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub.utils.logging
import torch
import transformers.utils.logging

from ccnet_hf.command import run_command
from ccnet_hf.deployment.fusion import Rewritable
from ccnet_hf.deployment.machine import require_packages
from ccnet_hf.deployment.programs import Format, make_program, quiet
from ccnet_hf.deployment.runtimes import check_model, rewrite
from ccnet_hf.errors import InputError
from ccnet_hf.exporting import javascript
from ccnet_hf.exporting.calibration import Pictures, make_quantizer
from ccnet_hf.exporting.card import card
from ccnet_hf.exporting.verification import check_logits, equal_labels, run_folder, verify_logits
from ccnet_hf.files import atomic_folder, check_new, write_text
from ccnet_hf.inference.images import find_images
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.limits import check_range


_MAX_PICTURES = 4096
_FEWEST_EQUAL = 0.8  # fraction of labels; below it the calibration has failed


@dataclass(kw_only=True)
class ExportArguments:
    """What is exported, and how."""

    model_name_or_path: str = field(
        metadata={
            "positional": True,
            "metavar": "MODEL",
            "help": "folder of a CCNet checkpoint, or namespace/name on the Hub",
        }
    )
    output: str = field(metadata={"metavar": "DIR", "help": "new folder: program, configuration, processor and card"})
    format: Format = field(
        default="onnx", metadata={"help": "onnx: ONNX Runtime; openvino: OpenVINO; torch: a .pt2 of torch.export"}
    )
    int8: bool = field(
        default=False, metadata={"help": "weights and activations of the convolutions in 8 bits; needs --calibration"}
    )
    calibration: list[str] | None = field(
        default=None,
        metadata={"metavar": "DIR", "help": "folders of pictures of the kind that will be segmented, for --int8"},
    )
    calibration_images: int = field(default=64, metadata={"help": "pictures that --int8 looks at, evenly taken"})
    javascript: bool = field(default=False, metadata={"help": "lay the folder out for transformers.js, with onnx"})

    def __post_init__(self):
        if self.int8 and not self.calibration:
            raise InputError(
                "--int8 needs --calibration DIR with pictures: without them activations would be scaled as they come "
                "(dynamic int8), and then only 52 % of the labels were as in float32"
            )
        if self.calibration and not self.int8:
            raise InputError("--calibration is for --int8")
        if self.int8 and self.format == "torch":
            raise InputError("--int8 is for --format onnx and openvino")
        if self.javascript and self.format != "onnx":
            raise InputError("--javascript needs --format onnx, which transformers.js runs")


def export(arguments: ExportArguments) -> None:
    """Export a CCNet for ONNX Runtime, OpenVINO or torch.export, for images of any number and size.

    A folder for ONNX Runtime or OpenVINO runs in transformers' `pipeline`, in `ccnet-hf segment` and in
    `ccnet-hf eval`, one of torch.export in the pipeline, one with `--javascript` in transformers.js. It is compared
    with the checkpoint before it gets its name.

    Raises:
        InputError: a checkpoint, pictures or options that cannot be used, or a runtime that is not installed.
        OSError: the folder cannot be written.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    check_new(arguments.output)
    check_range("--calibration_images", arguments.calibration_images, 1, _MAX_PICTURES)
    require_packages(arguments.format)
    model, image_processor = load_checkpoint(arguments.model_name_or_path, "float32", "cpu")
    check_model(model)
    check_logits(model)
    pictures = quantizer = None
    if arguments.int8:
        pictures = Pictures(find_images(arguments.calibration), image_processor, arguments.calibration_images)
        quantizer = make_quantizer(pictures, lambda pixel_values: model(pixel_values=pixel_values).logits)
    program = make_program(rewrite(model, torch.float32), arguments.format, quantizer)
    with atomic_folder(arguments.output) as folder:
        if arguments.javascript:
            javascript.write(program, model.config, image_processor, folder, arguments.int8)
        else:
            with quiet():
                program.save_pretrained(folder)
            image_processor.save_pretrained(folder)
        found = _verify(arguments, folder, model, pictures)
        write_text(folder / "README.md", card(arguments, model.config, found))
    print(f"{arguments.output} holds the program; {found}")


def _verify(arguments: ExportArguments, folder: Path, model: Rewritable, pictures: Pictures | None) -> str:
    """Run what was written, and say how it compares with the checkpoint."""
    network = javascript.run(folder) if arguments.javascript else run_folder(folder, arguments.format)
    if pictures is None:
        error = verify_logits(network, model)
        return f"its logits are those of the checkpoint within {error:.0e} of the largest one"
    equal = equal_labels(network, model, pictures)
    if equal < _FEWEST_EQUAL:
        raise InputError(
            f"in int8 only {equal:.1%} of the labels of the calibration pictures are as in float32: calibrate on more "
            "pictures, of the kind that will be segmented"
        )
    return f"{equal:.2%} of the labels of calibration pictures are as in float32"


def main(argv: Sequence[str] | None = None, prog: str = "ccnet-hf export") -> int:
    """Run the command; returns the exit status."""
    return run_command(ExportArguments, export, argv, prog)


__all__ = ["ExportArguments", "export", "main"]
