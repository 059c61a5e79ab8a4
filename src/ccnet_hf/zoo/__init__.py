"""The model zoo: CCNet checkpoints of mmsegmentation and of the authors as folders that `from_pretrained` reads."""

from ccnet_hf.zoo.mmsegmentation import convert_checkpoint, mmsegmentation_key
from ccnet_hf.zoo.to_mmsegmentation import export_checkpoint


__all__ = ["convert_checkpoint", "export_checkpoint", "mmsegmentation_key"]
