"""Keep the PyTorch implementation within the compiled library's reach."""

import torch


# A library unregisters what it registered when it is collected.
_kept: list[torch.library.Library] = []


def keep_pytorch_form(namespace: str, operators: list[str]) -> None:
    """Register the operators' PyTorch implementation a second time, with `_torch` behind their names.

    The compiled library takes the operators' own names on CUDA, and calls these for what its kernels do not take, such
    as float64 and three spatial axes. Twice is once.

    Args:
        namespace: namespace of the operators, which are defined.
        operators: their names.
    """
    library = torch.library.Library(namespace, "FRAGMENT")
    for name in operators:
        if hasattr(getattr(torch.ops, namespace), f"{name}_torch"):
            continue
        # One implementation serves every device, and on the CPU nothing else ever takes its place.
        kernel = torch.library.get_kernel(f"{namespace}::{name}", "CPU")
        _, _, signature = str(getattr(getattr(torch.ops, namespace), name).default._schema).partition("(")
        library.define(f"{name}_torch({signature}")
        library.impl(f"{name}_torch", kernel.call_boxed, "CompositeExplicitAutograd", with_keyset=True)
    _kept.append(library)
