"""Scores as tables and files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ccnet_hf.visualization import format_share


MEANS = {"mean_iou": "mIoU", "mean_accuracy": "mAcc", "overall_accuracy": "aAcc"}


def class_table(scores: dict[str, Any], class_names: Sequence[str]) -> str:
    """IoU and accuracy of every class in percent, in aligned columns that are a Markdown table too.

    `-` stands for a class that is left out of the mean because it does not occur.
    """
    rows = [("class", "IoU", "accuracy")]
    for name, *values in zip(class_names, scores["per_category_iou"], scores["per_category_accuracy"], strict=True):
        rows.append((name, *("-" if math.isnan(value) else f"{100 * value:.2f}" for value in values)))
    width = max(len(name) for name, *_ in rows)
    lines = [f"| {name:{width}} | {iou:>6} | {accuracy:>8} |" for name, iou, accuracy in rows]
    return "\n".join([lines[0], f"|{'-' * (width + 2)}|{'-' * 7}:|{'-' * 9}:|", *lines[1:]])


def summary(scores: dict[str, Any]) -> str:
    """The means in percent, in one line."""
    return ", ".join(f"{short} {100 * scores[name]:.2f}" for name, short in MEANS.items())


def unlabelled_classes(
    counts: Sequence[int],
    num_ignored: int,
    ignore_index: int,
    class_names: Sequence[str] | None = None,
    counted: str = "",
) -> str | None:
    """One line on the classes without a labelled pixel and the fraction of ignored pixels; `None` where all have one.

    Args:
        counts: labelled pixels by class.
        num_ignored: pixels with the ignored id.
        ignore_index: that id.
        class_names: name per class; `None` where only ids are known.
        counted: which label maps were counted, where not all were.
    """
    named = [f"{label} ({name})" for label, name in enumerate(class_names or ())] or [*map(str, range(len(counts)))]
    missing = [name for name, count in zip(named, counts, strict=True) if not count]
    total = int(sum(counts)) + num_ignored
    if not missing or not total:
        return None
    named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    line = f"no pixel{f' {counted}' if counted else ''} is labelled {named}"
    if num_ignored:
        line += f"; {format_share(num_ignored / total)} are {ignore_index}, which is ignored"
        if not any(counts[1:]):
            line += f" (of masks of 0 and {ignore_index}, {ignore_index} has to become 1)"
    return line


def to_json(report: dict[str, Any]) -> str:
    """A report as JSON, with `null` for the NaN of classes that do not occur, which JSON cannot express."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(plain(report), indent=1) + "\n"
