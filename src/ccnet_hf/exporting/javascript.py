"""A folder that the image segmentation pipeline of transformers.js accepts.

It knows models by type, and CCNet is none of them; but all that it asks of a Segformer, the program's input
`pixel_values` and output `logits` and the names of the classes, a CCNet has as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import BaseImageProcessor

from ccnet_hf.errors import InputError
from ccnet_hf.exporting.verification import Network
from ccnet_hf.files import write_text
from ccnet_hf.models.configuration_ccnet import CCNetConfig


if TYPE_CHECKING:
    from transformers.exporters import ExportedModel


_LARGEST_PROGRAM = 2**31 - 1  # bytes that one file of protocol buffers holds
_FOLDER = "onnx"
_SIZES = ({"height", "width"}, {"shortest_edge", "longest_edge"}, {"shortest_edge"})


def program_name(int8: bool) -> str:
    """The file that transformers.js looks for: with `dtype: "q8"` the quantized one, with "fp32" the other."""
    return f"{_FOLDER}/model{'_quantized' if int8 else ''}.onnx"


def write(
    program: ExportedModel, config: CCNetConfig, image_processor: BaseImageProcessor, folder: Path, int8: bool
) -> None:
    """Write the program as one file, and configuration and processor as a Segformer's.

    Raises:
        InputError: the processor letterboxes or resizes by a rule that transformers.js does not have, or the program
            is too large.
    """
    import onnx_ir

    if image_processor.active_letterbox_inverse is not None:
        raise InputError("transformers.js has no letterbox, which the checkpoint's image processor uses")
    size = {side: pixels for side, pixels in dict(image_processor.size).items() if pixels is not None}
    if image_processor.do_resize and set(size) not in _SIZES:
        raise InputError(f"transformers.js cannot resize by the processor's size, {size}")
    graph = program.program
    if sum(value.const_value.nbytes for value in graph.graph.initializers.values()) > _LARGEST_PROGRAM:
        raise InputError("the program is larger than the 2 GiB that one file can hold")
    (folder / _FOLDER).mkdir()
    onnx_ir.save(graph, folder / program_name(int8))
    settings = {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "id2label": {str(label): name for label, name in config.id2label.items()},
        "label2id": config.label2id,
    }
    processor = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": image_processor.do_resize,
        "size": size,
        "resample": 2,
        "do_rescale": image_processor.do_rescale,
        "rescale_factor": image_processor.rescale_factor,
        "do_normalize": image_processor.do_normalize,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "do_reduce_labels": False,
    }
    for name, content in (("config.json", settings), ("preprocessor_config.json", processor)):
        write_text(folder / name, json.dumps(content, indent=2) + "\n")


def run(folder: Path) -> Network:
    """The program in ONNX Runtime, asked as transformers.js asks it: by name."""
    import onnxruntime

    (file,) = (folder / _FOLDER).iterdir()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixel_values: torch.from_numpy(session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0])
