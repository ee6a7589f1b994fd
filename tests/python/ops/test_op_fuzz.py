"""Operators: torch's own checks of schema, fake kernel and autograd, and hostile arguments in a child."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fuzz_ops
import octavo
from conftest import FULL


def samples(name: str) -> list[tuple[Any, ...]]:
    """Arguments for opcheck, twenty a operator where there is something to vary."""
    g = torch.Generator().manual_seed(0)
    out: list[tuple[Any, ...]] = []
    shapes = [
        (7,),
        (3, 4),
        (2, 3, 5),
        (2, 3, 4, 5),
        (0, 3),
        (1,),
        (17, 16),
        (4, 1, 9),
        (2, 0, 3),
        (33,),
    ]
    for i in range(20):
        shape = shapes[i % len(shapes)]
        x = torch.randn(shape, generator=g)
        if i >= 10 and x.dim() >= 2:
            x = x.transpose(0, 1)
        channels = 1 + i % 5
        codes = torch.randint(-127, 128, (channels, 3 + i), dtype=torch.int8, generator=g)
        scale = torch.rand(channels, generator=g) + 0.1
        bias = None if i % 2 else torch.randn(channels, generator=g)
        if name == "quantize":
            out.append((x, 0.05 + i / 10, i, 255))
        elif name == "quantize_per_channel":
            axis = i % x.dim()
            out.append((x, torch.rand(x.shape[axis], generator=g) + 0.1, axis, -127, 127))
        elif name == "dequantize":
            out.append((torch.randint(0, 256, shape, dtype=torch.uint8, generator=g), 0.1, i))
        elif name == "minmax":
            out.append((x,))
        elif name == "clip_error":
            rows = x.flatten(1) if x.dim() > 1 else x[None]
            unit, ends = torch.ones(len(rows)), torch.tensor([[-8.0], [7.0]])
            scales = torch.rand(len(rows), 1 + i) + 0.1
            weights = rows.abs() if i % 2 else None
            out.append((rows, scales, unit, ends.repeat(1, len(rows)), weights))
        elif name == "minmax_per_channel":
            out.append((x, i % x.dim()))
        elif name == "histogram":
            out.append((x, -4, -8, 16 + i))
        elif name == "pack_bits":
            bits = 2 + i % 7
            out.append((codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), bits))
        elif name == "unpack_bits":
            packed = torch.ops.octavo.pack_bits(codes, 8)
            out.append((packed, list(codes.shape), 8))
        elif name == "pack_weight":
            out.append((codes, scale, bias, 1, 8))
        elif name == "unpack_weight":
            out.append((torch.ops.octavo.pack_weight(codes, scale, bias, 1, 8), list(codes.shape)))
        elif name == "linear_dynamic":
            lead = [(4,), (2, 3), (0,), (), (1, 1, 2)][i % 5]
            rows = torch.randn(*lead, codes.shape[1], generator=g)
            out.append((rows, torch.ops.octavo.pack_weight(codes, scale, bias, 1, 8), channels))
        elif "recurrent" in name:
            out.append(recurrent_sample(name, i, g))
        elif "lowbit" in name:
            out.append(lowbit_sample(name, i, g))
        elif "fake_quantize" in name:
            out.append(training_sample(name, x, i, g))
        elif name in ("region_constants", "run_region"):
            if i >= 6:
                break
            inputs, panels, program = fuzz_ops.region_parts(fuzz_ops.Source(i))
            if name == "region_constants":
                out.append((panels, program))
            else:
                x = inputs[0]
                if i % 2:
                    x = x.contiguous(memory_format=torch.channels_last)
                constants = torch.ops.octavo.region_constants(panels, program)
                out.append(([x, *panels], 1, constants, program))
    return out


def lowbit_sample(name: str, i: int, g: torch.Generator) -> tuple[Any, ...]:
    """Every width, groups and whole rows, all three kinds of levels."""
    bits, channels, inputs, group_size = 2 + i % 7, 1 + 9 * (i % 9), 3 + 7 * i, (0, 16, 48)[i % 3]
    groups = octavo.ops.lowbit_groups(inputs, group_size)
    codes = torch.randint(0, 2**bits, (channels, inputs), dtype=torch.uint8, generator=g)
    scale = (torch.rand(channels, groups, generator=g) + 0.1).bfloat16().float()
    zero_point = levels = None
    if i % 3 == 1 and bits < 8:
        zero_point = torch.randint(0, 2**bits, (channels, groups), dtype=torch.uint8, generator=g)
    elif i % 3 == 2:
        levels = torch.randint(
            -128, 128, (-(-channels // 64), 2**bits), dtype=torch.int8, generator=g
        )
    rows = name == "embedding_lowbit"
    bias = None if i % 2 or rows else torch.randn(channels, generator=g)
    packing = (codes, scale, zero_point, levels, bias, bits, group_size, rows)
    if name == "pack_lowbit":
        return packing
    packed = torch.ops.octavo.pack_lowbit(*packing)
    if name in ("unpack_lowbit", "dequantize_lowbit"):
        return packed, channels, inputs
    lead = [(4,), (2, 3), (0,), (), (1, 1, 2)][i % 5]
    if rows:
        return torch.randint(0, channels, lead, generator=g), packed, inputs
    x = torch.randn(*lead, inputs, generator=g)
    if name == "linear_lowbit":
        return x, packed, channels, ("dynamic", "float")[i // 2 % 2]
    return x, packed, channels, 0.05, i, 255


def recurrent_sample(name: str, i: int, g: torch.Generator) -> tuple[Any, ...]:
    """Each mode in turn, dense and packed weights, batches and packed sequences."""
    mode, gates = [("LSTM", 4), ("GRU", 3), ("RNN_TANH", 1), ("RNN_RELU", 1)][i % 4]
    width, sizes = 3 + i, [[3, 3], [4, 2, 1], [1], [0, 0]][i // 4 % 4]
    state = torch.randn(sizes[0], width, generator=g)
    if name == "recurrent_cell":
        x, h = torch.randn(2, sizes[0], gates * width, generator=g)
        return x, h, state, mode
    codes = torch.randint(-7, 8, (gates * width, width), dtype=torch.int8, generator=g)
    scale, packed = torch.rand(gates * width, generator=g) + 0.1, i % 3 == 0
    if packed:
        codes = (codes.to(torch.int16) + 8).to(torch.uint8)
        weight = torch.ops.octavo.pack_lowbit(codes, scale[:, None], None, None, None, 4, 0, False)
    else:
        weight = torch.ops.octavo.pack_weight(codes, scale, None, 1, 8)
    how = ("dynamic", "static", "float" if packed else "dynamic")[i // 3 % 3]
    x = torch.randn(sum(sizes), gates * width, generator=g)
    c = torch.randn(state.shape, generator=g) if gates == 4 else None
    return x, weight, state, c, sizes, bool(i % 2), mode, how, 0.01, 128, 255, packed


def training_sample(name: str, x: torch.Tensor, i: int, g: torch.Generator) -> tuple[Any, ...]:
    """Per tensor, per channel and group-wise in turn; float32 and bfloat16."""
    ops = torch.ops.octavo
    x = x.bfloat16() if i % 4 == 3 else x
    dy = torch.randn(x.shape, generator=g).to(x.dtype)
    axis, group = [(None, 0), (0 if "levels" in name else i % x.dim(), 0), (None, 16)][i % 3]
    steps: tuple[int, ...] = (1,) if axis is None else (x.shape[axis],)
    if group:
        steps = (x.shape[0], -(-math.prod(x.shape[1:]) // group))
    scale = torch.rand(steps, generator=g) + 0.1
    zero_point = None if i % 2 else torch.ones_like(scale)
    alpha = torch.rand(1, generator=g) + 0.1
    levels = torch.tensor([-7, -2, -1, 0, 1, 2, 7], dtype=torch.int8)
    if name == "fake_quantize":
        return x, scale, zero_point, -8, 7, axis, group, i % 4 == 0, i % 5 == 0
    if name == "fake_quantize_watched":
        return x, alpha, None, -8, 7, i % 4 == 0
    if name == "fake_quantize_masked":
        return x, scale, zero_point, -8, 7, axis, group, i % 4 == 0
    if name == "fake_quantize_backward":
        y, mask = ops.fake_quantize_masked(x, scale, zero_point, -8, 7, axis, group, False)
        return dy, mask, list(y.stride())
    if "codes" in name or "values" in name:
        options = (-8, 7, axis, group, i % 5 == 0)
        y = ops.fake_quantize(x.float(), scale, zero_point, *options[:4], False, options[4])
        values = (y, scale, zero_point, *options)
        return values if "codes" in name else (ops.fake_quantize_codes(*values)[0], *values[1:])
    if name == "fake_quantize_learned_backward":
        return dy, x, scale, zero_point, -8, 7, axis, group, i % 4 == 0, 0.5
    if name == "fake_quantize_clipped":
        return x, alpha, 2 + i % 7
    if name == "fake_quantize_clipped_backward":
        return dy, x, alpha
    if name == "fake_quantize_levels":
        return x, levels, scale, axis, group, i % 2 == 0
    if name == "fake_quantize_levels_backward":
        return dy, x, levels, scale, axis, group, i % 2 == 0, 0.5, i % 4 == 0
    assert name in {"observe_fake_quantize", "observe_fake_quantize_masked"}
    axis = None if group else axis
    state = torch.zeros(2) if axis is None else torch.zeros(2, x.shape[axis])
    return x, state, 0, 7, 0.1, axis, False, axis is None and i % 2 == 0, True, i % 4 == 0


def schemas() -> list[str]:
    text = (Path(__file__).parents[3] / "csrc" / "ops" / "library.cpp").read_text()
    return re.findall(r'm\.def\(\s*"(\w+)\(', text)


@pytest.mark.parametrize("name", schemas())
def test_opcheck_of_every_operator(name: str) -> None:
    arguments = samples(name)
    assert arguments, f"no samples for {name}: add some"
    op = getattr(torch.ops.octavo, name).default
    utils = ["test_schema", "test_faketensor"]
    for args in arguments:
        torch.library.opcheck(op, args, test_utils=utils)
    for args in arguments[:3]:
        torch.library.opcheck(op, args)


def test_the_fuzzers_program_is_valid() -> None:
    """Otherwise the fuzzer would only ever see the first check fail."""
    inputs, panels, program = fuzz_ops.region_parts(fuzz_ops.Source(0))
    constants = octavo.ops.region_constants(panels, program)
    [y] = octavo.ops.run_region(inputs, panels, constants, program)
    assert y.shape == (2, 5) and bool(y.isfinite().all()) and float(y.std()) > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_hostile_arguments(seed: int, tmp_path: Path) -> None:
    count = 25_000 if FULL else 1000
    last = tmp_path / "last"
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", fuzz_ops.__file__, str(count), str(seed)],
        env={
            **os.environ,
            "OCTAVO_FUZZ_LAST": str(last),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )
    again = (
        f"python {fuzz_ops.__file__} 1 {seed} {last.read_text().strip() if last.exists() else ''}"
    )
    assert result.returncode == 0, f"reproduce: {again}\n{result.stderr[-3000:]}"
    print(result.stdout)
    passed, raised = map(int, re.findall(r"(\d+) (?:gave|raised)", result.stdout))
    assert passed > count // 20 and raised > count // 20, result.stdout
