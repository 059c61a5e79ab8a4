"""Scores: the metric and the loop over a split."""

from ccnet_hf.evaluation.evaluator import evaluate_dataset
from ccnet_hf.evaluation.metric import MeanIoU


__all__ = ["MeanIoU", "evaluate_dataset"]
