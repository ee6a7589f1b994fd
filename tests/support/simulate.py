"""Runs a region program in float64, independently of octavo's kernels: the formulas of csrc/README.md and no more.

Integer sums are exact in float64. Where the contract rounds to float32 this does too: fmaf is one
rounding of the exact a * b + c (product exact in float64, sum by TwoSum and round-to-odd). Nothing of octavo is
imported; weights come in as the canonical codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Layer:
    """Weights of one convolution or linear layer: codes [O, I/groups, kh, kw] or [O, I], scale [O], bias [O]."""

    codes: Tensor
    scale: Tensor
    bias: Tensor


@dataclass
class Value:
    """What one step gave: codes (float64 integers in torch's logical shape), or floats where scale is 0."""

    data: Tensor
    scale: float
    zero: int
    top: int

    @property
    def integer(self) -> bool:
        return self.scale != 0.0


def f32(x: Any) -> Tensor:
    """Rounds float64 to float32 once and gives it back as float64."""
    return torch.as_tensor(x, dtype=torch.float64).to(torch.float32).to(torch.float64)


def fmaf(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """float32 fused multiply-add of float32 values (held in float64), rounded once."""
    p, c = torch.broadcast_tensors(a * b, c)
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    bits = s.contiguous().numpy().view(np.int64).copy()
    e, value = error.contiguous().numpy(), s.contiguous().numpy()
    # Round to odd: where the sum is inexact and its last bit even, take the neighbour on the error's side.
    even = (e != 0) & (bits & 1 == 0)
    away = (e > 0) == (value > 0)
    bits[even & away] += 1
    bits[even & ~away] -= 1
    return torch.from_numpy(bits.view(np.float64)).to(torch.float32).to(torch.float64)


def parse(program: str) -> tuple[list[tuple[int, str, dict[str, str]]], list[int]]:
    """Splits a program into (id, kind, keys) and the ids that leave the region."""
    steps, outs = [], []
    lines = program.splitlines()
    assert lines[0] == "octavo.region 1", lines[0]
    for line in lines[1:]:
        if not line:
            continue
        words = line.split(" ")
        if words[0] == "out":
            outs += [int(w) for word in words[1:] for w in word.split(",")]
            continue
        assert words[1] == "=", line
        steps.append((int(words[0]), words[2], dict(w.split("=", 1) for w in words[3:])))
    return steps, outs


def _number(text: str) -> float:
    return float.fromhex(text) if "x" in text else float(text)


def _ints(text: str) -> list[int]:
    return [int(t) for t in text.split(",")]


def _sum_windows(x: Tensor, axis: int, starts: list[int], stops: list[int]) -> Tensor:
    total = F.pad(x.movedim(axis, -1).cumsum(-1), (1, 0))
    return (total[..., stops] - total[..., starts]).movedim(-1, axis)


def _clamp(v: Tensor, lo: float, hi: float) -> Tensor:
    return torch.round(v.clamp(lo, hi))


class _Simulation:
    def __init__(self, inputs: list[Tensor], panels: dict[int, Any]) -> None:
        self.inputs, self.panels = inputs, panels
        self.values: dict[int, Value] = {}

    def run(self, number: int, kind: str, k: dict[str, str]) -> None:
        x = self.values[_ints(k["x"])[0]] if "x" in k else None
        scale, zero, top = (x.scale, x.zero, x.top) if x else (0.0, 0, 0)
        if "s" in k:
            scale, zero = _number(k["s"]), int(k["z"])
        if "max" in k:
            top = int(k["max"])
        lo = _number(k["lo"]) if "lo" in k else 0.0
        hi = _number(k["hi"]) if "hi" in k else float(top)
        data = getattr(self, "_" + kind)(k, x, scale, zero, top, lo, hi)
        if kind.endswith("_f32"):
            scale = 0.0
        self.values[number] = Value(data, scale, zero, top)

    def _quantize(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        value = self.inputs[int(k["in"])].detach().float()
        product = f32(value.double() * f32(1.0 / f32(scale)))
        product = torch.where(product.isnan(), torch.tensor(-float(zero)).double(), product)
        return _clamp(product, -zero, top - zero) + zero

    def _sums(self, k, x, layer):  # type: ignore[no-untyped-def]
        data = x.data - x.zero
        weight = layer.codes.double()
        if "kernel" not in k:
            return F.linear(data, weight.flatten(1))
        line = data.dim() == 3
        if line:
            data = data.unsqueeze(2)
        weight = weight.reshape(weight.shape[0], weight.shape[1], *_ints(k["kernel"]))
        t, left, b, r = _ints(k["pad"])
        sums = F.conv2d(
            F.pad(data, (left, r, t, b)),
            weight,
            stride=_ints(k["stride"]),
            dilation=_ints(k["dilation"]),
            groups=data.shape[1] // weight.shape[1],
        )
        return sums.squeeze(2) if line else sums

    @staticmethod
    def _along(channels: Tensor, like: Tensor, rows: bool) -> Tensor:
        return channels if rows else channels.reshape(1, -1, *[1] * (like.dim() - 2))

    def _conv(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        layer = self.panels[int(k["panel"])]
        rows = "kernel" not in k
        sums = self._sums(k, x, layer)
        offset = layer.bias.double() / scale + zero
        residual = self.values[int(k["r"])] if "r" in k else None
        if residual:
            offset = offset - residual.zero * residual.scale / scale
        m = self._along(f32(x.scale * layer.scale.double() / scale), sums, rows)
        v = fmaf(f32(sums), m, self._along(f32(offset), sums, rows))
        if residual:
            v = fmaf(residual.data, f32(residual.scale / scale), v)
        return _clamp(v, lo, hi)

    _linear = _conv

    def _conv_f32(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        layer = self.panels[int(k["panel"])]
        rows = "kernel" not in k
        sums = self._sums(k, x, layer)
        m = self._along(f32(x.scale * layer.scale.double()), sums, rows)
        return fmaf(f32(sums), m, self._along(layer.bias.double(), sums, rows)).clamp(lo, hi)

    _linear_f32 = _conv_f32

    def _add(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        y = self.values[int(k["y"])]
        ma, mb = x.scale / scale, y.scale / scale
        inner = fmaf(y.data, f32(mb), f32(zero - x.zero * ma - y.zero * mb))
        return _clamp(fmaf(x.data, f32(ma), inner), lo, hi)

    def _mul(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        y = self.values[int(k["y"])]
        product = (x.data - x.zero) * (y.data - y.zero)
        return _clamp(fmaf(product, f32(x.scale * y.scale / scale), f32(float(zero))), lo, hi)

    def _concat(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        parts = []
        for number in _ints(k["x"]):
            v = self.values[number]
            if (v.scale, v.zero) == (scale, zero):
                parts.append(v.data)
            else:
                moved = fmaf(v.data - v.zero, f32(v.scale / scale), f32(float(zero)))
                parts.append(_clamp(moved, 0, top))
        return torch.cat(parts, 1)

    def _affine(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        mult, offset = self.panels[int(k["panel"])].double()
        rows = x.data.dim() == 2
        m = f32(mult * x.scale / scale)
        a = f32((offset - mult * x.scale * x.zero) / scale + zero)
        return _clamp(
            fmaf(x.data, self._along(m, x.data, rows), self._along(a, x.data, rows)), lo, hi
        )

    def _table(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        return self.panels[int(k["panel"])].double()[x.data.long()]

    def _channel_table(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        table = self.panels[int(k["panel"])].double()
        channel = self._along(torch.arange(table.shape[0]), x.data, x.data.dim() == 2)
        return table[channel.expand_as(x.data), x.data.long()]

    def _max_pool(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        pad = _ints(k["pad"])
        line = x.data.dim() == 3
        data = x.data.unsqueeze(2) if line else x.data
        out = F.max_pool2d(
            data,
            _ints(k["kernel"]),
            _ints(k["stride"]),
            pad[:2],
            _ints(k["dilation"]),
            k["ceil"] == "1",
        )
        return out.squeeze(2) if line else out

    def _average(self, x, windows, divisors, scale, zero, top):  # type: ignore[no-untyped-def]
        sums = x.data - x.zero
        for axis, (starts, stops) in zip((-2, -1), windows, strict=True):
            sums = _sum_windows(sums, axis, starts, stops)
        m = f32(f32(x.scale / scale) / divisors)
        return _clamp(fmaf(f32(sums), m, f32(float(zero))), 0, top)

    def _avg_pool(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        line = x.data.dim() == 3
        if line:
            x = Value(x.data.unsqueeze(2), x.scale, x.zero, x.top)
        pads = _ints(k["pad"])
        windows, inside, padded = [], [], []
        for i, size in enumerate(x.data.shape[-2:]):
            kernel, stride = _ints(k["kernel"])[i], _ints(k["stride"])[i]
            before, after = pads[i], pads[i + 2]
            span = size + before + after - kernel
            count = span // stride + 1
            if k["ceil"] == "1" and span % stride and count * stride < size + before:
                count += 1
            starts = [j * stride - before for j in range(count)]
            stops = [s + kernel for s in starts]
            clipped = ([max(s, 0) for s in starts], [min(max(e, 0), size) for e in stops])
            windows.append(clipped)
            inside.append([b - a for a, b in zip(*clipped, strict=True)])
            padded.append([min(e, size + after) - s for s, e in zip(starts, stops, strict=True)])
        if int(k["divisor"]):
            divisors = torch.tensor(float(k["divisor"])).double()
        else:
            rows, columns = padded if k["include_pad"] == "1" else inside
            divisors = torch.outer(torch.tensor(rows).double(), torch.tensor(columns).double())
        out = self._average(x, windows, divisors, scale, zero, top)
        return out.squeeze(2) if line else out

    def _adaptive_windows(self, k, x):  # type: ignore[no-untyped-def]
        windows = []
        for asked, size in zip(_ints(k["size"]), x.data.shape[-2:], strict=True):
            count = asked or size
            starts = [i * size // count for i in range(count)]
            stops = [-(-(i + 1) * size // count) for i in range(count)]
            windows.append((starts, stops))
        return windows

    def _adaptive_avg_pool(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        line = x.data.dim() == 3
        if line:
            x = Value(x.data.unsqueeze(2), x.scale, x.zero, x.top)
        windows = self._adaptive_windows(k, x)
        counts = [torch.tensor([b - a for a, b in zip(*w, strict=True)]).double() for w in windows]
        out = self._average(x, windows, torch.outer(*counts), scale, zero, top)
        return out.squeeze(2) if line else out

    def _adaptive_max_pool(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        sizes = [a or b for a, b in zip(_ints(k["size"]), x.data.shape[-2:], strict=True)]
        return F.adaptive_max_pool2d(x.data, sizes)

    def _gather_channels(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        index = self.panels[int(k["panel"])].long()
        fill = torch.full_like(x.data[:, :1], x.zero)
        source = torch.cat([x.data, fill], 1)
        return source[:, torch.where(index < 0, torch.tensor(x.data.shape[1]), index)]

    def _slice(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        parts = [slice(a, None if b == -1 else b, c) for a, b, c in (_ints(k["h"]), _ints(k["w"]))]
        return x.data[:, :, parts[0], parts[1]]

    def _upsample_nearest(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        size = _ints(k["size"])
        if any(size):
            return F.interpolate(x.data, size=size, mode="nearest")
        factors = [_number(t) for t in k["scale"].split(",")]
        return F.interpolate(x.data, scale_factor=factors, mode="nearest")

    def _pad(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        t, left, b, r = _ints(k["pad"])
        pads = (left, r, t, b) if x.data.dim() == 4 else (left, r)
        if k["mode"] != "constant":
            return F.pad(x.data, pads, mode=k["mode"])
        real = torch.tensor(_number(k["value"])).double()
        code = _clamp(f32(f32(real) * f32(1.0 / f32(x.scale))), -x.zero, x.top - x.zero) + x.zero
        return F.pad(x.data, pads, value=float(code))

    def _flatten(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        return x.data.flatten(1)

    def _unflatten(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        return x.data.reshape(-1, *_ints(k["size"]))

    def _to_rows(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        return x.data.permute(0, 2, 3, 1)

    def _to_image(self, k, x, scale, zero, top, lo, hi):  # type: ignore[no-untyped-def]
        return x.data.permute(0, 3, 1, 2)


def simulate(program: str, inputs: list[Tensor], panels: dict[int, Any]) -> dict[int, Value]:
    """Returns every value of the program.

    inputs: float32 tensors. panels: index to `Layer` (convolutions, linear) or to the raw tensor (tables ...).
    """
    simulation = _Simulation(inputs, panels)
    for number, kind, keys in parse(program)[0]:
        simulation.run(number, kind, keys)
    return simulation.values


def unpack(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """Canonical bit stream (LSB-first, each output channel starts at a byte) to signed codes of `shape`."""
    rows = np.unpackbits(packed.reshape(shape[0], -1).numpy(), axis=1, bitorder="little")
    count = int(np.prod(shape[1:]))
    fields = rows[:, : count * bits].reshape(shape[0], count, bits).astype(np.int64)
    values = (fields << np.arange(bits)).sum(-1)
    values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return torch.from_numpy(values.reshape(shape))
