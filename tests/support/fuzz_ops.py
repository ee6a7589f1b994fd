"""Calls octavo's raw operators with hostile arguments; test_op_fuzz runs it in a child process.

    python fuzz_ops.py COUNT SEED [FIRST]      # one case again: COUNT 1, FIRST its number

Every case must raise an ordinary exception or give a result; a signal, a hang or memory above 4 GiB is a bug.
The number of the case in progress stands in the file that OCTAVO_FUZZ_LAST names.
"""

from __future__ import annotations

import os
import random
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import octavo

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    9,
    127,
    128,
    255,
    256,
    -128,
    2**31 - 1,
    2**31,
    -(2**31),
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, 1.0, -1.0, 0.01, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
DTYPES = (torch.float32,) * 8 + (
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.complex64,
)


class Source:
    """Random arguments of one case."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self) -> int:
        return (
            self.random.choice(INTEGERS)
            if self.random.random() < 0.5
            else self.random.randint(-4, 20)
        )

    def real(self) -> float:
        return (
            self.random.choice(FLOATS)
            if self.random.random() < 0.5
            else self.random.uniform(0.001, 2)
        )

    def tensor(
        self, dtype: torch.dtype | None = None, ranks: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    ) -> Tensor:
        shape = [
            self.random.choice((0, 1, 2, 3, 5, 8, 17)) for _ in range(self.random.choice(ranks))
        ]
        if dtype is None or self.random.random() < 0.1:
            dtype = self.random.choice(DTYPES)
        x = torch.randn(shape, generator=self.generator) * self.random.choice((1, 1, 100, 1e30))
        if self.random.random() < 0.1 and x.numel():
            x.view(-1)[self.random.randrange(x.numel())] = self.random.choice(FLOATS)
        if not dtype.is_floating_point and not dtype.is_complex:
            x = (
                x.nan_to_num().clamp(-100, 100).abs()
                if dtype == torch.uint8
                else x.nan_to_num().clamp(-100, 100)
            )
        x = x.to(dtype)
        form = self.random.random()
        if form < 0.1 and x.dim() >= 2:
            x = x.transpose(-1, -2)
        elif form < 0.2 and x.dim():
            x = x[..., ::2]
        elif form < 0.25 and x.dim():
            x = x[..., :1].expand(*x.shape[:-1], 9)
        elif form < 0.3 and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        elif form < 0.33:
            x = x.to("meta")
        elif form < 0.35 and x.dim() == 2 and x.dtype == torch.float32:
            x = x.to_sparse()
        return x


def panel(source: Source, weight: tuple[int, ...] | None = None, groups: int = 1) -> Tensor:
    shape = weight or (source.random.choice((1, 3, 16, 17)), source.random.choice((1, 4, 30)))
    codes = torch.randint(-127, 128, shape, dtype=torch.int8, generator=source.generator)
    scale = torch.rand(shape[0], generator=source.generator) + 0.01
    result = torch.ops.octavo.pack_weight(codes, scale, None, groups, 8)
    return hostile_bytes(source, result, 0.5)


def hostile_bytes(source: Source, x: Tensor, chance: float) -> Tensor:
    """Changes the head of a panel, cuts it, or shifts it in memory."""
    if source.random.random() >= chance:
        return x
    x = x.clone()
    kind = source.random.randrange(5)
    if kind == 0:
        return x[: source.random.randrange(max(x.numel(), 1))]
    if kind == 1:
        return torch.cat([torch.zeros(1, dtype=x.dtype), x])[1:]
    if kind == 2:
        return source.tensor()
    for _ in range(source.random.randint(1, 3)):
        at = source.random.randrange(min(x.numel(), 128))
        x[at] = source.random.choice((0, 1, 255, 127, 128, source.random.randrange(256)))
    return x


PROGRAM = """octavo.region 1
0 = quantize in=0 layout=image s=0x1.4p-6 z=114 max=255
1 = conv x=0 panel=0 channels=16 kernel=3,3 stride=2,2 pad=1,1,1,1 dilation=1,1 s=0x1.9p-5 z=3 max=255 lo=0x1.8p+1 hi=0x1.fep+7
2 = table x=1 panel=1 s=0x1.9p-5 z=7 max=255
3 = max_pool x=2 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 ceil=0
4 = add x=2 y=3 s=0x1.9p-4 z=0 max=255 lo=0x0p+0 hi=0x1.fep+7
5 = concat x=2,4 s=0x1.9p-4 z=0 max=255
6 = slice x=5 h=0,-1,2 w=1,-1,1
7 = pad x=6 pad=1,0,2,1 mode=constant value=0x0p+0
8 = avg_pool x=7 kernel=2,2 stride=2,2 pad=0,0,0,0 ceil=1 include_pad=1 divisor=0 s=0x1.9p-4 z=1 max=255
9 = upsample_nearest x=8 size=0,0 scale=0x1p+1,0x1p+1
10 = gather_channels x=9 panel=2
11 = adaptive_avg_pool x=10 size=1,1 s=0x1.9p-4 z=0 max=255
12 = flatten x=11
13 = linear_f32 x=12 panel=3 channels=5 lo=-inf hi=inf
out 13
"""


def region_parts(source: Source) -> tuple[list[Tensor], list[Tensor], str]:
    channels = 3
    inputs = [torch.randn(2, channels, 9, 11, generator=source.generator)]
    g = source.generator
    codes = torch.randint(-127, 128, (16, channels, 3, 3), dtype=torch.int8, generator=g)
    last = torch.randint(-127, 128, (5, 8), dtype=torch.int8, generator=g)
    panels = [
        torch.ops.octavo.pack_weight(codes, torch.full((16,), 0.01), None, 1, 8),
        torch.arange(256, dtype=torch.uint8),
        torch.tensor([0, 31, -1, 5, 5, 30, 2, 1], dtype=torch.int32),
        torch.ops.octavo.pack_weight(last, torch.full((5,), 0.01), torch.ones(5), 1, 8),
    ]
    return inputs, panels, PROGRAM


def mutate(source: Source, text: str) -> str:
    r = source.random
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        lines = text.split("\n")
        kind = r.randrange(7)
        i = r.randrange(len(lines))
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, r.choice(lines))
        elif kind == 2 and lines[i]:
            at = r.randrange(len(lines[i]))
            lines[i] = (
                lines[i][:at]
                + chr(r.choice((0, 32, 45, 48, 57, 61, 120, 255)))
                + lines[i][at + 1 :]
            )
        elif kind == 3 and "=" in lines[i]:
            words = lines[i].split(" ")
            k = r.randrange(len(words))
            if "=" in words[k][1:]:
                key = words[k].split("=")[0]
                words[k] = f"{key}={r.choice(VALUES)}"
            lines[i] = " ".join(words)
        elif kind == 4 and "=" in lines[i]:
            words = lines[i].split(" ")
            k = r.randrange(len(words))
            if "," in words[k]:
                key, value = words[k].split("=", 1)
                parts = value.split(",")
                parts[r.randrange(len(parts))] = str(r.choice((*INTEGERS, 4, 5, 100, 100000)))
                words[k] = f"{key}={','.join(parts)}"
            lines[i] = " ".join(words)
        elif kind == 5:
            j = r.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
        else:
            lines[-1 if lines[-1] else -2] = f"out {r.randint(-1, 15)}"
        text = "\n".join(lines)
    return text


VALUES = (
    "0", "1", "-1", "2", "99", "255", "256", "9223372036854775807", "99999999999999999999", "", "0,0", "1,1,1,1",
    "inf", "-inf", "nan", "0x1p-200", "0x1p+300", "0x0p+0", "-0x1p+0", "3,3", "0,1,2,3", "image", "rows", "constant",
    "reflect", "100000,100000", "0,-1,0", "0,-1,-1",
)  # fmt: skip


LOWBIT = 14  # cases from here on are packed low-bit weights


def lowbit_packed(source: Source) -> tuple[Tensor, int, int]:
    """A packed weight whose header may be damaged, and its size."""
    r, g = source.random, source.generator
    bits, n, k = r.randint(2, 8), r.choice((1, 9, 70)), r.choice((1, 3, 9, 30, 100))
    group_size = r.choice((0, 16, 64))
    groups = 1 if group_size == 0 else -(-k // group_size)
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, generator=g)
    levels = None
    if r.random() < 0.4:
        levels = torch.randint(-128, 128, (-(-n // 64), 2**bits), dtype=torch.int8, generator=g)
    packed = torch.ops.octavo.pack_lowbit(
        codes, torch.ones(n, groups), None, levels, None, bits, group_size, r.random() < 0.4
    )
    return hostile_bytes(source, packed, 0.5), n, k


def lowbit_case(source: Source) -> None:
    ops, r = torch.ops.octavo, source.random
    packed, n, k = lowbit_packed(source)
    if r.random() < 0.2:
        n, k = source.integer(), source.integer()
    which = r.randrange(6)
    if which == 0:
        codes = source.tensor(torch.uint8, (1, 2, 3))
        scale = torch.ones(codes.shape[0] if codes.dim() else 1, r.choice((1, 1, 2, 7)))
        levels = source.tensor(torch.int8) if r.random() < 0.2 else None
        zero_point = source.tensor(torch.uint8) if r.random() < 0.2 else None
        bits, group_size = r.choice((2, 4, 8, 8, 9)), r.choice((0, 0, 16, 24, 256, -16, 2**40))
        rows = r.random() < 0.5
        ops.pack_lowbit(codes, scale, zero_point, levels, None, bits, group_size, rows)
    elif which == 1:
        ops.unpack_lowbit(packed, n, k)
        ops.dequantize_lowbit(packed, n, k)
    elif which == 2:
        x = torch.randn(r.choice((1, 5, 20)), max(0, min(k, 200)), generator=source.generator)
        if r.random() < 0.3:
            x = source.tensor(torch.float32)
        ops.linear_lowbit(x, packed, n, r.choice(("dynamic", "float", "static")))
    elif which == 3:
        x = torch.randn(3, max(0, min(k, 200)), generator=source.generator)
        ops.linear_lowbit_static(x, packed, n, source.real(), source.integer(), source.integer())
    elif which == 4:
        width = max(0, min(k, 200))
        h = torch.randn(r.choice((1, 3)), width, generator=source.generator)
        gates = torch.randn(r.choice((3, 6)), max(0, min(n, 200)), generator=source.generator)
        sizes = r.choice(([3, 3], [1, 1, 1], [3, 2, 1], [3, -1], [2**62, 2**62], [1, 2], []))
        mode = r.choice(("LSTM", "GRU", "RNN_TANH", "RNN_RELU", "other"))
        how = r.choice(("dynamic", "float", "static"))
        c = r.choice((None, h, source.tensor(torch.float32)))
        numbers = (source.real(), source.integer(), source.integer(), r.random() < 0.8)
        ops.recurrent(gates, packed, h, c, sizes, r.random() < 0.5, mode, how, *numbers)
        ops.recurrent_cell(gates, source.tensor(torch.float32), h, mode)
    else:
        indices = torch.randint(
            -1, max(0, min(n, 200)) + 1, (r.choice((0, 1, 3)),), generator=source.generator
        )
        ops.embedding_lowbit(indices, packed, k)


def case(source: Source) -> None:
    ops = torch.ops.octavo
    r = source.random
    f32 = torch.float32
    which = r.randrange(18)
    if which == 0:
        ops.quantize(source.tensor(f32), source.real(), source.integer(), source.integer())
    elif which == 1:
        x = source.tensor(f32, (1, 2, 3, 4))
        scale = (
            torch.rand(r.choice((*x.shape, 3)), generator=source.generator)
            if x.layout is torch.strided
            else source.tensor(f32)
        )
        ops.quantize_per_channel(x, scale, r.randint(-5, 5), source.integer(), source.integer())
    elif which == 2:
        ops.dequantize(source.tensor(torch.uint8), source.real(), source.integer())
    elif which == 3:
        if r.random() < 0.5:
            ops.clip_error(*(source.tensor(f32) for _ in range(r.choice((4, 5)))))
        ops.minmax(source.tensor(f32))
    elif which == 4:
        ops.minmax_per_channel(source.tensor(f32), source.integer())
    elif which == 5:
        ops.histogram(
            source.tensor(f32), source.integer(), source.integer(), r.choice((0, 1, 7, 2048, -1))
        )
    elif which == 6:
        ops.pack_bits(source.tensor(torch.int8), source.integer())
    elif which == 7:
        shape = [r.choice((0, 1, 3, 8, -1, 2**62, 2**31)) for _ in range(r.randint(0, 4))]
        ops.unpack_bits(source.tensor(torch.uint8), shape, source.integer())
    elif which == 8:
        codes = source.tensor(torch.int8, (1, 2, 3, 4))
        scale = torch.rand(codes.shape[0] if r.random() < 0.8 else 3, generator=source.generator)
        bias = (
            None
            if r.random() < 0.5
            else torch.rand(codes.shape[0] if r.random() < 0.8 else 2, generator=source.generator)
        )
        ops.pack_weight(
            codes, scale, bias, r.choice((1, 1, 2, 0, -1, 3, 2**40)), r.choice((8, 4, 0, 9, 2))
        )
    elif which == 9:
        shape = [r.choice((1, 3, 16, 17, 4, 30, -1, 2**62)) for _ in range(r.randint(0, 4))]
        ops.unpack_weight(panel(source), shape)
    elif which == 10:
        ops.linear_dynamic(source.tensor(f32), panel(source), source.integer())
    elif which >= LOWBIT:
        lowbit_case(source)
    else:
        inputs, panels, program = region_parts(source)
        good = ops.region_constants(panels, program)
        mode = r.randrange(5)
        if mode == 0:
            k = r.randrange(len(panels))
            panels[k] = hostile_bytes(source, panels[k], 1.0)
        elif mode == 1:
            r.shuffle(panels)
            if r.random() < 0.5:
                panels.pop()
        elif mode == 2:
            inputs = [source.tensor(f32) for _ in range(r.randrange(3))]
        else:
            program = mutate(source, program)
        constants = good
        if r.random() < 0.7:
            constants = ops.region_constants(panels, program)
        elif r.random() < 0.5:
            constants = hostile_bytes(source, good, 1.0)
        for y in ops.run_region(inputs, panels, constants, program):
            assert y.dtype == torch.float32 and y.dim() < 6
            y.sum()


def peak_memory() -> float:
    """GiB that this process has held at most. Not ru_maxrss, which starts at what the parent has held."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 2**20


def main() -> int:
    warnings.simplefilter("ignore")
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    last: Any = (
        open(os.environ["OCTAVO_FUZZ_LAST"], "w") if "OCTAVO_FUZZ_LAST" in os.environ else None
    )
    torch.set_num_threads(2)
    raised = passed = 0
    for i in range(first, first + count):
        if last:
            last.seek(0)
            last.write(f"{i}          ")
            last.flush()
        try:
            case(Source(seed * 1_000_003 + i))
            passed += 1
        except (
            RuntimeError,
            ValueError,
            TypeError,
            NotImplementedError,
            IndexError,
            OverflowError,
        ):
            raised += 1
    peak = peak_memory()
    print(f"{passed} gave results, {raised} raised, peak {peak:.2f} GiB, {octavo.isa()}")
    return 0 if peak < 4 else 3


if __name__ == "__main__":
    sys.exit(main())
