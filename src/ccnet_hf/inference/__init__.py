"""From images to label maps."""

from ccnet_hf.inference.logits import predict_logits
from ccnet_hf.inference.predictor import Predictor


__all__ = ["Predictor", "predict_logits"]
