"""Measure speed and memory: `op`, `model`, `growth`, `end_to_end`, `instances`, `memory` or `data` (`op --help`)."""

from ccnet_hf.benchmark import main
from ccnet_hf.benchmark.op import FORMS, Form


try:
    from triton_attention import triton_attention
except ImportError:  # PyTorch for the CPU alone comes without Triton
    pass
else:
    import torch

    FORMS["triton"] = Form(triton_attention, torch.channels_last, cuda_only=True, has_gradient=False)

if __name__ == "__main__":
    raise SystemExit(main())
