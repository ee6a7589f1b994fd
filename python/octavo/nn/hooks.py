"""Whether a module's calls are seen, so that none may be left out."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["any_global", "is_watched"]


def is_watched(module: nn.Module) -> bool:
    """Whether a hook would see a call of the module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )


def any_global() -> bool:
    """Whether hooks are there that see the calls of all modules."""
    return bool(
        torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    )
