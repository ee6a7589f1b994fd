"""When ranges and BatchNorm statistics stop moving, in fractions of the training's steps."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from octavo.data import Batches
from octavo.errors import describe
from octavo.interrupts import held_back
from octavo.nn.fake_quantize import FakeQuantize
from octavo.nn.registry import is_batch_norm
from octavo.signature import known_arguments
from octavo.training.freeze import check_trainee
from octavo.types import Data, Model

__all__ = ["TrainingSchedule", "reestimate_batch_norm"]


class TrainingSchedule:
    """Tells a trainee how far its training is.

    Moving ranges follow the values until ``freeze_ranges``, BatchNorm statistics until
    ``freeze_statistics``; from there on BatchNorm computes with what it has gathered, in training
    mode too, so that the last part of the training sees the very network that will be executed.
    Steps that are trained ("lsq") and all weights are trained to the end. Without a schedule
    nothing ever freezes, and `octavo.freeze` uses the ranges and statistics of that moment.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> trainee = octavo.quantize(model, 4, data=torch.randn(8, 3, 8, 8), qat=True)
        >>> schedule = octavo.TrainingSchedule(trainee, steps=100)
        >>> for _ in range(100):
        ...     schedule.step()  # after optimizer.step()
        >>> schedule
        TrainingSchedule(step 100 of 100, ranges frozen, statistics frozen)

    Args:
        trainee: what is trained; the bare one where it is wrapped.
        steps: how often the optimizer will step in all.
        freeze_ranges: fraction of the steps after which moving ranges are frozen; 1.0: never.
        freeze_statistics: fraction of the steps after which BatchNorm statistics are frozen; 1.0:
            never.
    """

    @known_arguments
    def __init__(
        self,
        trainee: nn.Module,
        steps: int,
        *,
        freeze_ranges: float = 0.75,
        freeze_statistics: float = 0.9,
    ) -> None:
        check_trainee(trainee, "TrainingSchedule")
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"TrainingSchedule: steps must be an integer, got {describe(steps)}.")
        if steps < 1:
            raise ValueError(f"TrainingSchedule: steps must be at least 1, got {steps}.")
        for name, value in (
            ("freeze_ranges", freeze_ranges),
            ("freeze_statistics", freeze_statistics),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"TrainingSchedule: {name} must lie in 0..1, a fraction of the steps, "
                    f"got {value}."
                )
        self.trainee, self.steps, self.step_count = trainee, steps, 0
        self.freeze_ranges, self.freeze_statistics = freeze_ranges, freeze_statistics
        self._apply()

    def step(self) -> None:
        """One step of the optimizer is done."""
        self.step_count += 1
        self._apply()

    @property
    def ranges_frozen(self) -> bool:
        """Whether moving ranges are frozen from now on."""
        return self._is_past(self.freeze_ranges)

    @property
    def statistics_frozen(self) -> bool:
        """Whether BatchNorm statistics are frozen from now on."""
        return self._is_past(self.freeze_statistics)

    def _is_past(self, fraction: float) -> bool:
        return fraction < 1.0 and self.step_count >= fraction * self.steps

    def _apply(self) -> None:
        state = self.ranges_frozen, self.statistics_frozen
        if getattr(self, "_applied", None) == state:
            return
        self._applied = state
        for module in self.trainee.modules():
            if isinstance(module, FakeQuantize) and "range" in module._buffers:
                module.is_frozen = state[0]
            elif is_batch_norm(module):
                _keep_still(module, state[1])

    def state_dict(self) -> dict[str, Any]:
        """The state of the schedule, to resume from later."""
        return {"step_count": self.step_count, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a `state_dict`."""
        self.step_count, self.steps = int(state["step_count"]), int(state["steps"])
        self._apply()

    def __repr__(self) -> str:
        moving = ("moving", "frozen")
        return (
            f"TrainingSchedule(step {self.step_count} of {self.steps}, ranges "
            f"{moving[self.ranges_frozen]}, statistics {moving[self.statistics_frozen]})"
        )


def _keep_still(norm: nn.Module, still: bool) -> None:
    """Has a BatchNorm stay in evaluation mode whatever train() says, or follow it again."""
    was_still = norm.__dict__.pop("train", None) is not None
    if still:
        norm.__dict__["train"] = functools.partial(_stay, norm)
        norm.training = False
    elif was_still:
        norm.train()


def _stay(norm: nn.Module, mode: bool = True) -> nn.Module:
    norm.training = False
    return norm


@held_back()
@known_arguments
def reestimate_batch_norm(trainee: Model, data: Data) -> Model:
    """``trainee`` with BatchNorm statistics measured again, on the network as it is now.

    Running statistics are averages over weights that have changed since, which matters at few bits.
    mean = the mean of batch means, var = the mean of batch variances + the variance of batch means.
    Nothing else changes. Call it before `octavo.freeze`, with a few dozen batches of training data.

    Args:
        trainee: changed in place.
        data: batches, as for `octavo.quantize`; at least some dozens of samples each.
    """
    check_trainee(trainee, "reestimate_batch_norm")
    batches = Batches(data)
    norms = [
        module
        for module in trainee.modules()
        if is_batch_norm(module) and module.running_mean is not None
    ]
    sums = {norm: _Moments() for norm in norms}
    modes = {module: module.training for module in trainee.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    handles = [norm.register_forward_pre_hook(sums[norm].hook) for norm in norms]
    try:
        trainee.eval()
        for norm in norms:
            norm.training, norm.momentum = True, 0.0  # Batch statistics, and none gathered.
        counts = [norm.num_batches_tracked for norm in norms]
        kept = [None if count is None else count.clone() for count in counts]
        batches.run(trainee, lambda _number, _call: None)
        for count, before in zip(counts, kept, strict=True):
            if count is not None and before is not None:
                count.copy_(before)
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    with torch.no_grad():
        for norm, moments in sums.items():
            moments.give(norm)
    return trainee


class _Moments:
    """Means and variances of batches, float64 [C]."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def hook(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Takes in one batch."""
        x = args[0].detach()
        rows = x.float().movedim(1, 0).reshape(x.shape[1], -1)
        if rows.shape[1]:
            variance, mean = torch.var_mean(rows, 1, correction=0)
            self.means.append(mean.double())
            self.variances.append(variance.double())

    def give(self, norm: nn.Module) -> None:
        """Puts the statistics into a BatchNorm; one that was never reached keeps its own."""
        if not self.means:
            return
        means = torch.stack(self.means)
        mean, var = norm.running_mean, norm.running_var
        assert isinstance(mean, Tensor) and isinstance(var, Tensor)
        mean.copy_(means.mean(0))
        var.copy_(torch.stack(self.variances).mean(0) + means.var(0, correction=0))
