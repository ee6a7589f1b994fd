"""Fake-quantizers: modules that round a value, or a layer's weight, as the integer model stores it.

Each is one call of a fused operator. They stand inside the layers of a trainee
(`octavo.nn.trained_layer`), so that their state travels with it: in state_dict, copies, pickles,
and across processes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from octavo import ops
from octavo.numerics.grids import Snap, largest_level, spread
from octavo.numerics.scheme import MIN_SCALE, QParams, Scheme

__all__ = [
    "METHODS",
    "FakeQuantize",
    "FakeQuantizeWeight",
    "Monitor",
    "default_method",
    "is_recomputing",
]

METHODS = ("ste", "lsq", "lsq+", "pact", "dorefa")
"""How ranges are found in training.

ste: activations by a moving average of their range, weights by their largest magnitude.
lsq: steps are trained (LSQ, arXiv 1902.08153). lsq+: zero points of activations too (2004.09576).
pact: the upper end of activations that are never negative is trained (1805.06085); the rest is ste.
dorefa: weights are tanh(w), activations keep their calibrated range (1606.06160).
"""

_LEARNED = frozenset({"lsq", "lsq+"})
_MOMENTUM = 0.05


def default_method(bits: int) -> str:
    """The default method: "ste" for 8 to 5 bits, "lsq" below."""
    return "ste" if bits >= 5 else "lsq"


class Monitor:
    """Warns where values stop being finite: once a step, at the first layer. One a trainee."""

    def __init__(self) -> None:
        self.reported = 0

    def report(self, what: str, count: int, step: int, low: float, high: float) -> None:
        """Warns that a value holds ``count`` numbers that are not finite."""
        if step == self.reported:
            return  # Everything behind the first one is spoilt as well.
        self.reported = step
        warnings.warn(
            f"training: {what} must be finite, got {count} NaN or infinite values in training "
            f"step {step}. Its range stays at {low:.4g} .. {high:.4g}. Skip this batch; usual "
            "causes are the learning rate and overflow in float16.",
            RuntimeWarning,
            stacklevel=2,
        )


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass: gradient checkpointing repeats it there."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _zero_where_not_finite(gradient: Tensor) -> Tensor:
    return torch.nan_to_num(gradient, 0.0, 0.0, 0.0)


def _kept_finite(step: Tensor) -> Tensor:
    """``step``, whose gradient is 0 where NaN or infinity in a batch has spoilt it."""
    if not step.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return step
    seen = step.view_as(step)
    seen.register_hook(_zero_where_not_finite)  # type: ignore[no-untyped-call]
    return seen


class FakeQuantize(nn.Module):
    """One activation, fake-quantized: codes 0 .. 2^bits - 1, zero among them.

    Attributes:
        what: names the value in messages.
        bits: width of its codes.
        method: a row of `METHODS`.
        relu: whether max(x, 0) is part of it.
        is_frozen: whether its range is frozen in training too.
    """

    scale: Tensor
    zero_point: Tensor
    alpha: Tensor
    start: Tensor
    range: Tensor

    def __init__(
        self, start: QParams, method: str, what: str, monitor: Monitor, relu: bool = False
    ) -> None:
        super().__init__()
        self.what, self.bits, self.relu = what, start.bits, relu
        self.is_frozen = False
        self.monitor = monitor
        self.calls = 0
        if method == "pact" and start.zero_point != 0:
            method = "ste"  # A clip from 0 upward does not fit values of both signs.
        self.method = method
        scale, zero = float(start.scale), float(start.zero_point)
        if method in _LEARNED:
            self.scale = nn.Parameter(torch.tensor([scale], dtype=torch.float32))
            zero_point = torch.tensor([zero], dtype=torch.float32)
            if method == "lsq+":
                self.zero_point = nn.Parameter(zero_point)
            else:
                self.register_buffer("zero_point", zero_point)
            self.register_buffer("start", torch.tensor([scale], dtype=torch.float32))
        elif method == "pact":
            self.alpha = nn.Parameter(torch.tensor([scale * self.qmax], dtype=torch.float32))
            self.register_buffer("start", self.alpha.detach().clone())
        else:
            ends = torch.tensor([-zero * scale, (self.qmax - zero) * scale], dtype=torch.float32)
            self.register_buffer("range", ends)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to what its codes stand for."""
        with ops.saved_as_codes(x):  # It may have been stored in another width before.
            return self._quantized(x)

    def _quantized(self, x: Tensor) -> Tensor:
        if self.method in _LEARNED:
            return self._learned(x)
        if self.method == "pact":
            alpha = self.alpha.detach() if self.is_frozen else _kept_finite(self.alpha)
            if not self._check_learned(alpha):
                return ops.fake_quantize_clipped(x, alpha, bits=self.bits)
            y, finite = ops.fake_quantize_clipped_watched(x, alpha, bits=self.bits)
            self._report(x, finite)
            return y
        return self._observed(x)

    def _learned(self, x: Tensor) -> Tensor:
        scale, zero_point = self.scale, self.zero_point
        if self.is_frozen:
            scale, zero_point = scale.detach(), zero_point.detach()
        else:
            scale, zero_point = _kept_finite(scale), _kept_finite(zero_point)
        features = x.numel() // max(x.shape[0], 1) if x.dim() > 1 else x.numel()
        rule: dict[str, Any] = {
            "qmin": 0,
            "qmax": self.qmax,
            "grad_scale": 1.0 / math.sqrt(max(features, 1) * self.qmax),
            "relu": self.relu,
        }
        if not self._check_learned(scale):
            return ops.fake_quantize_learned(x, scale, zero_point, **rule)
        y, finite = ops.fake_quantize_learned_watched(x, scale, zero_point, **rule)
        self._report(x, finite)
        return y

    def _report(self, x: Tensor, finite: bool) -> None:
        """Says where values of a trained step are not finite."""
        if not finite:
            count, params = int((~torch.isfinite(x.detach())).sum()), self.qparams()
            ends = [params.scale * (code - params.zero_point) for code in (0, params.qmax)]
            self.monitor.report(self.what, count, self.calls, *ends)

    def _observed(self, x: Tensor) -> Tensor:
        update = (
            self.training
            and not self.is_frozen
            and self.method != "dorefa"
            and not is_recomputing()
        )
        if update and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._observe_together(x)
            update = False
        watch = self.method == "dorefa" and self.training and not is_recomputing()
        if watch and not torch.compiler.is_compiling():
            # A calibrated range is frozen: with momentum 0 values are observed and change nothing.
            rule = {**self._rule(), "momentum": 0.0, "rule": "minmax"}
            update = True
        else:
            rule = self._rule()
        observed = ops.observe_fake_quantize(x, self.range, update=update, relu=self.relu, **rule)
        if update and not torch.compiler.is_compiling():
            self.calls += 1
            bad = int(observed.non_finite)
            if bad:
                self.monitor.report(self.what, bad, self.calls, *self.range.tolist())
        return observed.y

    def _rule(self) -> dict[str, Any]:
        """Eight bits afford the whole range, fewer one that is clipped for the smallest error."""
        rule = "minmax" if self.bits == 8 else "mse"
        return {"qmin": 0, "qmax": self.qmax, "momentum": _MOMENTUM, "rule": rule}

    @torch.no_grad()
    def _observe_together(self, x: Tensor) -> None:
        """Moves the range by what all processes see.

        All start from one range, so the outermost of the moved ones is the one that the outermost
        ends of all batches give.
        """
        observed = ops.observe_fake_quantize(x, self.range, relu=self.relu, **self._rule())
        self.calls += 1
        bad = int(observed.non_finite)
        if bad:
            self.monitor.report(self.what, bad, self.calls, *self.range.tolist())
        ends = self.range * self.range.new_tensor([-1.0, 1.0])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        self.range.copy_(ends * ends.new_tensor([-1.0, 1.0]))

    def _check_learned(self, step: Tensor) -> bool:
        """Whether this is a training step to be watched; ValueError if its step is spoilt."""
        watched = self.training and not torch.compiler.is_compiling() and not is_recomputing()
        if watched:
            self.calls += 1
            value = float(step.detach())
            if not math.isfinite(value):
                raise ValueError(
                    f"training: the step of {self.what} must be finite, got {value} in training "
                    f"step {self.calls}. Go back to the last good state and skip batches whose "
                    "loss is not finite."
                )
        return watched

    @torch.no_grad()
    def qparams(self) -> QParams:
        """The parameters in use, as the integer model takes them."""
        if self.method in _LEARNED:
            scale = self.scale.abs().clamp_min(MIN_SCALE)
            zero = self.zero_point.round().clamp(0, self.qmax)
        elif self.method == "pact":
            scale = (self.alpha / self.qmax).abs().clamp_min(MIN_SCALE)
            zero = torch.zeros(1, dtype=torch.float32)
        else:
            observed = ops.observe_fake_quantize(
                torch.zeros(1, dtype=torch.float32), self.range, update=False, **self._rule()
            )
            scale, zero = observed.scale, observed.zero_point
        return QParams(float(scale), int(zero), self.bits)

    def has_moved(self) -> bool | None:
        """Whether a trained step differs from its start; None where nothing is trained."""
        if self.method in _LEARNED:
            return not torch.equal(self.scale.detach(), self.start)
        return not torch.equal(self.alpha.detach(), self.start) if self.method == "pact" else None

    def extra_repr(self) -> str:
        """Width and method."""
        return f"{self.bits} bits, {self.method}" + (", relu" if self.relu else "")


