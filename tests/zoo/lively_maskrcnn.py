"""torchvision's Mask R-CNN with random weights that make it see things."""

import torch
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d


def lively_maskrcnn(seed: int = 0, version: str = "v1", **kwargs) -> MaskRCNN:
    """Mask R-CNN in eval mode whose features keep their size, whose batch norms have statistics of their own, and
    whose scores spread over many classes. `version` is "v1", "v2", or "frozen", as the first one is published."""
    torch.manual_seed(seed)
    if version == "frozen":
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
        model = MaskRCNN(backbone, **{"num_classes": 91, **kwargs}).eval()
        overwrite_eps(model, 0.0)
    else:
        build = maskrcnn_resnet50_fpn_v2 if version == "v2" else maskrcnn_resnet50_fpn
        model = build(weights=None, weights_backbone=None, **kwargs).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d | FrozenBatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.6, 1.6)
                module.weight.uniform_(0.2, 0.5) if name.endswith("bn3") else module.weight.uniform_(0.7, 1.4)
                module.bias.normal_(std=0.1)
            elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
                module.bias.normal_(std=0.02)
        model.rpn.head.cls_logits.weight.normal_(std=0.05)
        model.rpn.head.bbox_pred.weight.normal_(std=0.01)
        predictor = model.roi_heads.box_predictor
        predictor.bbox_pred.weight.normal_(std=0.02)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.normal_(std=0.5)
        _spread_scores(model)
    return model


def _spread_scores(model: MaskRCNN) -> None:
    """Make the logits of the classes differ between the regions of a picture, about 0 and with a deviation of 3."""
    features = []
    handle = model.roi_heads.box_head.register_forward_hook(lambda module, inputs, output: features.append(output))
    noise = torch.rand(1, 3, 12, 16)
    model([torch.nn.functional.interpolate(noise, size=(120, 160), mode="bilinear")[0]])
    handle.remove()
    layer, (regions, *_) = model.roi_heads.box_predictor.cls_score, features
    layer.weight.normal_()
    layer.weight *= 3 / torch.nn.functional.linear(regions - regions.mean(dim=0), layer.weight).std()
    layer.bias.copy_(-torch.nn.functional.linear(regions.mean(dim=0), layer.weight))
