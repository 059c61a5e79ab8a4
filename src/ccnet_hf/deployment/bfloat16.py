"""What of an OpenVINO program stays in float32 where the rest is computed in bfloat16."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import openvino


_STRIDE = 8  # maps of a smaller stride stay in float32


def cut_after_large_maps(model: openvino.Model) -> tuple[openvino.Model, openvino.Model] | None:
    """Cut a network of depthwise convolutions where its maps have become small, so that what comes before can be
    computed in float32.

    In MobileNets and EfficientNets with folded batch norms the channels of the first layers have very different
    ranges: rounding them to bfloat16 makes most of the error of the logits. These layers have few channels on large
    maps, so that bfloat16 saves little time in them.

    Args:
        model: from images (B, 3, H, W) to logits, H and W fixed, in floating point; is left as it is.

    Returns:
        From images to a map, and from this map and the images, whose size the rest reads, to logits. `None` for
        another kind of network, and where no single map larger than 1/8 of the images carries all that follows.
    """
    import openvino

    model = model.clone()
    kinds = {op.get_type_name() for op in model.get_ordered_ops()}
    # FakeQuantize: in int8, whose convolutions would lose the range of their input; MVN: layer norms, as in ConvNeXt.
    if "GroupConvolution" not in kinds or kinds & {"FakeQuantize", "MVN"}:
        return None
    (images,) = model.inputs
    limits = [math.ceil(side / _STRIDE) for side in _shape(images)[2:]]
    bottlenecks = [value for value in _bottlenecks(model, images) if _exceeds(_shape(value)[2:], limits)]
    if not bottlenecks:
        return None
    value = min(reversed(bottlenecks), key=lambda value: math.prod(_shape(value)))  # the last of the smallest
    before = openvino.Model([value], model.get_parameters()).clone()
    carried = openvino.op.Parameter(value.get_element_type(), value.get_partial_shape())
    for reader in value.get_target_inputs():
        reader.replace_source_output(carried.output(0))
    return before, openvino.Model(model.get_results(), [carried, *model.get_parameters()])


def _bottlenecks(model: openvino.Model, images: openvino.Output) -> list[openvino.Output]:
    """The maps through which everything after them sees the images, but for their size; in order."""

    def readers(value: openvino.Output) -> int:
        return sum(not _reads_size(reader.get_node(), images) for reader in value.get_target_inputs())

    unread = {_key(images): readers(images)}  # how many readers of what was computed are yet to come
    found = []
    for op in model.get_ordered_ops():
        sources = [_key(value) for value in op.input_values() if _key(value) in unread]
        if not sources or _reads_size(op, images):
            continue
        for source in sources:
            unread[source] -= 1
        unread |= {_key(value): readers(value) for value in op.outputs()}
        unread = {key: number for key, number in unread.items() if number}
        if [_key(value) for value in op.outputs()] == list(unread) and len(_shape(op.output(0))) == 4:
            found.append(op.output(0))
    return found


def _reads_size(op: openvino.Node, images: openvino.Output) -> bool:
    return op.get_type_name() == "ShapeOf" and _key(op.input_value(0)) == _key(images)


def _key(value: openvino.Output) -> tuple[str, int]:
    return value.get_node().get_name(), value.get_index()


def _shape(value: openvino.Output) -> list[int]:
    """(1, C, H, W), the batch counted as one image."""
    return [1, *(size.get_length() for size in list(value.get_partial_shape())[1:])]


def _exceeds(sides: list[int], limits: list[int]) -> bool:
    return all(side > limit for side, limit in zip(sides, limits, strict=True))
