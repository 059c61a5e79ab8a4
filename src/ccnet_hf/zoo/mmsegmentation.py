"""From a checkpoint of mmsegmentation, the authors, PaddleSeg, CE2P or SCHP to a folder that `from_pretrained` reads.

A checkpoint is foreign input: it is read without running code from it, and every doubt about it ends in an
`InputError` before anything is written.
"""

import os
import reprlib
from functools import reduce
from pathlib import Path

import torch

from ccnet_hf.errors import InputError, using
from ccnet_hf.files import atomic_folder, check_new
from ccnet_hf.models.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.models.modeling_ccnet_parsing import CCNetForHumanParsing
from ccnet_hf.recipes import PADDLESEG_VARIANT, get_recipe
from ccnet_hf.untrusted_checkpoints import read_state_dict
from ccnet_hf.zoo.authors import (
    AUXILIARY_BIAS,
    authors_key,
    authors_recipe,
    fold,
    is_authors_layout,
    is_authors_recipe,
)
from ccnet_hf.zoo.paddleseg import (
    bias_shapes,
    fold_biases,
    is_paddleseg_layout,
    is_paddleseg_recipe,
    paddleseg_key,
)
from ccnet_hf.zoo.parsing import converted_parsing_recipe, schp_key, with_schp_names


# Parts of a key, ours and mmsegmentation's, replaced from top to bottom.
_RENAMED_PARTS = (
    ("model.backbone.", "backbone."),
    ("stem.convolutions.0.convolution.", "stem.0."),
    ("stem.convolutions.0.normalization.", "stem.1."),
    ("stem.convolutions.1.convolution.", "stem.3."),
    ("stem.convolutions.1.normalization.", "stem.4."),
    ("stem.convolutions.2.convolution.", "stem.6."),
    ("stem.convolutions.2.normalization.", "stem.7."),
    ("stages.0.blocks.", "layer1."),
    ("stages.1.blocks.", "layer2."),
    ("stages.2.blocks.", "layer3."),
    ("stages.3.blocks.", "layer4."),
    (".conv1.convolution.", ".conv1."),
    (".conv1.normalization.", ".bn1."),
    (".conv2.convolution.", ".conv2."),
    (".conv2.normalization.", ".bn2."),
    (".conv3.convolution.", ".conv3."),
    (".conv3.normalization.", ".bn3."),
    (".shortcut.convolution.", ".downsample.0."),
    (".shortcut.normalization.", ".downsample.1."),
    ("model.head.input_projection.", "decode_head.convs.0."),
    ("model.head.attention.query.", "decode_head.cca.query_conv."),
    ("model.head.attention.key.", "decode_head.cca.key_conv."),
    ("model.head.attention.value.", "decode_head.cca.value_conv."),
    ("model.head.attention.gamma", "decode_head.cca.gamma.scale"),
    ("model.head.output_projection.", "decode_head.convs.1."),
    ("model.head.fusion.", "decode_head.conv_cat."),
    ("auxiliary_head.projection.", "auxiliary_head.convs.0."),
    ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
    (".convolution.", ".conv."),
    (".normalization.", ".bn."),
)

_MAX_LISTED_KEYS = 20  # a foreign architecture differs in hundreds


def mmsegmentation_key(key: str) -> str:
    """Name of a `CCNetForSemanticSegmentation` state-dict entry in mmsegmentation's `EncoderDecoder`."""
    if key.startswith("classifier."):
        return f"decode_head.conv_seg.{key.removeprefix('classifier.')}"
    for ours, theirs in _RENAMED_PARTS:
        key = key.replace(ours, theirs)
    return key


