"""Scores: the metric and the loop over a split."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ccnet_hf.evaluation.evaluator import evaluate_dataset
    from ccnet_hf.evaluation.metric import MeanIoU
    from ccnet_hf.evaluation.trainer_metrics import compute_metrics

_MODULES = {"MeanIoU": "metric", "compute_metrics": "trainer_metrics", "evaluate_dataset": "evaluator"}


def __getattr__(name: str) -> Any:
    """Import what is asked for not before it is: it needs the extra `train`, the options of the commands do not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["MeanIoU", "compute_metrics", "evaluate_dataset"]
