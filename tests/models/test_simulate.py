"""The independent simulation is itself checked: its fmaf against the C library, its bit stream against Python ints."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
import torch

from simulate import fmaf, parse, simulate, unpack


def test_fmaf_rounds_once() -> None:
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.fmaf.argtypes = [ctypes.c_float] * 3
    libm.fmaf.restype = ctypes.c_float
    random = np.random.default_rng(0)
    a = random.integers(-(2**24), 2**24, 20000).astype(np.float32)
    b = np.exp2(random.uniform(-12, 0, 20000)).astype(np.float32)
    c = random.uniform(-300, 300, 20000).astype(np.float32)
    c[:5000] = np.round(c[:5000]) + 0.5
    b[:5000] = np.exp2(np.round(np.log2(b[:5000])))  # many exact ties
    # Sums whose float64 form lies on a float32 tie: rounding twice goes wrong there.
    a[-1], b[-1], c[-1] = 2**24 - 1, 1 + 2**-23, 2**-31
    a[-2], b[-2], c[-2] = 1 + 2**-23, 1 + 2**-23, 2**-60
    mine = fmaf(*(torch.from_numpy(v).double() for v in (a, b, c))).numpy()
    theirs = [libm.fmaf(float(x), float(y), float(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert (mine == np.array(theirs)).all()
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (twice != np.array(theirs, np.float32)).sum() < 20000  # the comparison is not vacuous


def test_unpack_equals_python_integers() -> None:
    random = np.random.default_rng(0)
    for bits in range(2, 9):
        codes = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 13))
        rows = []
        for row in codes:
            stream = sum((int(v) & (2**bits - 1)) << (bits * i) for i, v in enumerate(row))
            rows.append(list(stream.to_bytes(-(-13 * bits // 8), "little")))
        packed = torch.tensor(rows, dtype=torch.uint8)
        assert (unpack(packed, (3, 13), bits).numpy() == codes).all()


def test_by_hand() -> None:
    """x = [0.5, 2.0], s = 0.5: codes 1 + 10, 4 + 10; table doubles (mod 256)."""
    program = (
        "octavo.region 1\n"
        "0 = quantize in=0 layout=rows s=0x1p-1 z=10 max=255\n"
        "1 = table x=0 panel=0 s=0x1p-1 z=20 max=255\n"
        "out 1\n"
    )
    assert parse(program)[1] == [1]
    table = (torch.arange(256) * 2 % 256).to(torch.uint8)
    values = simulate(program, [torch.tensor([[0.5, 2.0]])], {0: table})
    assert values[0].data.tolist() == [[11.0, 14.0]]
    assert values[1].data.tolist() == [[22.0, 28.0]]
