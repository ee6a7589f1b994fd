"""One named regression test for each class of bug that other libraries had, and random regions against an independent
float64 simulation on every ISA.

Not here: guard pages and sums at the limits of their integers are C++ tests; hostile arguments are in test_op_fuzz;
threads, forks and many shapes in test_robustness; instructions and thread runtimes of the libraries in tests/repo;
interrupted saves in test_damage.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from conftest import FULL
from inspection import OneRegion, run_with_all_values
from simulate import Layer, simulate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def one_layer(
    codes: Tensor,
    kind: str,
    keys: str,
    layout: str,
    groups: int = 1,
    scale: float = 1.0,
    zero: int = 0,
) -> OneRegion:
    """quantize, then one layer with float32 output: sums come out exactly where they fit 24 bits."""
    weight_scale = torch.ones(codes.shape[0])
    bias = torch.zeros(codes.shape[0])
    panel = octavo.ops.pack_weight(codes, weight_scale, bias, groups, 8)
    program = (
        "octavo.region 1\n"
        f"0 = quantize in=0 layout={layout} s={scale.hex()} z={zero} max=255\n"
        f"1 = {kind} x=0 panel=0 channels={codes.shape[0]} {keys}lo=-inf hi=inf\n"
        "out 1\n"
    )
    return OneRegion(program, {0: Layer(codes, weight_scale, bias)}, [panel])


def compare(region: OneRegion, inputs: list[Tensor]) -> dict[int, Tensor]:
    """Every value of the region equals the simulation."""
    expected = simulate(region.program, inputs, region.layers)
    actual = run_with_all_values(region, inputs)
    for number, value in expected.items():
        got = actual[number].double()
        if value.integer:
            got = torch.round(got / value.scale) + value.zero
        assert got.shape == value.data.shape, (number, region.program)
        different = (got != value.data).nonzero()
        assert len(different) == 0, (
            f"value {number}: {len(different)} of {got.numel()} differ, first at {different[0].tolist()}: "
            f"{got[tuple(different[0])]} for {value.data[tuple(different[0])]}\n{region.program}"
        )
    return actual


@torch.no_grad()
def test_no_saturating_pair_sums(isa: str) -> None:
    """255 x 127 twice is 64,770: a 16-bit pair sum would saturate at 32,767."""
    for k in (1, 2, 3, 4, 31, 32, 33, 64, 130, 1024):
        for sign in (127, -127):
            codes = torch.full((17, k), sign, dtype=torch.int8)
            region = one_layer(codes, "linear_f32", "", "rows")
            y = compare(region, [torch.full((3, k), 255.0)])[1]
            assert torch.equal(y, torch.full((3, 17), float(255 * sign * k)).float())
    alternating = torch.tensor([127, -127] * 64, dtype=torch.int8).repeat(16, 1)
    y = compare(one_layer(alternating, "linear_f32", "", "rows"), [torch.full((2, 128), 255.0)])[1]
    assert torch.equal(y, torch.zeros(2, 16))


@torch.no_grad()
def test_sums_beyond_24_bits(isa: str) -> None:
    """Exact in 32 bits and converted to float once, to nearest even."""
    for k in (515, 516, 4096, 40_000):
        codes = torch.full((4, k), 127, dtype=torch.int8)
        codes[1] = -127
        codes[2, ::3] = 1
        codes[3, -1] = 126
        compare(one_layer(codes, "linear_f32", "", "rows"), [torch.full((2, k), 255.0)])


@pytest.mark.parametrize("k", [65_793, 65_794, 140_000])
@torch.no_grad()
def test_sums_at_and_beyond_32_bits(k: int, isa: str) -> None:
    """255 x 128 x 65,793 is the last sum that fits; longer ones are split, never wrapped."""
    codes = torch.full((2, k), 127, dtype=torch.int8)
    codes[1] = -127
    layer = octavo.quantize(nn.Linear(k, 2, bias=False), 8, progress=False)
    with torch.no_grad():
        float_layer = nn.Linear(k, 2, bias=False)
        float_layer.weight.copy_(codes.float())
    layer = octavo.quantize(float_layer, 8, progress=False)
    x = torch.full((1, k), 1.0)
    expected = float(127 * k)
    y = layer(x)
    assert torch.allclose(y, torch.tensor([[expected, -expected]]), rtol=1e-5), y


def random_conv(source: random.Random, generator: torch.Generator) -> tuple[OneRegion, Tensor]:
    groups = source.choice((1, 1, 1, 2, 3, 0))
    per_group = source.choice((1, 2, 3, 5, 8, 16, 20))
    if groups == 0:
        groups, per_group = source.choice((3, 8, 16, 19, 33)), 1
        outputs = groups * source.choice((1, 1, 1, 2))
    else:
        outputs = groups * source.choice((1, 4, 7, 16, 17))
    kernel = [source.randint(1, 5), source.randint(1, 5)]
    stride = [source.randint(1, 3), source.randint(1, 3)]
    dilation = [source.randint(1, 3), source.randint(1, 3)]
    pad = [source.randint(0, k + 1) for k in kernel * 2]
    size = [
        max(d * (k - 1) + 1 - pad[i] - pad[i + 2], 1) + source.randint(0, 9)
        for i, (k, d) in enumerate(zip(kernel, dilation, strict=True))
    ]
    codes = torch.randint(
        -127, 128, (outputs, per_group, *kernel), dtype=torch.int8, generator=generator
    )
    kind = source.random()
    if kind < 0.15:
        codes = torch.full_like(codes, source.choice((127, -127)))
    weight_scale = torch.rand(outputs, generator=generator) * 0.02 + 0.001
    bias = torch.randn(outputs, generator=generator) * 2
    zero, out_zero = source.choice((0, 255, 114, 1)), source.choice((0, 255, 128, 9))
    scale = 0.03
    out_scale = max(
        scale * 0.005 * 127 * 73 * (per_group * kernel[0] * kernel[1]) ** 0.5 / 60, 1e-3
    )
    scale, out_scale = (float(torch.tensor(v)) for v in (scale, out_scale))
    lo = float(out_zero) if source.random() < 0.5 else 0.0
    join = ",".join
    program = (
        "octavo.region 1\n"
        f"0 = quantize in=0 layout=image s={scale.hex()} z={zero} max=255\n"
        f"1 = conv x=0 panel=0 channels={outputs} kernel={join(map(str, kernel))} stride={join(map(str, stride))} "
        f"pad={join(map(str, pad))} dilation={join(map(str, dilation))} s={out_scale.hex()} z={out_zero} max=255 "
        f"lo={lo.hex()} hi={(255.0).hex()}\n"
        "out 1\n"
    )
    x = (
        torch.rand(source.choice((1, 2)), groups * per_group, *size, generator=generator) * 255
        - zero
    ) * scale
    panel = octavo.ops.pack_weight(codes, weight_scale, bias, groups, 8)
    return OneRegion(program, {0: Layer(codes, weight_scale, bias)}, [panel]), x


@torch.no_grad()
def test_random_convolutions_equal_the_simulation(isa: str) -> None:
    """Padding, zero points at the ends, strides, dilation, groups, padding beyond the kernel."""
    inner = ends = total = 0
    for seed in range(2000 if FULL else 150):
        region, x = random_conv(random.Random(seed), torch.Generator().manual_seed(seed))
        try:
            y = compare(region, [x])[1]
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {isa}: {error}") from None
        low, high = float(y.min()), float(y.max())
        total += y.numel()
        ends += int(((y == low) | (y == high)).sum())
        inner += int(((y != low) & (y != high)).sum())
    # Test the test: results are neither all clamped nor never.
    assert inner >= 0.3 * total and ends >= 0.01 * total, (inner, ends, total)


@torch.no_grad()
def test_two_billion_elements() -> None:
    """More than 2^31 elements: indices are 64 bits."""
    if not FULL:
        pytest.skip("needs 12 GiB and a minute: OCTAVO_SUITE=ci")
    available = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if "MemAvail" in line
    )
    if available < 14 * 2**20:
        pytest.skip(f"needs 14 GiB of free memory, {available / 2**20:.1f} available")
    x = torch.zeros(2**31 + 100)
    x[-1], x[-2] = 3.0, -2.0
    (low, high), bad = octavo.ops.minmax(x)
    assert (float(low), float(high), int(bad)) == (-2.0, 3.0, 0)
    q = octavo.ops.quantize(x, 1.0, 10, 255)
    assert q[-3:].tolist() == [10, 8, 13]


@torch.no_grad()
def test_infinities_and_nan_are_alike_everywhere(isa: str) -> None:
    x = torch.tensor([[float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 2.5, 3.5, -0.0]])
    assert octavo.ops.quantize(x, 1.0, 100, 255).tolist() == [[0, 255, 0, 255, 0, 102, 104, 100]]
    codes = octavo.ops.quantize_per_channel(x.t().contiguous(), torch.ones(8), 0, -127, 127)
    assert codes.flatten().tolist() == [-127, 127, -127, 127, -127, 2, 4, 0]
    layer = octavo.quantize(nn.Linear(8, 3), 8, progress=False)
    assert bool(layer(x).isfinite().all())


@torch.no_grad()
def test_strides_and_memory_formats_change_no_bits(isa: str) -> None:
    conv = octavo.quantize(
        nn.Conv2d(5, 7, 3, 2, 1), 8, data=[torch.randn(2, 5, 9, 9)], progress=False
    )
    x = torch.randn(3, 5, 9, 11)
    expected = conv(x)
    offset = torch.zeros(x.numel() + 1)
    offset[1:] = x.flatten()
    forms = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "offset 1": offset[1:].view_as(x),
        "sliced": torch.cat([x, x], 3)[:, :, :, :11],
        "every second": torch.stack([x, x * 0], -1).flatten(-2)[..., ::2],
    }
    for name, form in forms.items():
        assert torch.equal(conv(form), expected), name
    y = conv(forms["channels_last"])
    assert y.is_contiguous(memory_format=torch.channels_last) and expected.is_contiguous()


def test_scales_lie_along_their_axis(isa: str) -> None:
    x = torch.randn(3, 4, 5)
    for axis in range(-3, 3):
        scale = torch.rand(x.shape[axis]) + 0.5
        shape = [1, 1, 1]
        shape[axis] = -1
        expected = torch.round(x * (1 / scale).view(shape)).clamp(-127, 127).to(torch.int8)
        assert torch.equal(octavo.ops.quantize_per_channel(x, scale, axis, -127, 127), expected)
    for axis in (3, -4, 2**40, -(2**40)):
        with pytest.raises(ValueError, match="axis"):
            octavo.ops.quantize_per_channel(x, torch.ones(3), axis, -127, 127)


@torch.no_grad()
def test_empty_tensors(isa: str) -> None:
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        assert octavo.ops.quantize(torch.empty(0, 3), 1.0, 0, 255).shape == (0, 3)
        linear = octavo.quantize(nn.Linear(8, 3), 8, progress=False)
        assert linear(torch.empty(0, 8)).shape == (0, 3)
        assert linear(torch.empty(2, 0, 8)).shape == (2, 0, 3)
        small = octavo.quantize(
            nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)
            ),
            8,
            data=[torch.randn(2, 3, 8, 8)],
            progress=False,
        )
        assert small(torch.empty(0, 3, 8, 8)).shape == (0, 2, 4, 4)
    torch.set_num_threads(2)


@torch.no_grad()
def test_float_types_are_kept(isa: str) -> None:
    small = octavo.quantize(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
        8,
        data=[torch.randn(2, 3, 8, 8)],
        progress=False,
    )
    x = torch.randn(2, 3, 8, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        y = small(x.to(dtype))
        assert y.dtype == dtype
        assert torch.equal(y, small(x.to(dtype).float()).to(dtype))


@torch.no_grad()
def test_one_rounding_rule(isa: str) -> None:
    """Ties go to even before the zero point is added; the product with the reciprocal is what torch computes."""
    ties = torch.arange(-20, 21) / 2 + 0.5
    assert torch.equal(
        octavo.ops.quantize(ties, 1.0, 101, 255).int(), torch.round(ties).int() + 101
    )
    x = torch.randn(100_000) * 3
    for scale, zero in ((0.1, 3), (0.037, 128), (1e-3, 255), (2.5e-8, 7)):
        mine = octavo.ops.quantize(x, scale, zero, 255)
        theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
        s = float(torch.tensor(scale))
        assert torch.equal(mine.int(), torch.round(theirs.double() / s).int() + zero), scale
        back = octavo.ops.dequantize(mine, scale, zero)
        assert torch.equal(back, (mine.float() - zero) * torch.tensor(scale))


@torch.no_grad()
def test_pools_and_moves_equal_the_simulation(isa: str) -> None:
    """Every step that is not a product, in odd geometries."""
    for seed in range(200 if FULL else 25):
        r, g = random.Random(seed), torch.Generator().manual_seed(seed)
        channels = r.choice((1, 3, 16, 17, 40))
        height, width = r.randint(4, 12), r.randint(4, 12)
        k = [r.randint(1, 4), r.randint(1, 4)]
        s = [r.randint(1, 3), r.randint(1, 3)]
        p = [r.randint(0, v // 2) for v in k] * 2
        z = r.choice((0, 3, 255))
        join = ",".join
        geometry = f"kernel={join(map(str, k))} stride={join(map(str, s))} pad={join(map(str, p))}"
        q = "s=0x1.3p-5 z=9 max=255"
        index = torch.tensor(
            [r.randint(-1, channels - 1) for _ in range(channels + 2)], dtype=torch.int32
        )
        affine = torch.randn(2, channels, generator=g)
        lines = [
            f"0 = quantize in=0 layout=image s=0x1p-5 z={z} max=255",
            f"1 = max_pool x=0 {geometry} dilation=1,1 ceil={r.randint(0, 1)}",
            f"2 = avg_pool x=0 {geometry} ceil={r.randint(0, 1)} include_pad={r.randint(0, 1)} "
            f"divisor={r.choice((0, 0, 3))} {q}",
            f"3 = adaptive_avg_pool x=0 size={r.randint(1, 5)},{r.randint(0, 5)} {q}",
            f"4 = adaptive_max_pool x=0 size={r.randint(1, 5)},{r.randint(1, 5)}",
            "5 = gather_channels x=0 panel=0",
            f"6 = slice x=0 h={r.randint(0, 2)},-1,{r.randint(1, 3)} w=0,{r.randint(1, width)},{r.randint(1, 2)}",
            f"7 = upsample_nearest x=0 size={r.randint(1, 20)},{r.randint(1, 20)} scale=0x0p+0,0x0p+0",
            "8 = upsample_nearest x=0 size=0,0 scale=0x1p+1,0x1.8p+0",
            f"9 = pad x=0 pad={r.randint(0, 3)},{r.randint(0, 3)},{r.randint(0, 3)},{r.randint(0, 3)} "
            f"mode={r.choice(('constant', 'reflect', 'replicate', 'circular'))} value=0x1p-2",
            "10 = table x=0 panel=1 s=0x1p-4 z=20 max=255",
            "11 = add x=0 y=10 s=0x1.9p-4 z=77 max=255 lo=0x1.34p+6 hi=0x1.fep+7",
            f"12 = concat x=0,10,11 {q}",
            "13 = affine x=0 panel=2 s=0x1p-4 z=100 max=255 lo=0x0p+0 hi=0x1.fep+7",
            "14 = adaptive_avg_pool x=0 size=1,1 s=0x1p-6 z=128 max=255",
            "15 = mul x=0 y=14 s=0x1p-5 z=40 max=255 lo=0x0p+0 hi=0x1.fep+7",
            "16 = mul x=0 y=10 s=0x1p-4 z=128 max=255 lo=0x0p+0 hi=0x1.fep+7",
            "17 = flatten x=0",
            f"18 = unflatten x=17 size={channels},{height},{width}",
            "19 = to_rows x=0",
            "20 = to_image x=19",
            "21 = channel_table x=0 panel=3 s=0x1p-4 z=20 max=255",
        ]
        table = torch.randint(0, 256, (256,), dtype=torch.uint8, generator=g)
        tables = torch.randint(0, 256, (channels, 256), dtype=torch.uint8, generator=g)
        program = "\n".join(["octavo.region 1", *lines]) + "\nout 21\n"
        region = OneRegion(
            program,
            {0: index, 1: table, 2: affine, 3: tables},
            [index, table, affine, tables],
        )
        x = torch.randn(r.choice((1, 3)), channels, height, width, generator=g) * 2
        try:
            compare(region, [x])
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {isa}: {error}") from None


@torch.no_grad()
def test_residual_and_1d_equal_the_simulation(isa: str) -> None:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (19, 19, 3), dtype=torch.int8, generator=g)
    scale, bias = torch.rand(19, generator=g) * 0.01 + 0.001, torch.randn(19, generator=g)
    last = torch.randint(-127, 128, (6, 19), dtype=torch.int8, generator=g)
    last_scale, last_bias = torch.rand(6, generator=g) * 0.01, torch.randn(6, generator=g)
    program = """octavo.region 1
