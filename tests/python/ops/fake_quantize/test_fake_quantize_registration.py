"""The operators behind fake quantization: opcheck of every schema, torch.compile, transforms, threads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fake_quantize_reference import layouts
from octavo import ops

OPS = torch.ops.octavo


def samples(full: bool) -> list[Tensor]:
    """In the short size one of each kind that fake kernels tell apart."""
    x = torch.randn(4, 6, 5, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    if not full:
        return [last.bfloat16(), x[..., ::2].half(), torch.randn(4, 0)]
    found = [same for _, same in layouts(x)]
    return [*found, x.bfloat16(), x.half(), x[:, :1], torch.randn(4, 0), torch.randn(70, 40)]


def granularities(x: Tensor) -> list[tuple[Tensor, int | None, int]]:
    per_channel = x[0].numel()
    found = [(torch.rand(1) + 0.1, None, 0)]
    found += [(torch.rand(x.shape[d]) + 0.1, d, 0) for d in range(-1, x.dim())]
    return [*found, (torch.rand(x.shape[0], -(-per_channel // 16)) + 0.1, None, 16)]


def test_opcheck(full: bool) -> None:
    check = torch.library.opcheck
    for x in samples(full):
        dy = torch.randn(x.shape).to(x.dtype)
        parts = granularities(x)
        for scale, axis, group in parts if full else (parts[0], parts[-1]):
            zero = torch.ones_like(scale)
            for z in (None, zero) if full else (zero,):
                check(OPS.fake_quantize.default, (x, scale, z, -8, 7, axis, group, False, True))
                check(OPS.fake_quantize_masked.default, (x, scale, z, -8, 7, axis, group, True))
                check(
                    OPS.fake_quantize_learned_backward.default,
                    (dy, x, scale, z, -8, 7, axis, group, False, 0.5),
                )
            y, mask = OPS.fake_quantize_masked(x, scale, None, -8, 7, axis, group, False)
            check(OPS.fake_quantize_backward.default, (dy, mask, list(y.stride())))
            state = torch.zeros(2) if axis is None else torch.zeros(2, x.shape[axis])
            for observe in (OPS.observe_fake_quantize, OPS.observe_fake_quantize_masked):
                check(observe.default, (x, state, 0, 7, 0.1, axis, False, False, True, True))
        alpha = torch.tensor([2.0])
        check(OPS.fake_quantize_watched.default, (x, alpha, None, 0, 15, True))
        check(OPS.fake_quantize_clipped.default, (x, alpha, 4))
        check(OPS.fake_quantize_clipped_backward.default, (dy, x, alpha))
        levels = torch.tensor([-3, -1, 0, 1, 3], dtype=torch.int8)
        blocks = -(-x.shape[0] // 64)
        for table in (levels, levels.expand(blocks, 5).contiguous()):
            for scale, axis, group in parts:
                if axis in (None, 0) and (full or group):
                    check(OPS.fake_quantize_levels.default, (x, table, scale, axis, group, True))
                    check(
                        OPS.fake_quantize_levels_backward.default,
                        (dy, x, table, scale, axis, group, True, 0.5, True),
                    )


def calls() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    levels = torch.tensor([-4, -2, -1, 0, 1, 2, 4], dtype=torch.int8)
    return {
        "given": lambda x, s: ops.fake_quantize(x, s.detach(), qmin=-8, qmax=7, axis=0),
        "learned": lambda x, s: ops.fake_quantize_learned(x, s, qmin=-8, qmax=7, axis=0, relu=True),
        "clipped": lambda x, s: ops.fake_quantize_clipped(x, s[:1], bits=4),
        "levels": lambda x, s: ops.fake_quantize_levels(x, levels, s, learned=True, clip=True),
    }


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", list(calls()))
def test_compiled_whole_graph_is_eager(name: str) -> None:
    function = calls()[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, s = torch.randn(5, 33), torch.rand(5) + 0.1
    for same in (x, x.t().contiguous().t(), x.bfloat16()):
        results = []
        for f in (function, compiled):
            leaf, step = same.clone().requires_grad_(), s.clone().requires_grad_()
            y = f(leaf, step)
            y.float().square().sum().backward()
            results.append((y.detach(), leaf.grad, step.grad))
        for a, b in zip(*results, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (torch.equal(a, b) and a.stride() == b.stride())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_observer_moves_the_state() -> None:
    torch.compiler.reset()

    def step(x: Tensor, state: Tensor) -> Tensor:
        return ops.observe_fake_quantize(x, state, qmin=0, qmax=15, momentum=0.5).y

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    states = [torch.tensor([math.inf, -math.inf]) for _ in range(2)]
    for _ in range(3):
        x = torch.randn(40)
        assert torch.equal(step(x, states[0]), compiled(x, states[1]))
        assert torch.equal(*states)


def test_transforms_are_refused_in_words() -> None:
    x = torch.randn(3, 4)
    for f in calls().values():
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            torch.func.grad(lambda v, f=f: f(v, torch.ones(3)).sum())(x)


def test_threads_and_instruction_sets_give_the_same_bits() -> None:
    import octavo

    x = torch.randn(3, 64, 70, 61)
    dy = torch.randn(x.shape)
    before, threads = octavo.isa(), torch.get_num_threads()
    seen: dict[str, list[Tensor]] = {}
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                for layout, same in layouts(x):
                    for axis, shape in ((None, (1,)), (1, (64,)), (0, (3,)), (3, (61,))):
                        s = (torch.linspace(0.1, 0.3, shape[0])).requires_grad_()
                        z = torch.zeros(shape, requires_grad=True)
                        leaf = same.detach().requires_grad_()
                        y = ops.fake_quantize_learned(leaf, s, z, qmin=-3, qmax=4, axis=axis)
                        got = [y.detach(), *torch.autograd.grad(y, [leaf, s, z], dy)]
                        want = seen.setdefault(f"{layout} {axis}", got)
                        assert all(map(torch.equal, got, want)), (isa, count, layout, axis)
    finally:
        octavo.set_isa(before)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("relu", [False, True])
def test_kernels_are_the_plain_formula(isa: str, relu: bool) -> None:
    """What runs on other devices gives the same bits for y and dx."""
    from octavo.ops.fake_quantize import formula

    x, dy = torch.randn(7, 50) * 3, torch.randn(7, 50)
    x[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    for scale, axis in (
        (torch.tensor([0.3]), None),
        (torch.rand(7) + 0.1, 0),
        (torch.rand(50) + 0.1, 1),
    ):
        zero = torch.randint(0, 16, scale.shape).float()
        options = formula.Options(0, 15, axis, 0, relu)
        steps = formula.steps(scale, zero, options)
        leaf = x.clone().requires_grad_()
        y = ops.fake_quantize(leaf, scale, zero, qmin=0, qmax=15, axis=axis, relu=relu)
        plain = formula.quantized(x, steps, relu)
        assert torch.equal(y.view(torch.int32)[~y.isnan()], plain.view(torch.int32)[~y.isnan()])
        assert torch.equal(y.isnan(), plain.isnan())
        (dx,) = torch.autograd.grad(y, leaf, dy)
        assert torch.equal(dx, formula.gradient(dy, x, steps, relu))
        leaf = torch.where(x.isfinite(), x, 0.0).requires_grad_()
        step, point = scale.clone().requires_grad_(), zero.clone().requires_grad_()
        y = ops.fake_quantize_learned(leaf, step, point, qmin=0, qmax=15, axis=axis, relu=relu)
        got = torch.autograd.grad(y, [leaf, step, point], dy)
        want = formula.learned_gradients(dy, leaf, steps, relu)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1].float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got[2], want[2].float(), rtol=1e-6, atol=1e-6)
