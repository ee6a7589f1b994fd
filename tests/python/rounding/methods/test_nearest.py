"""rounding.nearest: codes in range, scales that beat the plain maximum, zero and empty channels."""

import pytest
import torch

from octavo.numerics.scheme import MIN_SCALE, Scheme
from octavo.rounding import nearest

WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def powered_error(weight, real):
    return (weight - real).abs().pow(2.4).flatten(1).sum(1, dtype=torch.float64)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_nearest_and_in_range(bits):
    scheme = Scheme(bits)
    result = nearest(WEIGHT, None, scheme)
    assert result.codes.dtype == torch.int8 and result.codes.shape == WEIGHT.shape
    assert result.scale.dtype == torch.float32 and result.scale.shape == (6,)
    assert scheme.qmin <= int(result.codes.min()) and int(result.codes.max()) <= scheme.qmax
    step = result.scale.view(-1, 1, 1, 1)
    off = (WEIGHT - result.dequantize()).abs()
    inside = (scheme.qmin * step <= WEIGHT) & (scheme.qmax * step >= WEIGHT)
    assert bool((off <= 0.5001 * step)[inside].all())


@pytest.mark.parametrize("bits", range(2, 9))
def test_search_beats_the_largest_weight_in_every_channel(bits):
    scheme = Scheme(bits)
    result = nearest(WEIGHT, None, scheme)
    scale = (WEIGHT.flatten(1).abs().amax(1) / scheme.qmax).view(-1, 1, 1, 1)
    plain = (WEIGHT / scale).clamp(scheme.qmin, scheme.qmax).round() * scale
    searched = powered_error(WEIGHT, result.dequantize())
    assert bool((searched <= powered_error(WEIGHT, plain) * 1.0001).all())
    if bits <= 4:
        assert float(searched.sum()) < 0.8 * float(powered_error(WEIGHT, plain).sum())


def test_whole_multiples_are_exact():
    codes = torch.randint(-127, 128, (3, 64), generator=torch.Generator().manual_seed(1))
    codes[:, 0] = 127
    result = nearest(codes * 0.25, torch.tensor([1.0, 2.0, 3.0]), Scheme(8))
    assert torch.equal(result.codes.long(), codes)
    assert result.scale.tolist() == [0.25] * 3 and result.bias.tolist() == [1.0, 2.0, 3.0]


def test_zero_channel_gets_the_smallest_safe_scale():
    weight = WEIGHT.clone()
    weight[2] = 0
    result = nearest(weight, None, Scheme(8))
    assert float(result.scale[2]) == pytest.approx(MIN_SCALE, rel=1e-6)
    assert int(result.codes[2].abs().max()) == 0


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_weights(shape):
    result = nearest(torch.zeros(shape), None, Scheme(8))
    assert tuple(result.codes.shape) == shape and result.scale.shape == (shape[0],)


@pytest.mark.parametrize("factor", [1e-38, 1e-30, 3e37])
def test_extreme_magnitudes_stay_finite(factor):
    result = nearest(WEIGHT / WEIGHT.abs().max() * factor * 10, None, Scheme(8))
    assert bool(torch.isfinite(result.scale).all()) and bool((result.scale > 0).all())
    assert bool(torch.isfinite(result.dequantize()).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype):
    weight = WEIGHT.to(dtype)
    assert torch.equal(
        nearest(weight, None, Scheme(8)).codes, nearest(weight.float(), None, Scheme(8)).codes
    )


def test_groups_of_a_transposed_weight():
    """transformers' Conv1D holds [in, out]: its canonical weight is a view."""
    weight = torch.randn(64, 24).t()
    found, wanted = (nearest(w, None, Scheme(4, "nf", 64)) for w in (weight, weight.contiguous()))
    assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)
