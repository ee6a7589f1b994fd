"""What a float model is like, as far as the choice of bits depends on it."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from octavo.data import Batches, Call
from octavo.nn.decomposed.decompose import decompose, is_decomposable
from octavo.nn.registry import (
    facts_of,
    family_of,
    float_reasons,
    is_depthwise,
    looks_up,
    registered_class,
)
from octavo.nn.surgery import copy_model

__all__ = ["Left", "Traits", "traits"]

Family = Literal["convolutional", "recurrent", "transformer", "embedding", "linear", "none"]
KINDS = ("convolution", "depthwise", "linear", "embedding", "recurrent")


@dataclass(frozen=True)
class Left:
    """Layers of one type that have to stay float, and how many weights they hold together."""

    type: str
    reason: str
    layers: int
    weights: int


@dataclass(frozen=True)
class Traits:
    """A model in figures.

    Attributes:
        family: kind of network that most of its weights or of its work belong to.
        weights: numbers in the weights of each kind of layer (`KINDS`).
        eligible: numbers in the weights of layers that octavo can quantize.
        float_bytes: parameters and buffers.
        depthwise: patterns of names that match the depthwise convolutions and no other layer.
        attention: modules that look like attention.
        generates: whether its output is scores of a vocabulary, as in models that write text.
        left: layers that cannot be quantized, the largest first.
        samples: in a batch of data; None without data.
        multiplies: multiply-adds of that batch; None without data.
    """

    family: Family
    weights: dict[str, int]
    eligible: int
    float_bytes: int
    depthwise: tuple[str, ...] = ()
    attention: int = 0
    generates: bool = False
    left: tuple[Left, ...] = ()
    samples: int | None = None
    multiplies: int | None = None

    @property
    def uses(self) -> float | None:
        """How often a weight is used in one call: multiply-adds a weight, look-ups left out."""
        count = sum(self.weights.values()) - self.weights["embedding"]
        return None if self.multiplies is None or not count else self.multiplies / count

    def share(self, kind: str) -> float:
        """Share of the weights that are of this kind, 0..1."""
        return self.weights[kind] / max(sum(self.weights.values()), 1)

    def __str__(self) -> str:
        parts = [f"{kind} {100 * self.share(kind):.0f} %" for kind in KINDS if self.weights[kind]]
        text = f"{self.family}, {sum(self.weights.values()) / 1e6:,.2f} M weights"
        text += f" ({', '.join(parts)})" if parts else ""
        if self.depthwise:
            text += f", depthwise: {', '.join(self.depthwise[:3])}"
            text += ", ..." if len(self.depthwise) > 3 else ""
        if self.uses is not None:
            text += f", a weight is used {self.uses:.3g} times in a call"
        return text


@torch.no_grad()
def traits(model: nn.Module, batches: Batches | None = None) -> Traits:
    """The traits of a float model.

    Args:
        model: in evaluation mode; it stays as it is.
        batches: the first of them is run, to count multiplies; where a callable runs the model, it
            is called once.
    """
    if is_decomposable(model):  # As `quantize` sees it, but with the same tensors.
        model = decompose(copy_model(model, shared=(*model.parameters(), *model.buffers())))
    weights = dict.fromkeys(KINDS, 0)
    reasons = float_reasons(model)
    left: dict[tuple[str, str], list[int]] = {}
    depthwise: list[str] = []
    eligible = 0
    # A table that is also the weight of a linear layer counts as that layer.
    heads = {id(m.weight) for m in model.modules() if _is_linear_layer(m)}
    seen: set[int] = set()
    recurrent = {
        id(layer) for m in model.modules() if _kind(m) == "recurrent" for layer in m.children()
    }
    for name, module in model.named_modules():
        kind = "recurrent" if id(module) in recurrent else _kind(module)
        skipped = seen | heads if kind == "embedding" else seen
        own = [p for p in module.parameters(recurse=False) if p.dim() > 1 and id(p) not in skipped]
        seen |= {id(p) for p in own}
        count = sum(p.numel() for p in own)
        if kind:
            weights[kind] += count
        if kind == "depthwise":
            depthwise.append(name)
        if name in reasons and not reasons[name]:
            eligible += count
        elif name in reasons and count:
            found = left.setdefault((type(module).__name__, reasons[name]), [0, 0])
            found[0] += 1
            found[1] += count
    attention = sum(_is_attention(module) for module in model.modules())
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    call = None if batches is None else next(iter(batches.recorded(model)), None)
    return Traits(
        _family(weights, attention),
        weights,
        eligible,
        sum(tensors.values()),
        _patterns(depthwise, [name for name in reasons if name not in depthwise]),
        attention,
        _generates(model, attention),
        tuple(
            sorted((Left(*key, *value) for key, value in left.items()), key=lambda x: -x.weights)
        ),
        None if call is None else call.samples,
        None if call is None else _multiplies(model, call),
    )


def _kind(module: nn.Module) -> str:
    """One of `KINDS`, or ""."""
    kind = "depthwise" if is_depthwise(module) else family_of(module)
    return kind if kind in KINDS else ""


def _is_linear_layer(module: nn.Module) -> bool:
    facts = registered_class(module)
    return facts is not None and facts.family == "linear"


def _is_attention(module: nn.Module) -> bool:
    """By its name, as libraries write it; attention over channels alone is none."""
    name = type(module).__name__.lower()
    return "attention" in name and "channel" not in name and any(True for _ in module.parameters())


def _family(weights: dict[str, int], attention: int) -> Family:
    total = sum(weights.values())
    if not total:
        return "none"
    convolutions = weights["convolution"] + weights["depthwise"]
    if weights["recurrent"] >= 0.25 * total:
        return "recurrent"
    if attention and weights["linear"] > convolutions:
        return "transformer"
    if weights["embedding"] > 0.5 * total:
        return "embedding"
    # Linear layers between depthwise ones are convolutions of size 1 (ConvNeXt).
    if weights["depthwise"] or convolutions >= 0.1 * total:
        return "convolutional"
    return "linear"


def _generates(model: nn.Module, attention: int) -> bool:
    can: Any = getattr(model, "can_generate", None)
    if callable(can):
        return bool(can())
    tables = {_rows_of(m) for m in model.modules() if looks_up(m)}
    heads = {_rows_of(m) for m in model.modules() if _is_linear_layer(m)}
    return bool(attention and tables & heads)


def _rows_of(layer: nn.Module) -> int:
    """Rows of the canonical weight: entries of a table, output features of a linear layer."""
    return facts_of(layer).canonical_weight(layer).shape[0]


def _patterns(names: list[str], others: list[str]) -> tuple[str, ...]:
    """Globs for the names, shortened where no other name would match."""
    found: dict[str, None] = {}
    for name in names:
        shorter = (re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=n) for n in (0, 2, 1))
        found[next((p for p in shorter if not fnmatch.filter(others, p)), name)] = None
    return tuple(found)


def _multiplies(model: nn.Module, call: Call) -> int:
    """Multiply-adds of one call, by torch's own counter."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # One operator that it does not count.
    try:
        with FlopCounterMode(display=False) as counter:
            model(*call.args, **call.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops()) // 2
