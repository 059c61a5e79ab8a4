"""CCNet (Criss-Cross Attention for Semantic Segmentation) for Hugging Face Transformers.

Importing this package registers its classes with `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoModelForInstanceSegmentation`, `AutoBackbone`, `AutoImageProcessor`, `AutoVideoProcessor`,
`pipeline("image-segmentation")` and `pipeline("object-detection")`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoVideoProcessor,
)

from . import kernels
from .errors import InputError
from .models.configuration_ccnet import CCNetConfig
from .models.configuration_ccnet_backbone import CCNetBackboneConfig
from .models.configuration_ccnet_instance import CCNetInstanceConfig
from .models.configuration_ccnet_parsing import CCNetParsingConfig
from .models.configuration_ccnet_resnet import CCNetResNetConfig
from .models.configuration_ccnet_video import CCNetVideoConfig
from .models.criss_cross_attention import criss_cross_attention
from .models.image_processing_ccnet import CCNetImageProcessor
from .models.image_processing_ccnet_instance import CCNetInstanceImageProcessor
from .models.image_processing_pil_ccnet import CCNetImageProcessorPil
from .models.modeling_ccnet import (
    CCNetForSemanticSegmentation,
    CCNetModel,
    CCNetModelOutput,
    CCNetPreTrainedModel,
    CCNetSemanticSegmenterOutput,
    CrissCrossAttention,
    RecurrentCrissCrossAttention,
)
from .models.modeling_ccnet_backbone import CCNetBackbone
from .models.modeling_ccnet_instance import CCNetForInstanceSegmentation, CCNetInstanceSegmenterOutput
from .models.modeling_ccnet_parsing import CCNetForHumanParsing, CCNetHumanParsingOutput
from .models.modeling_ccnet_resnet import CCNetResNetBackbone
from .models.modeling_ccnet_video import CCNetForVideoSegmentation, CCNetVideoModel
from .models.video_processing_ccnet import CCNetVideoProcessor


if TYPE_CHECKING:
    from .deployment.optimize import optimize

__version__ = "0.2.0"

kernels.attach()

AutoConfig.register(CCNetConfig.model_type, CCNetConfig, exist_ok=True)
AutoModel.register(CCNetConfig, CCNetModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(CCNetConfig, CCNetForSemanticSegmentation, exist_ok=True)
AutoConfig.register(CCNetParsingConfig.model_type, CCNetParsingConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(CCNetParsingConfig, CCNetForHumanParsing, exist_ok=True)
AutoConfig.register(CCNetVideoConfig.model_type, CCNetVideoConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(CCNetVideoConfig, CCNetForVideoSegmentation, exist_ok=True)
AutoVideoProcessor.register(CCNetVideoConfig, CCNetVideoProcessor, exist_ok=True)
for _config_class in (CCNetConfig, CCNetParsingConfig):
    AutoImageProcessor.register(
        _config_class,
        image_processor_classes={"torchvision": CCNetImageProcessor, "pil": CCNetImageProcessorPil},
        exist_ok=True,
    )
# The pipeline for image segmentation tries the first of these, not the second.
for auto_class in (AutoModelForImageSegmentation, AutoModelForInstanceSegmentation, AutoModelForObjectDetection):
    auto_class.register(CCNetInstanceConfig, CCNetForInstanceSegmentation, exist_ok=True)
AutoImageProcessor.register(
    CCNetInstanceConfig, image_processor_classes={"torchvision": CCNetInstanceImageProcessor}, exist_ok=True
)

__all__ = [
    "CCNetBackbone",
    "CCNetBackboneConfig",
    "CCNetConfig",
    "CCNetForHumanParsing",
    "CCNetForInstanceSegmentation",
    "CCNetForSemanticSegmentation",
    "CCNetForVideoSegmentation",
    "CCNetHumanParsingOutput",
    "CCNetImageProcessor",
    "CCNetImageProcessorPil",
    "CCNetInstanceConfig",
    "CCNetInstanceImageProcessor",
    "CCNetInstanceSegmenterOutput",
    "CCNetModel",
    "CCNetModelOutput",
    "CCNetParsingConfig",
    "CCNetPreTrainedModel",
    "CCNetResNetBackbone",
    "CCNetResNetConfig",
    "CCNetSemanticSegmenterOutput",
    "CCNetVideoConfig",
    "CCNetVideoModel",
    "CCNetVideoProcessor",
    "CrissCrossAttention",
    "InputError",
    "RecurrentCrissCrossAttention",
    "criss_cross_attention",
    "optimize",
]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: whoever only loads a model needs nothing of it.
    if name == "optimize":
        return import_module(".deployment.optimize", __name__).optimize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
