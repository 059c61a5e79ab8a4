"""The compiled CUDA implementation of criss-cross attention.

`import ccnet_hf` attaches it: the first call on CUDA tensors loads a compiled library where one suits the GPU, and
goes on in PyTorch where none does. Nothing is compiled by an import or an installation; `python -m ccnet_hf.kernels
build` compiles, and `python -m ccnet_hf.kernels info` says what is in use.
"""

from .load import KernelInfo, attach, info, launches


__all__ = ["KernelInfo", "attach", "info", "launches"]
