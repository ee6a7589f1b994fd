"""Scales and biases of all layers learned at once, for the outputs of the float model.

Chen et al., "EfficientQAT" (2024), section 3.3: codes stay, scales are learned end to end; here
biases too, and the outputs of the float model are what is aimed at, so that no labels are needed.
Errors of layers and blocks add up on their way, and few numbers at every layer take back much of
it: MobileNetV2 at 4 bits, squared error of the logits on images not seen 1.48 before, 0.95 after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from octavo.data import Batches, Call, float_tensors
from octavo.interrupts import let_through
from octavo.nn.forwards import replaced_forwards
from octavo.nn.kept_state import state_kept
from octavo.nn.registry import canonical_weight, looks_up
from octavo.numerics.codes import Codes
from octavo.rounding.blocks import apply_layer
from octavo.rounding.learnable import LearnableScales, descend
from octavo.rounding.sample_budget import training_calls

__all__ = ["tune"]

_STEPS = 300  # At most,
_EPOCHS = 10  # and no more than so many passes over the data.
_HELD_OUT = 8  # One call in this many is held out.


def tune(
    model: nn.Module, codes: Mapping[str, Codes], batches: Batches, progress: bool = True
) -> tuple[dict[str, Codes], str | None]:
    """Codes with other scales and biases, and a message where nothing could be learned.

    What does not lower the error on calls held out is not kept. Activations are floats meanwhile.

    Args:
        model: the float model. It comes back as it was.
        codes: of its layers.
        batches: the data.
        progress: whether to show a bar on stderr.
    """
    unchanged = dict(codes)
    calls = training_calls(model, batches)
    if calls is None:
        return unchanged, _why("gradients of one batch would need too much memory; make it smaller")
    held, learn = calls[::_HELD_OUT], [c for i, c in enumerate(calls) if i % _HELD_OUT]
    if not learn:
        return unchanged, _why("there is one batch only")
    layers = {
        name: LearnableScales(canonical_weight(model.get_submodule(name)), code)
        for name, code in codes.items()
        if not looks_up(model.get_submodule(name))
    }
    if not layers:
        return unchanged, None
    before = _mean_error(model, unchanged, held)
    if before == 0:
        return unchanged, None
    if not before < math.inf:
        return unchanged, _why("the outputs are not finite")
    tables = {name: code.dequantize() for name, code in codes.items() if name not in layers}

    def weights(name: str) -> tuple[Tensor, Tensor | None]:
        layer = layers.get(name)
        return (layer.weight(), layer.bias) if layer else (tables[name], None)

    with torch.enable_grad():
        if not _error(model, codes, weights, learn[0]).requires_grad:
            return unchanged, _why("the outputs have no gradients")
        _learn(
            list(layers.values()),
            learn,
            lambda c: _error(model, codes, weights, c) / before,
            progress,
        )
    tuned = unchanged | {name: layer.hard() for name, layer in layers.items()}
    return (tuned if _mean_error(model, tuned, held) < before else unchanged), None


def _why(reason: str) -> str:
    return f"scales and biases were not learned end to end: {reason}"


def _learn(
    layers: Sequence[LearnableScales],
    calls: Sequence[Call],
    error: Callable[[Call], Tensor],
    progress: bool,
) -> None:
    """Descends on the error of calls in random order."""
    steps = min(_STEPS, _EPOCHS * len(calls))
    typical = [max(float(layer.bias.detach().abs().mean()), 1e-6) for layer in layers]
    rate = 2 * LearnableScales.way / steps
    optimizer = torch.optim.Adam(
        [
            {"params": [layer.learned for layer in layers], "lr": rate},
            *(
                {"params": [layer.bias], "lr": rate * size}
                for layer, size in zip(layers, typical, strict=True)
            ),
        ]
    )
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []
    label = "octavo: scales and biases"
    for _ in tqdm(range(steps), desc=label, unit="step", disable=not progress, leave=False):
        order = order or torch.randperm(len(calls), generator=generator).tolist()
        descend(optimizer, error(calls[order.pop()]))
        slower.step()


def _mean_error(model: nn.Module, codes: Mapping[str, Codes], calls: Sequence[Call]) -> float:
    """Of codes, over calls."""
    real = {name: (code.dequantize(), code.bias) for name, code in codes.items()}
    with torch.no_grad():
        return sum(float(_error(model, codes, real.__getitem__, c)) for c in calls) / len(calls)


def _error(
    model: nn.Module,
    names: Mapping[str, object],
    weights: Callable[[str], tuple[Tensor, Tensor | None]],
    call: Call,
) -> Tensor:
    """Mean squared error of the outputs, each in units of its variance."""
    with torch.no_grad(), state_kept(model):
        wanted = list(float_tensors(let_through(model, *call.args, **call.kwargs)))
    with _installed(model, names, weights), state_kept(model):
        got = list(float_tensors(let_through(model, *call.args, **call.kwargs)))
    total = torch.zeros((), dtype=torch.float32)
    for in_float, y in zip(wanted, got, strict=False):
        if y.shape == in_float.shape and y.numel() > 1:
            total = total + (y - in_float).square().mean() / in_float.var().clamp(min=1e-12)
    return total


@contextmanager
def _installed(
    model: nn.Module,
    names: Mapping[str, object],
    weights: Callable[[str], tuple[Tensor, Tensor | None]],
) -> Iterator[None]:
    """Layers that compute with other weights meanwhile."""
    modules = {name: model.get_submodule(name) for name in names}

    def stand_in(name: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:
            y = apply_layer(module, input, *weights(name))
            return y.to(input.dtype) if input.is_floating_point() else y

        return forward

    with replaced_forwards() as replace:
        for name, module in modules.items():
            replace(module, stand_in(name, module))
        yield
