"""scheme: scales go down to the smallest normal number, so that powers of two change nothing."""

import math

import pytest
import torch
from torch import nn

import octavo
from octavo import ops
from octavo.numerics.scheme import MIN_SCALE

TINY = [2.0**-40, 2.0**-90]
"""Factors below which scales of values of order 1 are still normal."""


def layers() -> list[tuple[str, nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        ("linear", nn.Linear(64, 32, bias=False), torch.randn(4, 64)),
        ("conv1d", nn.Conv1d(4, 4, 3, bias=False), torch.randn(2, 4, 50)),
        ("conv2d", nn.Conv2d(4, 4, 3, bias=False), torch.randn(2, 4, 12, 12)),
        ("depthwise", nn.Conv2d(4, 4, 3, groups=4, bias=False), torch.randn(2, 4, 12, 12)),
    ]


def test_the_smallest_scale_is_normal_and_so_is_its_inverse():
    assert MIN_SCALE == torch.finfo(torch.float32).tiny == torch.finfo(torch.bfloat16).tiny
    assert torch.finfo(torch.float32).max > 1 / MIN_SCALE


@pytest.mark.parametrize("flush", [False, True], ids=["denormals", "flushed"])
@pytest.mark.parametrize("factor", TINY)
def test_dynamic_layers_of_tiny_inputs(isa, factor, flush):
    for name, layer, x in layers():
        for bits in (8, 4):
            small = octavo.quantize(nn.Sequential(layer).eval(), bits, progress=False)
            wanted = small(x) * factor
            torch.set_flush_denormal(flush)
            try:
                assert torch.equal(small(x * factor), wanted), (name, bits)
            finally:
                torch.set_flush_denormal(False)


@pytest.mark.parametrize("factor", TINY)
@pytest.mark.parametrize("how", [{}, {"group_size": 32}, {"symmetric": False}, {"grid": "nf"}])
@pytest.mark.parametrize("rounding", ["nearest", "squant", "hqq"])
def test_codes_of_tiny_weights(factor, how, rounding):
    if rounding == "hqq" and "symmetric" in how:
        return
    model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
    tiny = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
    tiny[0].weight.data = model[0].weight.data * factor
    wanted, got = (
        octavo.quantize(m, 4, rounding=rounding, progress=False, **how)[0] for m in (model, tiny)
    )
    assert torch.equal(wanted.codes(), got.codes())
    assert torch.equal(wanted.weight_scale * factor, got.weight_scale)


@pytest.mark.parametrize("factor", TINY)
def test_static_layers_and_trainees_of_tiny_values(isa, factor):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False)
    ).eval()
    x = torch.randn(64, 16)
    for qat in (False, True):
        results = []
        for data in (x, x * factor):
            small = octavo.quantize(model, 8, data=[data], qat=qat, progress=False)
            small = octavo.freeze(small, progress=False) if qat else small
            results.append(small(data).detach())
        wanted, got = results[0], results[1] / factor
        assert float((wanted - got).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("factor", TINY)
def test_fake_quantizers_of_tiny_values(isa, factor):
    x = torch.randn(256)
    step = torch.tensor([0.05])
    wanted = ops.fake_quantize_learned(x, step, qmin=-8, qmax=7)
    got = ops.fake_quantize_learned(x * factor, step * factor, qmin=-8, qmax=7)
    assert torch.equal(got, wanted * factor)
    ends = torch.tensor([-1.0, 2.0])
    seen = [
        ops.observe_fake_quantize(x * f, ends * f, qmin=0, qmax=255, momentum=0.0, update=False)
        for f in (1.0, factor)
    ]
    assert torch.equal(seen[1].y, seen[0].y * factor)
    assert float(seen[1].scale) == float(seen[0].scale) * factor


def test_ranges_too_small_for_the_smallest_scale_are_zero(isa):
    layer = nn.Linear(64, 32)
    small = octavo.quantize(nn.Sequential(layer).eval(), 8, progress=False)
    x = torch.randn(4, 64).sign() * MIN_SCALE / 4
    assert torch.equal(small(x), layer.bias.detach().expand(4, 32))


def test_values_that_are_zero_in_all_data_stay_near_zero(isa):
    """Their scale is the smallest one; offsets in it must not become infinite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        model[0].bias.fill_(-1000.0)
        with pytest.warns(UserWarning, match="never changed"):
            small = octavo.quantize(model, 8, data=[x], progress=False)
        assert torch.allclose(small(x), model(x), atol=1e-2)
        assert small(x * 1e6).isfinite().all()
    assert math.isfinite(float(small(x).sum()))
