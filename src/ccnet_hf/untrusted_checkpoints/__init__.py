"""Foreign checkpoints, read without running code from them: PyTorch's `.pth` files and Paddle's `.pdparams`."""

from ccnet_hf.untrusted_checkpoints.state_dict import check_hash, has_hash, read_state_dict


__all__ = ["check_hash", "has_hash", "read_state_dict"]
