"""fake_quantize_clipped: PACT's values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fake_quantize_reference import DTYPES, HARD, same_bits
from octavo import ops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [6.0, 0.7, -2.5])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_and_gradients(isa: str, bits: int, value: float, dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(1013) * 4, torch.tensor(HARD), torch.tensor([value, -value])]).to(
        dtype
    )
    x.requires_grad_()
    alpha = torch.tensor([value], requires_grad=True)
    y = ops.fake_quantize_clipped(x, alpha, bits=bits)
    top = 2**bits - 1
    scale = (alpha.detach() / top).abs()
    assert same_bits(y.detach(), ops.fake_quantize(x.detach(), scale, qmin=0, qmax=top))
    dy = torch.randn(x.shape).to(dtype)
    dx, dalpha = torch.autograd.grad(y, [x, alpha], dy)
    wide, values = dy.double().numpy(), x.detach().double().numpy()
    size = float(np.float32(abs(value)))
    assert same_bits(dx, np.where((values > 0) & (values < size), wide, 0.0))
    terms = np.where(values >= size, wide, 0.0)
    error = 1e-6 * np.abs(terms).sum()
    assert abs(float(dalpha) - terms.sum() * np.sign(value)) <= error
    assert dalpha.shape == alpha.shape


def test_messages() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="clipped: bits: .*got 9"):
        ops.fake_quantize_clipped(x, torch.ones(1), bits=9)
    with pytest.raises(ValueError, match="clipped: alpha: .*one number"):
        ops.fake_quantize_clipped(x, torch.ones(3), bits=4)
    with pytest.raises(TypeError, match="clipped: x: .*bool"):
        ops.fake_quantize_clipped(x.bool(), torch.ones(1), bits=4)
