"""Distillation: a float teacher shows a trainee more than labels do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import describe
from octavo.nn.surgery import copy_model
from octavo.signature import known_arguments

__all__ = ["DistillationLoss"]


class DistillationLoss(nn.Module):
    """Cross entropy with labels, plus how far the outputs are from a teacher's.

    loss = label_weight * CE(labels, z_s) + teacher_weight * T^2 * KL(softmax(z_t / T) ||
    softmax(z_s / T)) + feature_weight * mean of |f_s - f_t|^2 / mean |f_t|^2 over the features.
    The teacher is copied and never trained; it runs in evaluation mode without gradients. An
    integer model (``octavo.quantize(model, 8, data=batches)``) is a good and fast teacher.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(),
        ...     torch.nn.Linear(64, 8))
        >>> trainee = octavo.quantize(model, (4, 4), data=torch.randn(32, 64), qat=True)
        >>> criterion = octavo.DistillationLoss(model)
        >>> x, labels = torch.randn(16, 64), torch.randint(8, (16,))
        >>> criterion(x, trainee(x), labels).backward()

    Args:
        teacher: the float model, or any other with outputs of the same form. It is copied at once:
            a trainee shares its Parameters.
        temperature: T. Values above 2 hurt at few bits (ResNet-20 with 3-bit weights: 91.64 at T =
            1, 90.92 at 2, 80.0 at 5).
        label_weight: factor of the cross entropy with labels, where there are any.
        teacher_weight: factor of the difference from the teacher's outputs.
        features: names of modules whose outputs are compared too. Needs ``student``.
        student: the trainee, for features.
        feature_weight: factor of the difference of the features.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """

    @known_arguments
    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 1.0,
        *,
        label_weight: float = 1.0,
        teacher_weight: float = 1.0,
        features: Iterable[str] = (),
        student: nn.Module | None = None,
        feature_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(teacher, nn.Module):
            raise TypeError(
                f"DistillationLoss: teacher must be an nn.Module, got {describe(teacher)}. Pass "
                "the float model itself."
            )
        if not temperature > 0:
            raise ValueError(
                f"DistillationLoss: temperature must be positive, got {temperature}. 1.0 is good."
            )
        self.temperature = temperature
        self.label_weight, self.teacher_weight = label_weight, teacher_weight
        self.feature_weight = feature_weight
        self.features = tuple(features)
        self.teacher = copy_model(teacher).eval()
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        self._seen: dict[str, Tensor] = {}
        if self.features:
            if student is None:
                raise ValueError(
                    "DistillationLoss: student must be the trainee where features are compared, "
                    f"got None and features {describe(self.features)}. Pass student=trainee."
                )
            for name in self.features:
                for model, whose in ((self.teacher, "teacher"), (student, "student")):
                    _submodule(model, name).register_forward_hook(self._keeper(f"{whose}:{name}"))

    def train(self, mode: bool = True) -> DistillationLoss:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _keeper(self, key: str) -> Any:
        def keep(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor):
                self._seen[key] = output

        return keep

    def forward(self, inputs: Any, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            inputs: what the trainee was given: a tensor, a tuple of arguments or a dict of them.
            outputs: the trainee's logits [N, classes].
            labels: int64 [N], or None: the teacher alone.
        """
        wanted = self._teach(inputs)
        if not isinstance(wanted, Tensor) or not isinstance(outputs, Tensor):
            got = type(outputs if isinstance(wanted, Tensor) else wanted).__name__
            raise TypeError(
                f"DistillationLoss: outputs must be tensors of logits, got a {got}. Wrap the "
                "teacher so that it returns its logits, and pass those of the trainee."
            )
        if wanted.shape != outputs.shape:
            raise ValueError(
                f"DistillationLoss: outputs must have the teacher's shape {list(wanted.shape)}, "
                f"got {list(outputs.shape)}. Use a teacher for the same classes."
            )
        t = self.temperature
        log_student = F.log_softmax(outputs.float() / t, -1)
        log_teacher = F.log_softmax(wanted.float() / t, -1)
        loss = self.teacher_weight * t * t * F.kl_div(
            log_student.flatten(0, -2), log_teacher.flatten(0, -2), reduction="batchmean",
            log_target=True,
        )  # fmt: skip
        if labels is not None:
            loss = loss + self.label_weight * F.cross_entropy(outputs.float(), labels)
        if self.features:
            loss = loss + self.feature_weight * self._distance()
        return loss

    @torch.no_grad()
    def _teach(self, inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            return self.teacher(inputs)
        return self.teacher(**inputs) if isinstance(inputs, dict) else self.teacher(*inputs)

    def _distance(self) -> Tensor:
        """Mean over the features of the squared error in units of the teacher's mean square."""
        terms = []
        for name in self.features:
            missing = [w for w in ("teacher", "student") if f"{w}:{name}" not in self._seen]
            if missing:
                raise RuntimeError(
                    f"DistillationLoss: feature {name!r} must have been computed, got no call of "
                    f"it in the {missing[0]}. Run the trainee before the loss."
                )
            wanted = self._seen.pop(f"teacher:{name}").float()
            got = self._seen.pop(f"student:{name}").float()
            terms.append((got - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12))
        return torch.stack(terms).mean()


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [n for n, _ in model.named_modules() if n][:8]
        raise ValueError(
            f"DistillationLoss: features must be names of modules, got {name!r}. There are "
            f"{', '.join(names)} ..."
        ) from None
