"""From pictures to label maps."""

from ccnet_hf.inference.predictor import Predictor, predict_logits


__all__ = ["Predictor", "predict_logits"]