class FakeQuantizeWeight(nn.Module):
    """A layer's weight, fake-quantized per output channel or group of inputs on its scheme's grid.

    Attributes:
        scheme: width of the codes.
        method: a row of `METHODS`.
        axis: dimension of the output channels.
        scale: float32 [O], or [O, groups], of which bfloat16 numbers are used; a Parameter where
            steps are trained, else a buffer that each training step computes again: ratio * largest
            magnitude / largest level, or ratio * range / (2^bits - 1) with zero points.
        zero_point: float32 of the same shape, None where the scheme is symmetric; a Parameter with
            "lsq+", frozen with "lsq", else computed again like the scale.
        ratio: float32 of the same shape, where the clip that was best at the start lies.
        levels: int8 [tables, 2^bits] of a grid other than "linear"; they never change.
    """

    scale: Tensor
    ratio: Tensor
    start: Tensor
    levels: Tensor | None
    zero_point: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        scheme: Scheme,
        method: str,
        *,
        axis: int,
        what: str,
        levels: Tensor | None = None,
        zero_point: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("levels", levels)
        zero_point = None if zero_point is None else zero_point.float().view_as(scale)
        self._top = largest_level(scheme) if scheme.symmetric else scheme.codes - 1
        self.scheme, self.axis, self.what = scheme, axis, what
        self.is_frozen = False
        self.method = method if method in ("lsq", "lsq+", "dorefa") else "ste"
        if method == "lsq+" and zero_point is not None:
            self.zero_point = nn.Parameter(zero_point)
        else:
            self.register_buffer("zero_point", zero_point)
        if self.method in _LEARNED:
            self.scale = nn.Parameter(scale.clone())
            self.register_buffer("start", scale.clone())
            return
        self.register_buffer("scale", scale.clone())
        ratio = torch.ones_like(scale)
        if self.method == "ste":
            widest = self._widest(*self._ends(weight))
            ratio = torch.where(widest > 0, scale / widest, ratio).clamp(0.01, 1.0)
        self.register_buffer("ratio", ratio)
        self._refresh(self._shaped(weight.detach()))

    def _ends(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [O] or [O, groups]: the range of each channel or group."""
        if self.scheme.group_size:
            rows = weight.detach().movedim(self.axis, 0).flatten(1).float()
            size = self.scheme.group_size
            padded = functional.pad(rows, (0, -rows.shape[1] % size)).view(rows.shape[0], -1, size)
            return padded.amin(2), padded.amax(2)
        if weight.is_cpu:  # In one pass, without a copy.
            (low, high), bad = ops.minmax_per_channel(weight.detach(), self.axis)
            return low, torch.where(bad == 0, high, torch.inf)
        rows = weight.detach().movedim(self.axis, 0).float()
        rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
        return rows.amin(1), rows.amax(1)

    def _widest(self, low: Tensor, high: Tensor) -> Tensor:
        """The scale that clips nothing of a range."""
        if self.scheme.symmetric:
            return torch.maximum(-low, high) / self._top
        return (high.clamp(min=0) - low.clamp(max=0)) / (self.scheme.codes - 1)

    def _shaped(self, weight: Tensor) -> Tensor:
        """DoReFa's tanh; its division by the maximum is undone by the scale and left out."""
        return weight.tanh() if self.method == "dorefa" else weight

    @torch.no_grad()
    def _refresh(self, weight: Tensor) -> Tensor:
        low, high = self._ends(weight)
        widest = self._widest(low, high)
        scale = (widest * self.ratio).clamp_min(MIN_SCALE)
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(scale).all()):
            raise ValueError(
                f"training: the weight of {self.what} must be finite, got NaN or infinite values. "
                "Go back to the last good state and skip batches whose loss is not finite."
            )
        scale = self._storable(scale)
        self.scale.copy_(scale)
        if self.zero_point is not None:
            zero = (-low.clamp(max=0) / widest.clamp_min(MIN_SCALE)).round()
            self.zero_point.copy_(zero.clamp(0, self.scheme.codes - 1))
        return scale

    def _storable(self, scale: Tensor) -> Tensor:
        """The scale as the integer model has it: bfloat16 for groups. Its gradient passes on."""
        if not self.scheme.group_size:
            return scale
        return scale + (scale.bfloat16().float() - scale).detach()

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` rounded to what its codes stand for."""
        learned, grad_scale = self.method in _LEARNED, 1.0
        shaped = self._shaped(weight)
        if learned:
            scale = self.scale.detach() if self.is_frozen else _kept_finite(self.scale)
            scale = self._storable(scale)
            per_scale = weight.numel() // max(weight.shape[self.axis], 1)
            per_scale = min(per_scale, self.scheme.group_size or per_scale)
            grad_scale = 1.0 / math.sqrt(max(per_scale, 1) * self._top)
        else:
            update = self.training and not self.is_frozen and not is_recomputing()
            # Not the buffer where it moves: that would change before the backward pass.
            scale = self._refresh(shaped) if update else self.scale
        if self.axis and (self.levels is not None or self.scheme.group_size):
            # Tables and groups are those of rows.
            y = self._snapped(shaped.movedim(self.axis, 0), scale, 0, grad_scale)
            return y.movedim(0, self.axis)
        return self._snapped(shaped, scale, self.axis, grad_scale)

    def _snapped(self, weight: Tensor, scale: Tensor, axis: int, grad_scale: float) -> Tensor:
        learned, size = self.method in _LEARNED, self.scheme.group_size
        if self.levels is not None:
            return ops.fake_quantize_levels(
                weight, self.levels, scale, group_size=size, learned=learned, grad_scale=grad_scale
            )
        zero = self.zero_point
        ends: dict[str, Any] = {"qmin": self.scheme.qmin, "qmax": self.scheme.qmax}
        if zero is not None:
            ends = {"qmin": 0, "qmax": self.scheme.codes - 1}
        if learned:
            if zero is not None:
                zero = zero.detach() if self.is_frozen else _kept_finite(zero)
            return ops.fake_quantize_learned(
                weight, scale, zero, axis=axis, group_size=size, grad_scale=grad_scale, **ends
            )
        # Not the buffer: the next step moves it before the backward pass of this one may come.
        zero = None if zero is None else zero.clone()
        return ops.fake_quantize(weight, scale, zero, axis=axis, group_size=size, **ends)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """int8 levels of ``weight`` with output channels first, float32 scale, zero points."""
        scale = self._storable(self.scale.detach()).abs().clamp_min(MIN_SCALE)
        rows = self._shaped(weight.detach()).float().movedim(self.axis, 0).contiguous()
        flat = rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
        steps = spread(1.0 / scale, self.scheme.group_size, flat.shape[1])
        zero = self.zero_point
        if zero is not None:
            zero = zero.detach().round().clamp(0, self.scheme.codes - 1).to(torch.uint8)
            zero = zero.view(len(rows), -1)
        values = Snap(self.scheme, self.levels, zero)(flat * steps)
        return values.to(torch.int8).view(rows.shape), scale, zero

    def has_moved(self) -> bool | None:
        """Whether a trained step differs from its start; None where nothing is trained."""
        if self.method not in _LEARNED:
            return None
        return not torch.equal(self.scale.detach(), self.start)

    def extra_repr(self) -> str:
        """Width, levels and method."""
        grid = "" if self.scheme.grid == "linear" else f" {self.scheme.grid}"
        return f"{self.scheme.bits} bits{grid}, {self.method}"
