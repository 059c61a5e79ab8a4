# Copyright 2026 The authors of CCNet for Hugging Face. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Configuration of CCNet."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_ccnet_resnet import (
    MAX_CHANNELS,
    MAX_RECURRENCE,
    NAMES_OF_BACKBONES,
    CCNetConfigMixin,
    CCNetResNetConfig,
    check_range,
    own_fields,
    read_backbone_config,
    with_last_feature_maps,
)
from .mistaken_names_ccnet import refuse


# Beyond these, building or running a model would take memory until the system ends the process.
MAX_NUM_LABELS = 65_536

# Of the losses that may be added to cross entropy.
FURTHER_LOSS_FIELDS = ("lovasz_loss_weight", "dice_loss_weight", "focal_loss_weight", "focal_loss_gamma")

# What test-time augmentation may average over its views.
AVERAGES = ("probabilities", "logits")

# field of `CCNetConfig`: what it may be
_CHOICES = {
    "head_activation": ("relu", "leaky_relu"),
    "attention_activation": ("relu", "leaky_relu", None),
    "loss_reduction": ("valid", "all"),
    "ohem_rule": ("authors", "paddleseg"),
}


class CCNetModelConfigMixin(CCNetConfigMixin):
    """
    What the configurations of CCNet's models share: a backbone, classes, and the names of the code that a saved folder
    holds.
    """

    # Where transformers finds the classes of such a folder, if the package is not installed.
    remote_classes: ClassVar[dict[str, str]] = {}
    foreign_names: ClassVar[dict[str, str]] = {
        **NAMES_OF_BACKBONES,
        **dict.fromkeys(("num_classes", "n_classes", "nclass", "classes"), "num_labels"),
        **dict.fromkeys(("ignore_index", "ignore_label"), "semantic_loss_ignore_index"),
        **dict.fromkeys(("dropout_ratio", "dropout"), "classifier_dropout_prob"),
        "auxiliary_head": "use_auxiliary_head",
        "num_frames": "CCNetVideoConfig(num_frames=...)",
    }

    def __init_subclass__(cls, *args, **kwargs):
        super().__init_subclass__(*args, **kwargs)
        cls._auto_class = None  # else transformers would copy a user's own module into the folders it saves

    def to_dict(self) -> dict[str, Any]:
        """The configuration as `config.json` holds it, with the classes that can be loaded from the code beside it. Of
        a subclass of a user's, no code is there but what transformers saves where the subclass is registered."""
        output = super().to_dict()
        auto_map = self.remote_classes
        classes = {name.rpartition(".")[2] for name in auto_map.values()}
        if not {type(self).__name__, *(self.architectures or ())} <= classes:
            elsewhere = {name for name in auto_map.values() if not name.endswith(f".{type(self).__name__}")}
            registered = output.pop("auto_map", None) or {}
            auto_map = {
                kind: name for kind, name in registered.items() if isinstance(name, str) and name not in elsewhere
            }
        return output | ({"auto_map": dict(auto_map)} if auto_map else {})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As every configuration's; the names of the classes that are given while a file is loaded replace all it
        says of them, and where a file's `label2id` is of other labels than its `id2label`, the latter counts."""
        if kwargs.get("id2label") is not None:
            kwargs["id2label"] = _integer_labels(kwargs["id2label"])
            kwargs.setdefault("label2id", {name: label for label, name in kwargs["id2label"].items()})
        names = _integer_labels(config_dict.get("id2label"))
        if names is not None and _foreign_labels(config_dict.get("label2id"), names):
            config_dict = config_dict | {"label2id": {name: label for label, name in names.items()}}
        return super().from_dict(config_dict, **kwargs)

    def _read_labels(self, kwargs: dict[str, Any]) -> None:
        """Check what is given of the number and the names of the classes, before each of them gets a name."""
        if kwargs.get("num_labels") is None:
            kwargs.pop("num_labels", None)
        else:
            self._check_number_of_labels(kwargs["num_labels"])
        self.id2label = _integer_labels(self.id2label)
        labels = range(kwargs.get("num_labels", 2)) if self.id2label is None else self.id2label
        for name, label in _foreign_labels(self.label2id, labels).items():
            raise ValueError(f"label2id must give names labels of id2label, got {label!r} for {name!r}")

    def _check_labels(self) -> None:
        self.id2label = _integer_labels(self.id2label)  # which may have been replaced while a file was loaded
        self._check_number_of_labels(self.num_labels)
        if set(self.id2label) != set(range(self.num_labels)):
            raise ValueError(
                f"id2label must name the labels 0 to {self.num_labels - 1}, got {sorted(self.id2label)[:20]}"
            )

    def _check_number_of_labels(self, number: Any) -> None:
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"num_labels must be an integer, got {number!r}")
        if number > MAX_NUM_LABELS:
            raise ValueError(f"num_labels must be at most {MAX_NUM_LABELS:,}, got {number}")
        if number < 2:
            raise ValueError(
                f"num_labels must be at least 2, got {number}: with a single class every pixel is right and nothing "
                "is learnt. A class and its background are two"
            )

    def _check_ignore_index(self) -> None:
        check_range("semantic_loss_ignore_index", self.semantic_loss_ignore_index, -(2**63), 2**63 - 1)
        if 0 <= self.semantic_loss_ignore_index < self.num_labels:
            ignored = self.semantic_loss_ignore_index
            raise ValueError(
                f"semantic_loss_ignore_index must be no class, got {ignored} of {self.num_labels} classes"
            )