def convert_checkpoint(
    variant: str,
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    num_labels: int | None = None,
    recurrence: int | None = None,
) -> None:
    """Convert a CCNet checkpoint of mmsegmentation, of the authors or of PaddleSeg, or a human parser of CE2P or SCHP,
    into a folder with model, config and processor.

    Which of the first three it is shows in the names of its entries. The folder keeps the checkpoint's numbers in its
    own floating dtype (the smallest one that holds all of them, if there are several).

    Args:
        variant: name or short name of a zoo variant of `recipes.py`; decides config and processor. The authors'
            checkpoints are `ccnet-r101-cityscapes-authors`, and may be called as the zoo's R-101 for Cityscapes, too.
            PaddleSeg's is `ccnet-r101-cityscapes-paddleseg`.
            Human parsers are `schp-lip`, `schp-atr`, `schp-pascal` and `ce2p-lip`, and `ccnet-r101-lip` where SCHP's
            network has criss-cross attention as its context module.
        checkpoint: `.pth` file, either `{"state_dict": ..., ...}` or the state dict alone, or a `.pdparams` file. If
            the name of the first ends with eight hexadecimal digits, as mmsegmentation's do, they must be the start of
            the file's SHA-256.
        output_dir: folder to write. It appears complete or not at all; an existing one that holds files is refused.
        num_labels: number of classes of the checkpoint, for one that was trained on other classes than the variant's.
            Its classes then have no names and no colours.
        recurrence: rounds of attention the checkpoint was trained with, which no file states; 2 if `None`.

    Raises:
        InputError: wrong variant, class count or recurrence, a checkpoint that is damaged, foreign, or holds more than
            data, entries that are missing, left over, of the wrong shape or not finite, or an output folder in use or
            being written by another process.
        OSError: a file that cannot be read or written.
    """
    recipe = get_recipe(variant)
    is_parser = recipe.task == "parsing"
    if is_parser:
        recipe = converted_parsing_recipe(recipe)
        if recurrence is not None and recipe.model["context_module"] != "rcca":
            raise InputError(f"{recipe.name} has no attention, and so no recurrence")
    elif recipe.checkpoint_file is None and not is_authors_recipe(recipe):
        raise InputError(f"{recipe.name} is no variant of mmsegmentation's zoo, the authors or PaddleSeg")
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    check_new(output_dir)

    state_dict = read_state_dict(checkpoint)
    by_paddleseg = not is_parser and is_paddleseg_layout(state_dict)
    by_authors = not is_parser and not by_paddleseg and is_authors_layout(state_dict)
    if by_paddleseg and not is_paddleseg_recipe(recipe):
        raise InputError(f"{checkpoint} is laid out as PaddleSeg's: its variant is {PADDLESEG_VARIANT}")
    if is_paddleseg_recipe(recipe) and not by_paddleseg:
        raise InputError(f"{checkpoint} is not laid out as PaddleSeg's checkpoint, which {recipe.name} is for")
    if is_parser:
        state_dict = with_schp_names(state_dict)
    elif by_authors:
        recipe = authors_recipe(recipe)
    elif is_authors_recipe(recipe):
        raise InputError(f"{checkpoint} is not laid out as the authors' checkpoints, which {recipe.name} is for")
    changes = {"num_labels": num_labels, "recurrence": recurrence}
    with using(""):
        config = recipe.config(**{name: value for name, value in changes.items() if value is not None})
    with torch.device("meta"):  # shapes only; every number comes from the checkpoint
        model = (CCNetForHumanParsing if is_parser else CCNetForSemanticSegmentation)(config)
    expected = model.state_dict()
    name_of = schp_key if is_parser else paddleseg_key if by_paddleseg else mmsegmentation_key
    sources = {key: name_of(key) for key in expected}
    if by_authors:
        sources = {key: authors_key(source) for key, source in sources.items()}
    shapes = {source: expected[key].shape for key, source in sources.items()}
    if by_authors:
        shapes[AUXILIARY_BIAS] = shapes["dsn.1.bias"]
    if by_paddleseg:
        shapes |= bias_shapes(shapes)
    has_abn = by_authors or is_parser
    if has_abn or by_paddleseg:
        counters = {name for name in shapes if name.endswith(".num_batches_tracked")}
        state_dict = dict.fromkeys(counters, torch.tensor(0)) | state_dict  # which some have none of
    if config.recurrence == 0:
        state_dict = {name: tensor for name, tensor in state_dict.items() if ".cca." not in name}

    classifier = sources["classifier.weight"]
    check_keys(checkpoint, set(shapes), set(state_dict))
    _check_num_labels(checkpoint, state_dict[classifier], config.num_labels, recipe.name)
    tensors = check_tensors(checkpoint, state_dict, shapes)
    if has_abn:
        fold(tensors)
    if by_paddleseg:
        fold_biases(tensors)
    model = model.to(tensors[classifier].dtype).to_empty(device="cpu")
    model.load_state_dict({key: tensors[source] for key, source in sources.items()})

    image_processor = recipe.image_processor()
    if num_labels is not None:
        image_processor.palette, image_processor.do_reduce_labels = None, False
    with atomic_folder(output_dir) as unfinished:
        model.eval().save_pretrained(unfinished)
        image_processor.save_pretrained(unfinished)


def check_keys(checkpoint: Path, expected: set[str], found: set[str]) -> None:
    """Refuse entries that are missing or left over; the message names some."""
    complaints = []
    if expected - found:
        complaints.append(f"missing: {_enumerate(expected - found)}")
    if found - expected:
        complaints.append(f"left over: {_enumerate(found - expected)}")
    if complaints:
        raise InputError(f"{checkpoint} does not fit the variant; {'; '.join(complaints)}")


def _check_num_labels(checkpoint: Path, classifier_weight: torch.Tensor, num_labels: int, variant: str) -> None:
    found = classifier_weight.shape[0] if classifier_weight.ndim else 0
    if found != num_labels:
        raise InputError(
            f"{checkpoint} has {found} classes where {num_labels} were expected; "
            f"to convert it with {variant}'s protocol but its own classes, pass num_labels={found}"
        )


def check_tensors(
    checkpoint: Path, state_dict: dict[str, torch.Tensor], shapes: dict[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """The entries named in `shapes`, all of one floating dtype but for the counters."""
    tensors = {}
    for name, shape in shapes.items():
        tensor, is_counter = state_dict[name], name.endswith(".num_batches_tracked")
        if name.endswith(("cca.gamma.scale", "cca.gamma")) and tensor.ndim == 0:  # a scalar there, one element here
            tensor = tensor.reshape(1)
        if tensor.shape != shape:
            raise InputError(f"{checkpoint}: {name} has shape {tuple(tensor.shape)}, the variant {tuple(shape)}")
        if tensor.is_floating_point() == is_counter:
            raise InputError(f"{checkpoint}: {name} holds {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{checkpoint}: {name} holds NaN or infinity")
        tensors[name] = tensor
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    dtype = reduce(torch.promote_types, dtypes)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _enumerate(keys: set[str]) -> str:
    listed = [reprlib.repr(key)[1:-1] for key in sorted(keys)[:_MAX_LISTED_KEYS]]
    rest = f" and {len(keys) - len(listed)} more" if len(keys) > len(listed) else ""
    return ", ".join(listed) + rest
