"""Small models that exercise every part of the real ones."""

import torch

from ccnet_hf import (
    CCNetConfig,
    CCNetForHumanParsing,
    CCNetForInstanceSegmentation,
    CCNetForSemanticSegmentation,
    CCNetForVideoSegmentation,
    CCNetInstanceConfig,
    CCNetParsingConfig,
    CCNetResNetConfig,
    CCNetVideoConfig,
)


def tiny_backbone_config(**kwargs) -> CCNetResNetConfig:
    fields = {"depths": [1, 2, 2, 1], "hidden_sizes": [16, 32, 64, 64], "stem_size": 8}
    return CCNetResNetConfig(**{**fields, "out_features": ["stage3", "stage4"], **kwargs})


def tiny_config(**kwargs) -> CCNetConfig:
    fields = {"backbone_config": tiny_backbone_config(), "hidden_size": 32, "auxiliary_channels": 16, "num_labels": 5}
    return CCNetConfig(**{**fields, **kwargs})


def tiny_model(seed: int = 0, **kwargs) -> CCNetForSemanticSegmentation:
    """A model in eval mode whose attention does something: gamma starts at 0, where it would be the identity."""
    torch.manual_seed(seed)
    model = CCNetForSemanticSegmentation(tiny_config(**kwargs))
    if model.model.head.attention is not None:
        wake_attention(model.model.head.attention)
    return model.eval()


def tiny_parsing_config(**kwargs) -> CCNetParsingConfig:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone_config = tiny_backbone_config(output_stride=16, contract_dilation=False, out_features=stages)
    fields = {"hidden_size": 32, "decoder_channels": 16, "shortcut_channels": 8, "edge_channels": 16, "num_labels": 5}
    return CCNetParsingConfig(**{"backbone_config": backbone_config, **fields, **kwargs})


def tiny_parsing_model(seed: int = 0, **kwargs) -> CCNetForHumanParsing:
    """As `tiny_model`, for human parsing."""
    torch.manual_seed(seed)
    model = CCNetForHumanParsing(tiny_parsing_config(**kwargs))
    if getattr(model.context, "attention", None) is not None:
        wake_attention(model.context.attention)
    return model.eval()


def tiny_video_model(seed: int = 0, **changes) -> CCNetForVideoSegmentation:
    """As `tiny_model`, for clips."""
    torch.manual_seed(seed)
    fields = {name: value for name, value in tiny_config().to_dict().items() if name not in ("recurrence", "auto_map")}
    model = CCNetForVideoSegmentation(CCNetVideoConfig.from_dict(fields | {"model_type": "ccnet_video"} | changes))
    if model.model.head.attention is not None:
        wake_attention(model.model.head.attention)
    return model.eval()


def wake_attention(attention: torch.nn.Module) -> None:
    """Give an attention layer a gamma and biases that are not 0."""
    with torch.no_grad():
        attention.gamma.fill_(0.7)
        for projection in (attention.query, attention.key):
            projection.bias.normal_()


def tiny_instance_config(**kwargs) -> CCNetInstanceConfig:
    backbone_config = tiny_backbone_config(
        stem_type="conv7",
        output_stride=32,
        attention_stage="stage3",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    fields = {"backbone_config": backbone_config, "fpn_channels": 16, "box_hidden_size": 32, "num_labels": 5}
    return CCNetInstanceConfig(**{**fields, **kwargs})


def tiny_instance_model(seed: int = 0, **kwargs) -> CCNetForInstanceSegmentation:
    """A model in eval mode whose attention does something, and whose scores and boxes differ widely."""
    torch.manual_seed(seed)
    model = CCNetForInstanceSegmentation(tiny_instance_config(**kwargs))
    attention = model.backbone.stages[2].attention
    if attention is not None:
        wake_attention(attention)
    wake_instances(model)
    return model.eval()


def wake_instances(model: CCNetForInstanceSegmentation) -> None:
    """Give a Mask R-CNN scores and boxes that differ widely."""
    predictor, head = model.roi_heads.box_predictor, model.rpn.head
    with torch.no_grad():
        for layer, deviation in ((predictor.cls_score, 0.5), (predictor.bbox_pred, 0.1), (head.cls_logits, 1.0)):
            layer.weight.normal_(std=deviation)
