"""What an exported folder says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ccnet_hf.models.configuration_ccnet import CCNetConfig


if TYPE_CHECKING:
    from ccnet_hf.exporting.export import ExportArguments


_TEXT = """# {title}

{kind}, made by `ccnet-hf export` of `{source}`, {num_labels} classes. Images of any number and size.
Checked when it was written: {found}.

{usage}
"""

_PYTHON = """```python
import ccnet_hf  # registers the configuration
from transformers import AutoImageProcessor, pipeline
from transformers.exporters import ExportedModel

model = ExportedModel.from_pretrained("{name}", device="cpu"{options})
segment = pipeline("image-segmentation", model=model, image_processor=AutoImageProcessor.from_pretrained("{name}"))
segments = segment("street.jpg")
```{note}"""

# Of `ExportedModel.from_pretrained`.
_OPTIONS = {
    "openvino": ', config={"INFERENCE_PRECISION_HINT": "f32"}',
    "torch": ", trust_remote_code=True",
}
_NOTES = {
    "openvino": """

Without the hint OpenVINO takes bfloat16 where the processor has it, and with OpenVINO 2026.4 images of some sizes get
wrong results then.""",
}

_JAVASCRIPT = """```javascript
import {{ env, pipeline }} from "@huggingface/transformers";

env.localModelPath = "./"; // the folder that {name} lies in
const segment = await pipeline("image-segmentation", "{name}", {{ dtype: "{dtype}" }});
const segments = await segment("street.jpg");
```

transformers.js knows no CCNet: the configuration is a Segformer's, whose inputs and outputs are the same. Images are
resized a little differently there than by the image processor of the checkpoint."""

_KINDS = {
    "onnx": "A program for ONNX Runtime",
    "openvino": "A program for OpenVINO",
    "torch": "A `torch.export` program",
}


def card(arguments: ExportArguments, config: CCNetConfig, found: str) -> str:
    """The folder's README.md; `found` is what the comparison with the checkpoint says."""
    name = Path(arguments.output).name
    if arguments.javascript:
        usage = _JAVASCRIPT.format(name=name, dtype="q8" if arguments.int8 else "fp32")
    else:
        options, note = (texts.get(arguments.format, "") for texts in (_OPTIONS, _NOTES))
        usage = _PYTHON.format(name=name, options=options, note=note)
    return _TEXT.format(
        title=name,
        kind=_KINDS[arguments.format] + (" in int8" if arguments.int8 else ""),
        source=arguments.model_name_or_path,
        num_labels=config.num_labels,
        found=found,
        usage=usage,
    )
