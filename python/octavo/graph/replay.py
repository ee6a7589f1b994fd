"""Stands in for forwards of captured modules while data runs through the float model."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from octavo.graph.flow import Flow, bound
from octavo.nn.forwards import replaced_forwards

__all__ = ["call_tensors", "flow_arguments", "replayed"]


@contextlib.contextmanager
def replayed(
    model: nn.Module, flows: Iterable[Flow], handle: Callable[[Flow, tuple[Tensor, ...]], Any]
) -> Iterator[None]:
    """While the context lasts, calls that fit a flow go to ``handle(flow, tensors)``.

    Other calls (another argument structure, rank or number of channels) run the module's own
    forward.
    """
    owners = [(flow, model.get_submodule(flow.path)) for flow in flows]
    with replaced_forwards() as replace:
        for flow, module in owners:
            replace(module, _stand_in(flow, module.forward, handle))
        yield


def _stand_in(
    flow: Flow,
    original: Callable[..., Any],
    handle: Callable[[Flow, tuple[Tensor, ...]], Any],
) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def forward(*args: Any, **kwargs: Any) -> Any:
        tensors = flow_arguments(flow, signature, args, kwargs)
        if tensors is None or bound(flow, tensors) is None:
            return original(*args, **kwargs)
        return handle(flow, tensors)

    # Code that inspects the signature finds that of the module's own forward.
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def call_tensors(
    flow: Flow, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, ...] | None:
    """`flow_arguments`, without binding the call where it is tensors alone.

    There only ranks are compared; what runs the flow knows its channels.
    """
    if not kwargs and len(args) == len(flow.parameters) and not flow.constants:
        for name, value in zip(flow.parameters, args, strict=True):
            if not isinstance(value, Tensor) or (
                name in flow.shapes and value.dim() != len(flow.shapes[name])
            ):
                return None
        return args
    return flow_arguments(flow, signature, args, kwargs)


def flow_arguments(
    flow: Flow, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, ...] | None:
    """The flow's tensors out of a call's arguments; None if it was not captured for such a call."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None  # The forward itself words the error.
    bound.apply_defaults()
    tensors = []
    for name, value in bound.arguments.items():
        if name in flow.parameters:
            if not isinstance(value, Tensor) or not _same_form(value, flow.shapes.get(name)):
                return None
            tensors.append(value)
        elif name in flow.constants:
            constant = flow.constants[name]
            if type(value) is not type(constant) or value != constant:
                return None
        elif value not in ((), {}):
            return None
    return tuple(tensors) if len(tensors) == len(flow.parameters) else None


def _same_form(value: Tensor, shape: tuple[int, ...] | None) -> bool:
    """Whether rank and channels are those of the example."""
    if shape is None:
        return True
    if value.dim() != len(shape):
        return False
    channels = 1 if value.dim() in (3, 4, 5) else -1
    return value.dim() < 2 or value.shape[channels] == shape[channels] or value.dim() == 3
