"""What the CPU at hand is like: instruction set, caches, threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from octavo import library

__all__ = ["Machine", "machine"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Machine:
    """The CPU that octavo runs on.

    Attributes:
        isa: instruction set in use.
        caches: level to bytes of the data cache that one core reaches; {} where unknown.
        threads: number of threads that torch uses.
    """

    isa: str
    caches: dict[int, int]
    threads: int

    @property
    def last_cache(self) -> int | None:
        """Bytes of the largest cache, None where unknown."""
        return max(self.caches.values(), default=None)

    def __str__(self) -> str:
        caches = ", ".join(f"L{n} {size / 1024:,.0f} KiB" for n, size in self.caches.items())
        return f"{self.isa}, {caches or 'caches unknown'}, {self.threads} threads"


def machine(folder: Path = _CACHES) -> Machine:
    """This machine. ``folder``: where Linux describes the caches of a core."""
    caches: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
            count = int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
            if kind != "Instruction" and count > 0:
                caches[int(level)] = count
        except (OSError, ValueError, IndexError):
            continue
    return Machine(library.isa(), dict(sorted(caches.items())), torch.get_num_threads())
