"""Changes of layout, recognised by trying them on numbered elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.graph.flow import Step, refs
from octavo.graph.functions import operation

__all__ = ["map_of", "numbered", "shape_of", "slice_params", "slices_as"]

Params = dict[str, Any]


def numbered(shape: tuple[int, ...]) -> Tensor:
    """float64 0, 1, 2, ... of a shape."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def shape_of(x: Tensor, attempt: Callable[[Tensor], Tensor]) -> tuple[int, ...] | None:
    """Sizes of what `attempt` gives for a tensor; None where it takes none of that size."""
    try:
        return tuple(attempt(x).shape)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None


def map_of(x: Tensor, attempt: Callable[[Tensor], Tensor]) -> tuple[str, Params] | None:
    """Kind and parameters of the layout step that `attempt` is on `numbered` elements, or None."""
    try:
        y = attempt(x)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    if y.shape == x.shape and torch.equal(x, y):
        return "identity", {}
    if (
        x.dim() in (3, 4)
        and y.dim() == 2
        and y.shape[0] == x.shape[0]
        and torch.equal(y, x.flatten(1))
    ):
        return "flatten", {}
    if x.dim() == 2 and y.dim() == 4 and y.shape[0] == x.shape[0] and torch.equal(y.flatten(1), x):
        return "unflatten", {"size": list(y.shape[1:])}
    if x.dim() == 4 and y.dim() == 4:
        if y.shape == x.permute(0, 2, 3, 1).shape and torch.equal(y, x.permute(0, 2, 3, 1)):
            return "to_rows", {}
        if y.shape == x.permute(0, 3, 1, 2).shape and torch.equal(y, x.permute(0, 3, 1, 2)):
            return "to_image", {}
    if x.dim() in (3, 4) and y.dim() == x.dim() and y.numel() and y.shape[0] == x.shape[0]:
        if y.shape[2:] == x.shape[2:]:
            index = (y[0].flatten(1)[:, 0] / math.prod(x.shape[2:])).long()
            if (
                int(index.min()) >= 0
                and int(index.max()) < x.shape[1]
                and torch.equal(y, x[:, index])
            ):
                return "gather_channels", {"index": index.tolist()}
        elif x.dim() == 4 and y.shape[1] == x.shape[1]:
            return "slice", {}
    return None


def slice_params(step: Step, ndim: int) -> Params | None:
    """Start, stop (-1: the end) and stride of height and width, as written in an indexing call."""
    if operation(step.function) != "getitem" or len(step.args) != 2:
        return None
    index = step.args[1] if isinstance(step.args[1], tuple) else (step.args[1],)
    if index.count(Ellipsis) == 1:
        at = index.index(Ellipsis)
        index = index[:at] + (slice(None),) * (ndim - len(index) + 1) + index[at + 1 :]
    index = index + (slice(None),) * (ndim - len(index))
    if any(i != slice(None) for i in index[:2]):
        return None
    params = {}
    for name, part in zip("hw", index[2:], strict=True):
        if not isinstance(part, slice) or any(True for _ in refs(part)):
            return None
        start, stop, stride = (
            part.start or 0,
            -1 if part.stop is None else part.stop,
            part.step or 1,
        )
        if start < 0 or stride < 1 or (part.stop is not None and stop < 0):
            return None
        params[name] = [start, stop, stride]
    return params


def slices_as(attempt: Callable[[Tensor], Tensor], params: Params, x: Tensor) -> bool:
    """Whether `attempt` cuts images as `slice_params` says."""
    h, w = (slice(a, None if b < 0 else b, c) for a, b, c in (params["h"], params["w"]))
    return torch.equal(attempt(x), x[:, :, h, w])