@strict
class CCNetConfig(CCNetModelConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`CCNetModel`] or [`CCNetForSemanticSegmentation`]. The defaults are mmsegmentation's
    `ccnet_r101-d8` with PyTorch's loss reduction.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone `AutoBackbone` knows, by default `CCNetResNetConfig(out_features=["stage3", "stage4"])`. Its
            last feature map feeds the head, the one before it the auxiliary head. With an auxiliary head, a backbone
            that names its last feature map alone, or none, gives the last two.
        hidden_size (`int`, defaults to 512):
            Channels of the head.
        query_key_size (`int`, *optional*, defaults to `hidden_size // 8`):
            Channels of query and key in the attention.
        recurrence (`int`, defaults to 2):
            How often the criss-cross attention is applied with the same weights (R in the paper, section 3.3). 0 is
            the plain FCN head, the control of every experiment; 100 is the most.
        head_activation (`str`, defaults to `"relu"`):
            `"relu"`, or `"leaky_relu"` (slope 0.01) as in the authors' checkpoints.
        attention_activation (`str`, *optional*, defaults to `head_activation`):
            The same of the convolutions before and after the attention, where they differ from the rest of the heads:
            in PaddleSeg's checkpoint they are `"leaky_relu"`.
        concat_input (`bool`, defaults to `True`):
            Whether the backbone's feature map is concatenated to the attended one before the last convolution.
        classifier_dropout_prob (`float`, defaults to 0.1):
            Channel dropout before both classifiers.
        use_auxiliary_head (`bool`, defaults to `True`):
            Whether an FCN head on the second to last feature map adds its loss in training.
        auxiliary_channels (`int`, defaults to 256):
            Channels of the auxiliary head.
        auxiliary_loss_weight (`float`, defaults to 0.4):
            Weight of the auxiliary loss.
        align_corners (`bool`, defaults to `False`):
            How logits are resized, in the loss and in inference.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count. The image processors always write 255.
        loss_reduction (`str`, defaults to `"valid"`):
            `"valid"` divides the summed cross entropy by the number of labelled pixels, `"all"` by the number of all
            pixels, as mmsegmentation does.
        ohem_threshold (`float`, *optional*):
            Trains the classifier on hard pixels only (OHEM, as the authors define it): those whose class has at most
            this probability, in (0, 1], and more where they are too few. `None` trains on all.
        ohem_min_kept (`int`, defaults to 100000):
            With OHEM, about how many pixels of a forward pass are kept at least.
        ohem_rule (`str`, defaults to `"authors"`):
            Which pixels OHEM keeps: `"authors"`, whose bound is found on a map 8 times smaller, or `"paddleseg"`,
            exactly those strictly below a bound found among all pixels.
        category_consistent_loss_weight (`float`, defaults to 0.0):
            Weight of the category-consistent loss (paper, TPAMI version). 0 leaves it and its projection out.
        category_consistent_channels (`int`, defaults to 16):
            Channels that loss sees, a 1x1 convolution of the attention's output.
        category_consistent_per_image (`bool`, defaults to `False`):
            Whether that loss gathers the classes in every image for itself rather than over the batch.
        lovasz_loss_weight (`float`, defaults to 0.0):
            Weight of the Lovász-softmax loss, which is added to the cross entropy of the classifier.
        dice_loss_weight (`float`, defaults to 0.0):
            Likewise of the Dice loss.
        focal_loss_weight (`float`, defaults to 0.0):
            Likewise of the focal loss.
        focal_loss_gamma (`float`, defaults to 2.0):
            How little the focal loss counts pixels that are learnt already; 0 is cross entropy.
        inference (`dict`, defaults to `{"mode": "whole"}`):
            The protocol the checkpoint is scored with: `{"mode": "whole"}`, or
            `{"mode": "slide", "crop_size": [height, width], "stride": [height, width]}`. Either may also have
            `"average": "logits"`, what test-time augmentation averages, where it is not `"probabilities"`.
        initializer_range (`float`, defaults to 0.01):
            Standard deviation of the classifiers' initial weights.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field. (For one of another type,
            transformers raises `huggingface_hub.errors.StrictDataclassFieldValidationError`.)

    Example:

    ```python
    >>> from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation

    >>> model = CCNetForSemanticSegmentation(CCNetConfig(num_labels=19))
    ```
    """

    model_type = "ccnet"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["auxiliary_logits", "category_embeddings"]
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}
    remote_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_ccnet.CCNetConfig",
        "AutoModel": "modeling_ccnet.CCNetModel",
        "AutoModelForSemanticSegmentation": "modeling_ccnet.CCNetForSemanticSegmentation",
    }

    backbone_config: Any = None
    hidden_size: int = 512
    query_key_size: int | None = None
    recurrence: int = 2
    head_activation: str = "relu"
    attention_activation: str | None = None
    concat_input: bool = True
    classifier_dropout_prob: float | int = 0.1
    use_auxiliary_head: bool = True
    auxiliary_channels: int = 256
    auxiliary_loss_weight: float | int = 0.4
    align_corners: bool = False
    semantic_loss_ignore_index: int = 255
    loss_reduction: str = "valid"
    ohem_threshold: float | int | None = None
    ohem_min_kept: int = 100000
    ohem_rule: str = "authors"
    category_consistent_loss_weight: float | int = 0.0
    category_consistent_channels: int = 16
    category_consistent_per_image: bool = False
    lovasz_loss_weight: float | int = 0.0
    dice_loss_weight: float | int = 0.0
    focal_loss_weight: float | int = 0.0
    focal_loss_gamma: float | int = 2.0
    inference: dict[str, Any] | None = None
    initializer_range: float | int = 0.01

    def __post_init__(self, **kwargs):
        refuse(type(self), self._mistaken_names(kwargs))
        if self.backbone_config is None:
            self.backbone_config = CCNetResNetConfig(out_features=["stage3", "stage4"])
        self.backbone_config = read_backbone_config(self.backbone_config)
        if self.use_auxiliary_head:
            self.backbone_config = with_last_feature_maps(self.backbone_config, 2)
        self.inference = check_inference(self.inference)
        self._read_labels(kwargs)
        super().__post_init__(**kwargs)
        self._check_values()

    def _check_values(self) -> None:
        self._check_labels()
        self._check_ignore_index()
        check_range("hidden_size", self.hidden_size, 1, MAX_CHANNELS)
        check_range("recurrence", self.recurrence, 0, MAX_RECURRENCE)
        check_range("auxiliary_channels", self.auxiliary_channels, 1, MAX_CHANNELS)
        check_range("category_consistent_channels", self.category_consistent_channels, 1, MAX_CHANNELS)
        if self.query_key_size is not None:
            check_range("query_key_size", self.query_key_size, 1, MAX_CHANNELS)
        if self.ohem_min_kept < 0:
            raise ValueError(f"ohem_min_kept must be at least 0, got {self.ohem_min_kept}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        if not 0 <= self.classifier_dropout_prob < 1:
            raise ValueError(f"classifier_dropout_prob must be in [0, 1), got {self.classifier_dropout_prob}")
        if self.ohem_threshold is not None and not 0 < self.ohem_threshold <= 1:
            raise ValueError(f"ohem_threshold must be in (0, 1] or None, got {self.ohem_threshold}")
        weights = ("auxiliary_loss_weight", "category_consistent_loss_weight")
        for name in (*weights, *FURTHER_LOSS_FIELDS, "initializer_range"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {getattr(self, name)}")


# Of the configurations of other tasks.
NAMES_OF_SEMANTIC_MODELS = {name: f"CCNetConfig({name}=...)" for name in own_fields(CCNetConfig)}


def _integer_labels(id2label: dict | None) -> dict[int, str] | None:
    """The names by label, which JSON makes text of."""
    if id2label is None:
        return None
    for label in id2label:
        if not str(label).isdecimal():
            raise ValueError(f"id2label must map the labels 0, 1, ... to names, got a label {label!r}")
    return {int(label): name for label, name in id2label.items()}


def _foreign_labels(label2id: dict | None, labels: Iterable[int]) -> dict:
    """The entries of `label2id` that are of none of the labels."""
    known = {str(label) for label in labels}
    return {name: label for name, label in (label2id or {}).items() if str(label) not in known}


def check_inference(inference: dict[str, Any] | None) -> dict[str, Any]:
    """The field `inference` as JSON gives it back, `{"mode": "whole"}` for `None`.

    Raises:
        ValueError: it describes no protocol; the message says what is wrong.
    """
    if inference is None:
        return {"mode": "whole"}
    inference = {name: list(value) if isinstance(value, tuple) else value for name, value in inference.items()}
    mode = inference.get("mode")
    if mode not in ("whole", "slide"):
        raise ValueError(f"inference must have the mode 'whole' or 'slide', got {inference}")
    expected = {"mode"} if mode == "whole" else {"mode", "crop_size", "stride"}
    if set(inference) - {"average"} != expected:
        raise ValueError(f"inference of mode {mode!r} must have the keys {sorted(expected)}, got {inference}")
    if inference.get("average", "probabilities") not in AVERAGES:
        raise ValueError(f"inference['average'] must be one of {', '.join(AVERAGES)}, got {inference['average']!r}")
    for name in expected - {"mode"}:
        sides = inference[name]
        if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(_is_positive_int(side) for side in sides)):
            raise ValueError(f"inference[{name!r}] must be two positive integers (height, width), got {sides!r}")
    if mode == "slide":
        for crop, stride in zip(inference["crop_size"], inference["stride"], strict=True):
            if stride > crop:
                raise ValueError(f"inference['stride'] must not exceed the crop size, got {inference}")
    return inference


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


CCNetConfig.register_for_auto_class()

__all__ = ["CCNetConfig"]
