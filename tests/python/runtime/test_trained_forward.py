"""What a trainee's step keeps between forward and backward."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import octavo
from octavo.nn.fake_quantize import FakeQuantize, FakeQuantizeWeight


class Block(nn.Module):
    """Every value that is quantized goes to a convolution, a linear layer or a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.fc = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(F.relu(self.conv3(x)).flatten(1))


def trainee_of(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    data = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    return octavo.quantize(Block(), (4, 4), data=data, qat=True, progress=False, **kwargs)


OPTIONS: dict[str, dict[str, str]] = {
    **{method: {"qat_method": method} for method in ("ste", "lsq", "lsq+", "pact", "dorefa")},
    "apot": {"grid": "apot"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_values_are_kept_as_codes(name: str) -> None:
    trainee = trainee_of(**OPTIONS[name])
    twin = copy.deepcopy(trainee)
    seen: list[weakref.ref[Tensor]] = []
    for module in trainee.modules():
        if isinstance(module, (FakeQuantize, FakeQuantizeWeight)):
            module.register_forward_hook(lambda m, args, y: seen.append(weakref.ref(y)))
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    loss = F.cross_entropy(trainee(x), torch.arange(4))
    assert len(seen) > 8 and not any(y() is not None for y in seen)
    loss.backward()
    gradient, x.grad = x.grad, None

    # Hooks of one's own see values: the gradients of both ways are the same bits.
    with saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
        F.cross_entropy(twin(x), torch.arange(4)).backward()
    assert gradient is not None and torch.equal(gradient, x.grad)
    for (key, mine), theirs in zip(trainee.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None and torch.equal(mine.grad, theirs.grad), key
    for (key, mine), theirs in zip(trainee.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs), key
