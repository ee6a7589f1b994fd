"""Forwards may write into buffers and attributes; what they wrote is taken back."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from octavo.nn.kept_state import state_kept


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(4))
        self.register_buffer("later", None)
        self.calls = 0
        self.plain = torch.zeros(4)
        self.history: list[Tensor] = []
        self.recent: deque[int] = deque(maxlen=2)
        self.by_name: dict[str, Any] = {"inner": [torch.zeros(2)]}
        self.seen: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last = x[0].clone()
        self.later = x.mean()
        self.calls += 1
        self.plain.add_(1)
        self.history.append(x)
        self.recent.append(len(x))
        self.by_name["inner"][0] += 1
        self.by_name["new"] = x
        self.seen.add(len(x))
        self.made = x
        return self.fc(x) + self.last + self.plain


def content(model: Stateful) -> list[Any]:
    """Everything that forward changes, as plain data."""
    return [
        int(model.count), model.last.tolist(), model.later, model.calls, model.plain.tolist(),
        list(model.history), list(model.recent), {k: len(v) for k, v in model.by_name.items()},
        model.by_name["inner"][0].tolist(), set(model.seen), hasattr(model, "made"),
    ]  # fmt: skip


def test_all_that_a_forward_changes_is_put_back() -> None:
    model = Stateful().eval()
    kept = model.last, model.plain, model.history, model.by_name
    before = content(model)
    with torch.no_grad(), state_kept(model):
        model(torch.ones(2, 4))
        assert content(model) != before
    assert content(model) == before
    now = model.last, model.plain, model.history, model.by_name
    assert all(one is other for one, other in zip(kept, now, strict=True))


def test_it_is_put_back_where_the_forward_fails() -> None:
    model = Stateful().eval()
    before = content(model)
    try:
        with torch.no_grad(), state_kept(model):
            model(torch.ones(2, 5))
    except RuntimeError:
        assert content(model) == before
    else:
        raise AssertionError("a forward for 4 features takes 5")


def test_a_quantized_model_begins_in_the_state_of_the_float_one() -> None:
    model = Stateful().eval()
    before = content(model)
    quantized = octavo.quantize(
        model, 8, data=[torch.randn(8, 4) for _ in range(3)], progress=False
    )
    assert content(model) == before
    assert content(quantized) == before
