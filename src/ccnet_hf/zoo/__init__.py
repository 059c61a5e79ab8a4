"""The model zoo: mmsegmentation's 16 CCNet checkpoints as folders that `from_pretrained` reads."""

from ccnet_hf.zoo.conversion import convert_checkpoint, mmsegmentation_key


__all__ = ["convert_checkpoint", "mmsegmentation_key"]
