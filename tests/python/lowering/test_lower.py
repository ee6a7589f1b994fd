"""Programs as text, tables and factors by formula, shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.graph.capture import capture
from octavo.lowering.lower import Program, lower
from octavo.numerics.scheme import QParams, Scheme
from octavo.ops.region_program import parse
from octavo.planning.plan import RegionPlan, plan


def region_of(model: nn.Module, x: Tensor) -> RegionPlan:
    (flow,) = plan(capture(model.eval(), ((x,), {})), Scheme(), "static").flows
    (region,) = flow.regions
    return region


def lowered(model: nn.Module, example: Tensor, **params: QParams) -> Program:
    region = region_of(model, example)
    chosen = {v: params.get(v, QParams(0.5, 128)) for v in region.params_of.values()}
    return lower(region, chosen, model)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.a(x))
        x = x + self.b(x)
        return self.fc(F.avg_pool2d(x, 2).mean((2, 3)))


def test_text() -> None:
    program = lowered(
        Small(), torch.randn(1, 3, 9, 9), x=QParams(0.25, 114), relu6=QParams(0.03125, 10)
    )
    half = "s=0x1.0000000000000p-1 z=128 max=255"
    assert program.text == (
        "octavo.region 1\n"
        "0 = quantize in=0 layout=image s=0x1.0000000000000p-2 z=114 max=255\n"
        "1 = conv x=0 panel=0 channels=8 kernel=3,3 stride=2,2 pad=1,1,1,1 dilation=1,1 "
        "s=0x1.0000000000000p-5 z=10 max=255 lo=10 hi=202\n"
        "2 = pad x=1 pad=1,1,1,1 mode=reflect value=0x0.0p+0\n"
        "3 = conv x=2 panel=1 channels=8 kernel=3,3 stride=1,1 pad=0,0,0,0 dilation=1,1 "
        f"{half} lo=0 hi=255 r=1\n"
        "4 = avg_pool x=3 kernel=2,2 stride=2,2 pad=0,0,0,0 ceil=0 include_pad=1 "
        f"divisor=0 {half}\n"
        f"5 = adaptive_avg_pool x=4 size=1,1 {half}\n"
        "6 = flatten x=5\n"
        "7 = linear_f32 x=6 panel=2 channels=4 lo=-inf hi=inf\n"
        "out 7\n"
    )
    assert program.panels == ("a", "b", "fc")
    assert (program.inputs, program.outputs) == (("x",), ("fc",))
    assert program.values["fc"] == 7 and program.values["relu6"] == 1


def test_one_dimension() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 5, stride=2, padding=2, dilation=1), nn.ReLU())
    assert "conv_f32 x=0 panel=0 channels=4 kernel=1,5 stride=1,2 pad=0,2,0,2 dilation=1,1 " in str(
        lowered(model, torch.randn(1, 3, 20))
    )


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


def test_one_panel_for_a_layer_called_twice() -> None:
    program = lowered(Shared(), torch.randn(1, 3, 4, 4))
    assert program.panels == ("conv",) and program.text.count("panel=0") == 2


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 1), *middle, nn.Conv2d(6, 2, 1)).eval()


TABLES: dict[str, Any] = {
    "silu": (nn.SiLU(), lambda v: v / (1 + torch.exp(-v))),
    "hardswish": (nn.Hardswish(), lambda v: v * (v + 3).clamp(0, 6) / 6),
    "leaky": (nn.LeakyReLU(0.1), lambda v: torch.where(v > 0, v, 0.1 * v)),
    "prelu": (nn.PReLU(init=0.25), lambda v: torch.where(v > 0, v, 0.25 * v)),
    "two in a row": (
        nn.Sequential(nn.Tanh(), nn.Sigmoid()),
        lambda v: torch.sigmoid(torch.tanh(v)),
    ),
}


@pytest.mark.parametrize("name", TABLES, ids=str)
def test_tables(name: str) -> None:
    module, formula = TABLES[name]
    model = chain(module)
    region = region_of(model, torch.randn(1, 3, 4, 4))
    table_step = next(step for step in region.steps if step.kind == "unary")
    params = {v: QParams(0.5, 100) for v in region.params_of.values()}
    params[table_step.inputs[0]] = QParams(0.0625, 90)
    params[table_step.output] = QParams(0.03125, 9)
    (table,) = (p for p in lower(region, params, model).panels if isinstance(p, Tensor))
    reals = (torch.arange(256, dtype=torch.float64) - 90) * 0.0625
    expected = torch.round(formula(reals) / 0.03125 + 9).clamp(0, 255).to(torch.uint8)
    assert table.dtype == torch.uint8
    assert torch.equal(table, expected)


def test_channel_tables() -> None:
    model = chain(nn.PReLU(6))
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(6) / 8)
    (table,) = (p for p in lowered(model, torch.randn(1, 3, 4, 4)).panels if isinstance(p, Tensor))
    reals = (torch.arange(256, dtype=torch.float64) - 128) * 0.5
    for channel in range(6):
        expected = torch.where(reals > 0, reals, reals * channel / 8)
        assert torch.equal(table[channel], torch.round(expected / 0.5 + 128).to(torch.uint8))


@pytest.mark.parametrize(
    "after",
    [nn.Identity(), nn.ReLU(), nn.ReLU6(inplace=True)],
    ids=["plain", "clamped", "in place"],
)
def test_affine_factors(after: nn.Module) -> None:
    """The clamp fused into an affine step is no part of its factors."""
    norm = nn.BatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = chain(nn.MaxPool2d(2), norm, after)
    (factors,) = (
        p for p in lowered(model, torch.randn(1, 3, 4, 4)).panels if isinstance(p, Tensor)
    )
    multiplier = 1 / (norm.running_var.double() + norm.eps).sqrt()
    expected = torch.stack([multiplier, -norm.running_mean.double() * multiplier]).float()
    assert factors.dtype == torch.float32
    torch.testing.assert_close(factors, expected, rtol=1e-7, atol=1e-7)


def test_missing_parameters() -> None:
    region = region_of(Shared(), torch.randn(1, 3, 4, 4))
    with pytest.raises(
        ValueError, match=r"of every value of region #0, got none for \['relu', 'x'\]"
    ):
        lower(region, {}, Shared())


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(4, 32, 1)
        self.shuffle, self.c = nn.PixelShuffle(4), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.pixel_shuffle(self.a(x), upscale_factor=2))
        return self.c(self.shuffle(x))


def test_pixel_shuffles_pass_codes_on() -> None:
    example = torch.randn(1, 3, 4, 5)
    lines = lowered(Shuffled(), example).text.splitlines()
    assert [line for line in lines if "pixel_shuffle" in line] == [
        "2 = pixel_shuffle x=1 factor=2",
        "4 = pixel_shuffle x=3 factor=4",
    ]
    region = region_of(Shuffled(), example)
    assert region.params_of["pixel_shuffle"] == "a" and region.params_of["shuffle"] == "b"


SHAPES: dict[str, Any] = {
    "odd sizes": (Small(), (2, 3, 11, 14)),
    "ceil mode": (chain(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), (1, 3, 8, 7)),
    "average ceil": (chain(nn.AvgPool2d(2, ceil_mode=True)), (1, 3, 7, 5)),
    "pads and slices": (
        chain(nn.ReflectionPad2d((1, 2, 0, 1)), nn.Upsample(scale_factor=2)),
        (1, 3, 5, 6),
    ),
    "upsample to": (chain(nn.Upsample(size=(9, 7))), (1, 3, 5, 6)),
    "pixel shuffle": (
        nn.Sequential(nn.Conv2d(3, 18, 1), nn.PixelShuffle(3), nn.Conv2d(2, 2, 1)),
        (1, 3, 5, 6),
    ),
    "adaptive": (chain(nn.AdaptiveMaxPool2d((2, None))), (1, 3, 5, 6)),
    "rows": (nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), (2, 5, 4)),
}


@pytest.mark.parametrize("name", SHAPES, ids=str)
@torch.no_grad()
def test_output_shapes(name: str) -> None:
    """A program lowered on one size tells the shapes of others."""
    model, shape = SHAPES[name]
    model.eval()
    program = lowered(model, torch.randn(shape))
    counts = [p.numel() if isinstance(p, Tensor) else 0 for p in program.panels]
    other = (3, shape[1], *(n + 3 for n in shape[2:-1]), shape[-1])
    for x in (torch.randn(shape), torch.randn(other)):
        read = parse(program.text)
        (output,) = read.outputs
        assert read.shapes([x.shape], counts)[output] == tuple(model(x).shape)
