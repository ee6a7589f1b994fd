"""region_constants, run_region and the shapes that the fake kernel derives."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import _C, ops
from octavo.ops.region_program import Program, line_of, parse
from octavo.ops.region_steps import QUANTIZE, STEPS

G3 = "kernel=3,3 stride=2,1 pad=1,0,1,2 dilation=1,2"
Q = "s=0x1p-5 z=128 max=255"
IMAGE = f"octavo.region 1\n0 = quantize in=0 layout=image {Q}\n"
PROGRAMS = {
    "conv": f"{IMAGE}1 = conv x=0 panel=0 channels=6 {G3} {Q} lo=0 hi=255\nout 1\n",
    "conv_f32": f"{IMAGE}1 = conv_f32 x=0 panel=0 channels=6 {G3} lo=-inf hi=inf\nout 1\n",
    "conv_dynamic": "octavo.region 1\n0 = quantize_dynamic in=0 layout=image max=255\n"
    f"1 = conv_dynamic x=0 panel=0 channels=6 {G3}\nout 1\n",
    "two results": f"{IMAGE}1 = add x=0 y=0 {Q} lo=0 hi=255\n2 = to_rows x=1\nout 2\nout 0\n",
    "max_pool": f"{IMAGE}1 = max_pool x=0 kernel=3,2 stride=2,2 pad=1,1,1,1 dilation=1,1 ceil=1\nout 1\n",
    "avg_pool": f"{IMAGE}1 = avg_pool x=0 kernel=2,3 stride=2,2 pad=0,1,0,1 ceil=1 include_pad=0 divisor=0 {Q}\n"
    "out 1\n",
    "adaptive": f"{IMAGE}1 = adaptive_avg_pool x=0 size=0,2 {Q}\n2 = adaptive_max_pool x=1 size=1,1\nout 2\nout 1\n",
    "concat": f"{IMAGE}1 = concat x=0,0,0 {Q}\nout 1\n",
    "slice": f"{IMAGE}1 = slice x=0 h=1,-1,2 w=0,5,1\nout 1\n",
    "upsample": f"{IMAGE}1 = upsample_nearest x=0 size=0,0 scale=0x1p+1,0x1.8p+0\nout 1\n",
    "upsample to a size": f"{IMAGE}1 = upsample_nearest x=0 size=5,9 scale=0x0p+0,0x0p+0\nout 1\n",
    "pad": f"{IMAGE}1 = pad x=0 pad=1,2,3,0 mode=reflect value=0x0p+0\nout 1\n",
    "flatten": f"{IMAGE}1 = flatten x=0\n2 = unflatten x=1 size=4,7,8\nout 1\nout 2\n",
    "pixel_shuffle": f"{IMAGE}1 = pixel_shuffle x=0 factor=2\nout 1\n",
    "rows": f"octavo.region 1\n0 = quantize in=0 layout=rows {Q}\n1 = to_image x=0\nout 1\n",
}


def panels() -> list[Tensor]:
    codes = torch.randint(-127, 128, (6, 4, 3, 3), dtype=torch.int8)
    return [ops.pack_weight(codes, torch.rand(6) + 0.1, torch.randn(6), 1, 8)]


def call(program: str, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    used = panels() if "panel=" in program else []
    constants = ops.region_constants(used, program)
    return ops.run_region([x], used, constants, program), used, constants


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_shapes_are_those_of_the_real_kernel(program: str) -> None:
    x = torch.randn(2, 4, 7, 8)
    results, used, _ = call(program, x)
    real = [tuple(y.shape) for y in results]
    counts = [p.numel() for p in used]
    read = parse(program)
    shapes = read.shapes([x.shape], counts)
    assert [shapes[value] for value in read.outputs] == real
    assert [tuple(s) for s in _C.region_shapes(program, [list(x.shape)], counts)] == real


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_opcheck(program: str) -> None:
    for x in (
        torch.randn(2, 4, 7, 8),
        torch.randn(2, 4, 7, 8).contiguous(memory_format=torch.channels_last),
        torch.randn(1, 4, 7, 8).contiguous(memory_format=torch.channels_last),
        torch.randn(7, 8, 4, 2).permute(3, 2, 0, 1),
    ):
        _, used, constants = call(program, x)
        # Sizes that stay symbolic: the static checks are enough where a program fixes sizes.
        torch.library.opcheck(
            torch.ops.octavo.run_region.default, ([x, *used], 1, constants, program)
        )
    if used:
        torch.library.opcheck(torch.ops.octavo.region_constants.default, (used, program))


def test_results_follow_the_memory_format_of_the_first_input() -> None:
    program = PROGRAMS["conv"]
    x = torch.randn(2, 4, 7, 8)
    (plain,), *_ = call(program, x)
    (last,), *_ = call(program, x.contiguous(memory_format=torch.channels_last))
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_refused_not_lost() -> None:
    program = PROGRAMS["conv"]
    x = torch.randn(2, 4, 7, 8, requires_grad=True)
    (y,), *_ = call(program, x)
    with pytest.raises(RuntimeError, match=r"inference only.*qat=True"):
        y.sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.replace("octavo.region 1", "octavo.region 2"),
        lambda p: p.replace("panel=0", "panel=1"),
        lambda p: p.replace("channels=6", "channels=7"),
        lambda p: p.replace("x=0", "x=1"),
        lambda p: p.replace("out 1", "out 2"),
        lambda p: p.replace("in=0", "in=1"),
        lambda p: p.replace("kernel=3,3", "kernel=3,4"),
        lambda p: p.replace("z=128", "z=300"),
        lambda p: p[:-1],
        lambda p: "",
    ],
    ids=["version", "panel", "channels", "value", "out", "input", "kernel", "zero point", "cut", "empty"],
)  # fmt: skip
def test_programs_that_do_not_fit_are_refused(change: object) -> None:
    x, used = torch.randn(2, 4, 7, 8), panels()
    constants = ops.region_constants(used, PROGRAMS["conv"])
    bad = change(PROGRAMS["conv"])  # type: ignore[operator]
    with pytest.raises(RuntimeError):
        ops.run_region([x], used, constants, bad)


@pytest.mark.parametrize("count", [-(2**63), -1, 3, 2**63 - 1])
def test_the_number_of_inputs_is_checked(count: int) -> None:
    x, used = torch.randn(2, 4, 7, 8), panels()[:1]
    constants = ops.region_constants(used, PROGRAMS["conv"])
    with pytest.raises(RuntimeError, match=r"input_count: expected 0\.\.2, got"):
        torch.ops.octavo.run_region([x, *used], count, constants, PROGRAMS["conv"])


def test_lists_that_are_too_short_are_refused() -> None:
    x, used = torch.randn(2, 4, 7, 8), panels()
    program = PROGRAMS["conv"]
    constants = ops.region_constants(used, program)
    for inputs, given in (([], used), ([x], []), ([], [])):
        with pytest.raises(RuntimeError, match="region: expected"):
            torch.ops.octavo.run_region([*inputs, *given], len(inputs), constants, program)


# ---- steps against torch -------------------------------------------------------------------------

# Codes are the values themselves, so that results are torch's to the bit.
CODES = {"s": 1.0, "z": 0, "max": 255}


def computed(x: Tensor, kind: str, **keys: object) -> Tensor:
    """The result of one step, whose shape the fake kernel tells too."""
    lines = [
        line_of(QUANTIZE, {"in": 0, "layout": "image" if x.dim() == 4 else "image1d", **CODES}),
        line_of(STEPS[kind], {"x": 0, **CODES, **keys}),
    ]
    program = Program(tuple(lines), (1,))
    (y,) = ops.run_region([x], [], ops.region_constants([], program.text()), program.text())
    assert program.shapes([x.shape], [])[1] == tuple(y.shape)
    return y


FACTORS = (0.1, 0.35, 0.7, 0.9, 1.0, 1.05, 1.3, 1.7, 2.0, 2.1, 2.3, 1 / 3, 4 / 3, math.pi, 5.0)


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: f"{factor:.3g}")
def test_nearest_upsampling_has_torchs_sizes_and_sources(factor: float) -> None:
    for n in (*range(1, 12), 20, 31, 32, 47, 62, 63, 64):
        if math.floor(n * factor) < 1:
            continue
        line = torch.arange(n, dtype=torch.float32).expand(2, 5, n)
        got = computed(line, "upsample_nearest", size=[1, 0], scale=[1.0, factor])
        assert torch.equal(got, F.interpolate(line, scale_factor=factor)), n
        image = line[:1, :, None].expand(1, 5, n, n).contiguous()
        got = computed(image, "upsample_nearest", size=[0, 0], scale=[factor, factor])
        assert torch.equal(got, F.interpolate(image, scale_factor=factor)), n
        columns = math.floor(n * factor)
        got = computed(image, "upsample_nearest", size=[3, columns], scale=[1.0, 1.0])
        assert torch.equal(got, F.interpolate(image, size=(3, columns))), n


def test_large_images_follow_the_factor_as_in_torch() -> None:
    for rows, n in itertools.product((1, 117, 118, 119, 120, 200), (7, 9)):
        image = torch.arange(n, dtype=torch.float32).expand(1, 3, rows, n).contiguous()
        for factor in (1.05, 2.1):
            got = computed(image, "upsample_nearest", size=[0, 0], scale=[1.0, factor])
            assert torch.equal(got, F.interpolate(image, scale_factor=(1.0, factor)))


def geometries(count: int, dilated: bool) -> list[dict[str, tuple[int, int]]]:
    dice = random.Random(5)

    def pair(low: int, high: int) -> tuple[int, int]:
        return dice.randint(low, high), dice.randint(low, high)

    found = []
    for _ in range(count):
        kernel, dilation = pair(1, 4), pair(1, 3 if dilated else 1)
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        limits = reach if dilated else kernel
        padding = (dice.randint(0, limits[0] // 2), dice.randint(0, limits[1] // 2))
        found.append(
            {"kernel": kernel, "stride": pair(1, 4), "padding": padding, "dilation": dilation}
        )
    return found


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("pool", ["max", "average"])
def test_pools_of_small_maps_in_ceil_mode_are_torchs(pool: str, dims: int) -> None:
    """Whatever torch accepts is computed: the last window may be the only one, and reach too far."""
    ran = 0
    for case, h, w in itertools.product(
        geometries(40, dilated=pool == "max"), (1, 2, 3, 6), (1, 2, 5)
    ):
        x = torch.randint(1, 250, (2, 3, h, w) if dims == 2 else (2, 3, w)).float()
        cut = {key: value[-dims:] for key, value in case.items()}
        whole = {
            key: (one, *value)[-2:]
            for (key, value), one in zip(cut.items(), (1, 1, 0, 1), strict=True)
        }
        kernel, stride, padding, dilation = cut.values()
        keys = {
            "kernel": whole["kernel"],
            "stride": whole["stride"],
            "pad": whole["padding"] * 2,
            "dilation": whole["dilation"],
            "ceil": 1,
        }
        try:
            if pool == "max":
                function = F.max_pool2d if dims == 2 else F.max_pool1d
                wanted = function(x, kernel, stride, padding, dilation, ceil_mode=True)
            else:
                function = F.avg_pool2d if dims == 2 else F.avg_pool1d
                wanted = function(x, kernel, stride, padding, ceil_mode=True)
        except RuntimeError:
            continue  # torch refuses it too
        ran += 1
        if pool == "max":
            # A window without a pixel is -inf in torch; the smallest code stands for it.
            assert torch.equal(computed(x, "max_pool", **keys), wanted.clamp(min=0))
        else:
            got = computed(x, "avg_pool", include_pad=1, divisor=0, **keys)
            assert (got - wanted).abs().max() <= 0.5 + 1e-4
    assert ran > 100


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_pixels_are_shuffled_as_in_torch(factor: int) -> None:
    for channels, h, w in itertools.product((1, 4, 19), (1, 3, 8), (1, 5)):
        x = torch.randint(0, 256, (2, channels * factor**2, h, w)).float()
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            got = computed(given, "pixel_shuffle", factor=factor)
            assert torch.equal(got, F.pixel_shuffle(x, factor))
