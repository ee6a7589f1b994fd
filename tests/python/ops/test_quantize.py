"""quantize, quantize_per_channel, dequantize: the formula in a few lines, opcheck, messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo import ops

HARD = [
    0.0,
    -0.0,
    1e30,
    -1e30,
    float("inf"),
    float("-inf"),
    float("nan"),
    1e-45,
    0.5,
    1.5,
    2.5,
    -0.5,
]


def reference(x: Tensor, scale: float, zero_point: int, max_code: int) -> Tensor:
    """The contract's formula in float64 of the float32 product."""
    r = np.float32(1.0 / np.float64(np.float32(scale)))
    product = torch.from_numpy(x.numpy() * r).double()
    product = torch.nan_to_num(product, nan=-zero_point, posinf=1e300, neginf=-1e300)
    return (product.clamp(-zero_point, max_code - zero_point).round() + zero_point).to(torch.uint8)


@pytest.mark.parametrize("zero_point", [0, 1, 114, 255])
@pytest.mark.parametrize("scale", [0.5, 0.0371, 1.2e-7, 1e30])
def test_quantize_is_the_formula(isa: str, scale: float, zero_point: int) -> None:
    x = torch.cat([torch.randn(1003) * scale * 100, torch.tensor(HARD) * scale, torch.tensor(HARD)])
    assert torch.equal(ops.quantize(x, scale, zero_point), reference(x, scale, zero_point, 255))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types_are_converted_once(dtype: torch.dtype) -> None:
    x = torch.randn(77).to(dtype)
    assert torch.equal(ops.quantize(x, 0.03, 128), ops.quantize(x.float(), 0.03, 128))


def strided(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory layouts."""
    wide = torch.randn(*x.shape[:-1], 2 * x.shape[-1] + 1)
    wide[..., 1::2] = x
    return {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced with an odd offset": wide[..., 1::2],
        "channels_last": x.contiguous(memory_format=torch.channels_last),
    }


def test_any_strides_give_contiguous_codes() -> None:
    x = torch.randn(3, 5, 7, 9)
    expected = ops.quantize(x, 0.03, 128)
    for name, same in strided(x).items():
        codes = ops.quantize(same, 0.03, 128)
        assert torch.equal(codes, expected) and codes.is_contiguous(), name
    assert torch.equal(
        ops.quantize(x[:1].expand(3, 5, 7, 9), 0.03, 128), expected[:1].expand(3, 5, 7, 9)
    )


def test_quantize_per_channel_is_the_formula(isa: str) -> None:
    x = torch.randn(4, 6, 11)
    x[0, 0, :7] = torch.tensor(HARD[:7])
    for axis in (0, 1, 2, -1):
        scale = torch.rand(x.shape[axis]) * 0.02 + 1e-3
        shape = [1] * 3
        shape[axis] = -1
        product = torch.nan_to_num(x * (1 / scale).view(shape), nan=-127.0)
        expected = product.clamp(-127, 127).round().to(torch.int8)
        assert torch.equal(ops.quantize_per_channel(x, scale, axis, -127, 127), expected), axis


def test_dequantize_is_scale_times_distance() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    expected = torch.tensor(0.037) * (codes.float() - 99)
    assert torch.equal(ops.dequantize(codes, 0.037, 99), expected)
    assert torch.equal(ops.dequantize(codes.t(), 0.037, 99), expected.t())


def test_empty() -> None:
    assert ops.quantize(torch.empty(3, 0, 2), 0.1, 0).shape == (3, 0, 2)
    assert ops.dequantize(torch.empty(0, dtype=torch.uint8), 0.1, 0).shape == (0,)


BAD = [
    (lambda: ops.quantize([1.0], 0.1, 0), TypeError, "torch.as_tensor"),
    (lambda: ops.quantize(np.ones(3), 0.1, 0), TypeError, r"got numpy.ndarray.*torch.as_tensor"),
    (lambda: ops.quantize(torch.ones(3, dtype=torch.int64), 0.1, 0), TypeError, r"torch.int64.*\.float\(\)"),
    (lambda: ops.quantize(torch.ones(3).bool(), 0.1, 0), TypeError, r"torch.bool.*\.float\(\)"),
    (lambda: ops.quantize(torch.ones(3) * 1j, 0.1, 0), TypeError, "complex64"),
    (lambda: ops.quantize(torch.ones(3).to_sparse(), 0.1, 0), TypeError, "sparse_coo"),
    (lambda: ops.quantize(torch.ones(3, device="meta"), 0.1, 0), TypeError, "meta tensor"),
    (lambda: ops.quantize(torch.ones(3), 0.0, 0), ValueError, "got 0.0"),
    (lambda: ops.quantize(torch.ones(3), -1.0, 0), ValueError, "got -1.0"),
    (lambda: ops.quantize(torch.ones(3), float("nan"), 0), ValueError, "got nan"),
    (lambda: ops.quantize(torch.ones(3), float("inf"), 0), ValueError, "got inf"),
    (lambda: ops.quantize(torch.ones(3), 1e-45, 0), ValueError, "got 1e-45"),
    (lambda: ops.quantize(torch.ones(3), "1", 0), TypeError, "got '1'"),
    (lambda: ops.quantize(torch.ones(3), 0.1, 300), ValueError, r"0\.\.255, got 300"),
    (lambda: ops.quantize(torch.ones(3), 0.1, -129), ValueError, "got -129"),
    (lambda: ops.quantize(torch.ones(3), 0.1, 1.5), TypeError, "got 1.5"),
    (lambda: ops.quantize(torch.ones(3), 0.1, 2**40), ValueError, "got 1099511627776"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3), 5, -127, 127), ValueError, r"-2\.\.1.*got 5"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3), -5, -127, 127), ValueError, "got -5"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3), 2**40, -127, 127), ValueError, "got 1099511627776"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(4), 0, -127, 127), ValueError, r"\[3\], got \[4\]"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.tensor([1.0, 0.0, 1.0]), 0, -127, 127), ValueError, "index 1"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3).double(), 0, -127, 127), TypeError, "float64"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3, requires_grad=True), 0, -127, 127), ValueError, "requires_grad"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3), 0, 5, 5), ValueError, "qmin"),
    (lambda: ops.quantize_per_channel(torch.ones(3, 4), torch.ones(3), 0, -127, 200), ValueError, "qmax"),
    (lambda: ops.dequantize(torch.ones(3), 0.1, 0), TypeError, "torch.uint8, got torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]


def test_opcheck() -> None:
    x = torch.randn(2, 3, 4, 5)
    codes = torch.randint(0, 256, (3, 4), dtype=torch.uint8)
    for same in (x, x.transpose(0, 1), x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(torch.ops.octavo.quantize.default, (same, 0.03, 128, 255))
        torch.library.opcheck(
            torch.ops.octavo.quantize_per_channel.default, (same, torch.rand(4) + 0.1, 2, -127, 127)
        )
    torch.library.opcheck(torch.ops.octavo.dequantize.default, (codes, 0.03, 9))
    torch.library.opcheck(torch.ops.octavo.dequantize.default, (codes.t(), 0.03, 9))
