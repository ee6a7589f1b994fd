"""Packed weights of several MiB lie in huge pages, where Linux gives them."""

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo import ops

MIB = 1 << 20


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping that holds an address (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no mapping holds {address:#x}")


def system_gives_huge_pages() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    memory = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"\1" * (8 * MIB))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = (start + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(4 * MIB), 25)  # MADV_COLLAPSE
    return huge_bytes(begin) >= 4 * MIB


def pack_panel() -> Tensor:
    codes = torch.randint(-128, 128, (2048, 4096), dtype=torch.int8)
    return ops.pack_weight(codes, torch.ones(2048), None, 1, 8)


def pack_groups() -> Tensor:
    codes = torch.randint(0, 16, (4096, 4096), dtype=torch.uint8)
    return ops.pack_lowbit(codes, torch.ones(4096, 32), 4, 128)


@pytest.mark.parametrize("pack", [pack_panel, pack_groups])
def test_a_packed_weight_of_8_mib_lies_in_huge_pages(pack: Callable[[], Tensor]) -> None:
    if not system_gives_huge_pages():
        pytest.skip("this system gives no huge pages when asked (MADV_COLLAPSE, Linux 6.1)")
    for _ in range(2):  # fresh memory, and perhaps memory that was used before
        packed = pack()
        middle = packed.data_ptr() + packed.numel() // 2
        assert huge_bytes(middle) >= packed.numel() - 4 * MIB