0 = quantize in=0 layout=image1d s=0x1p-5 z=117 max=255
1 = conv x=0 panel=0 channels=19 kernel=1,3 stride=1,1 pad=0,2,0,0 dilation=1,1 s=0x1p-3 z=31 max=255 lo=0x0p+0 hi=0x1.fep+7 r=0
2 = conv x=1 panel=0 channels=19 kernel=1,3 stride=1,2 pad=0,1,0,1 dilation=1,1 s=0x1p-3 z=0 max=255 lo=0x0p+0 hi=0x1.fep+7
3 = conv_f32 x=2 panel=0 channels=19 kernel=1,3 stride=1,1 pad=0,0,0,0 dilation=1,2 lo=-0x1p+1 hi=inf
4 = quantize in=1 layout=rows s=0x1p-5 z=100 max=255
5 = linear x=4 panel=1 channels=6 s=0x1p-4 z=9 max=255 lo=0x1.2p+3 hi=0x1.fep+7
6 = linear x=4 panel=1 channels=6 s=0x1p-4 z=128 max=255 lo=0x0p+0 hi=0x1.fep+7 r=5
7 = add x=5 y=6 s=0x1p-3 z=50 max=255 lo=0x0p+0 hi=0x1.fep+7
out 3
out 7
"""
    codes4 = codes.unsqueeze(2)
    panels = [
        octavo.ops.pack_weight(codes4, scale, bias, 1, 8),
        octavo.ops.pack_weight(last, last_scale, last_bias, 1, 8),
    ]
    region = OneRegion(
        program, {0: Layer(codes4, scale, bias), 1: Layer(last, last_scale, last_bias)}, panels
    )
    x = torch.randn(2, 19, 23, generator=g)
    rows = torch.randn(2, 3, 5, 19, generator=g)
    values = compare(region, [x, rows])
    assert F.relu(values[3]).std() > 0
