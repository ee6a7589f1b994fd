"""The built libraries: no instruction outside its ISA's objects, no shared inline code, no spilled accumulators, no
second thread runtime, no symbol of torch that is not stable.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import missing

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent.parent
X86 = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")


def package() -> Path:
    import octavo

    return Path(octavo.__file__).parent


def operators() -> Path:
    return package() / "octavo_ops.so"


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        missing(f"{command[0]} is not installed (binutils)")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def objects(isa: str) -> list[Path]:
    """Object files of one ISA in the newest build tree; OCTAVO_BUILD names another one."""
    trees = [Path(os.environ["OCTAVO_BUILD"])] if "OCTAVO_BUILD" in os.environ else []
    trees += [ROOT / "build", *sorted((ROOT / "build").glob("*"))]
    found = [
        sorted(folder.rglob("*.o"))
        for tree in trees
        for folder in (tree / "CMakeFiles" / f"kernels_{isa}.dir",)
        if folder.is_dir()
    ]
    found = [files for files in found if files]
    if not found:
        missing(f"no objects of {isa}: build in {ROOT / 'build'} or set OCTAVO_BUILD")
    return max(found, key=lambda files: max(f.stat().st_mtime for f in files))


def kernel_objects() -> list[Path]:
    trees = [Path(os.environ["OCTAVO_BUILD"])] if "OCTAVO_BUILD" in os.environ else []
    trees += [ROOT / "build", *sorted((ROOT / "build").glob("*"))]
    for tree in trees:
        files = [
            p
            for name in ("kernels.dir", "kernels_scalar.dir", "octavo_ops.dir", "_C.dir")
            for p in (tree / "CMakeFiles" / name).rglob("*.o")
        ]
        if files:
            return files
    missing(f"no objects: build in {ROOT / 'build'} or set OCTAVO_BUILD")
    raise AssertionError


@pytest.mark.parametrize("tier", ("scalar", *X86))
def test_no_weak_functions_in_isa_objects(tier: str) -> None:
    """An inline function compiled with -mavx512f must not be the one that the linker keeps for everybody."""
    count = 0
    for path in objects(tier):
        for line in run("nm", "-C", str(path)).splitlines():
            parts = line.split(maxsplit=2)
            kind = parts[-2] if len(parts) >= 2 else ""
            if len(parts) == 3:
                count += 1
                kind = parts[1]
            assert kind not in ("W", "V", "u"), f"{path.name}: {line}"
    assert count > 0


@pytest.mark.parametrize("tier", X86)
def test_no_static_initialisers_in_isa_objects(tier: str) -> None:
    for path in objects(tier):
        sections = run("objdump", "-h", str(path))
        assert ".init_array" not in sections and ".ctors" not in sections, path.name


def test_no_avx_outside_isa_objects() -> None:
    """Baseline code runs on any x86-64: no VEX or EVEX instruction (they all begin with v) and no wide register."""
    checked = 0
    for path in kernel_objects():
        for line in run("objdump", "-d", "--no-show-raw-insn", str(path)).splitlines():
            match = re.match(r"\s+[0-9a-f]+:\s+(\S+)", line)
            if match:
                checked += 1
                name = match.group(1)
                assert not (name.startswith("v") and name not in ("verr", "verw")), (
                    f"{path.name}: {line}"
                )
                assert "%ymm" not in line and "%zmm" not in line, f"{path.name}: {line}"
    assert checked > 10_000


# The instruction that does a tier's dot products, and its accumulators' registers.
DOT = {
    "avx512_vnni": (r"vpdpbusd", "zmm"),
    "avx_vnni": (r"(\{vex\} )?vpdpbusd", "ymm"),
    "avx2": (r"vpmaddwd|vpmaddubsw", "ymm"),
    "amx_int8": (r"tdpb", "tmm"),
}


@pytest.mark.parametrize("tier", sorted(DOT))
def test_dot_products_are_there_and_accumulators_stay_in_registers(tier: str) -> None:
    """Innermost loops store no vector register on the stack between their first and their last dot product.

    A loop is what lies between a backward jump and its target. A spilled accumulator must be stored there; reloading
    a constant that does not change is only slow, and what the epilogue does is its own matter.
    """
    dot, register = DOT[tier]
    loops = 0
    files = [p for p in objects(tier) if re.match(r"(gemm|conv|depthwise|linear|lowbit)", p.name)]
    if not files:
        missing(f"{tier} has no product kernels of its own")
    for path in files:
        for name, lines in addressed(path).items():
            position = {address: i for i, (address, _) in enumerate(lines)}
            jumps = [
                (position[target], i)
                for i, (_, text) in enumerate(lines)
                if (match := re.match(r"j\w+\s+([0-9a-f]+)", text))
                and (target := int(match.group(1), 16)) in position
                and position[target] < i
            ]
            for first, last in jumps:
                if any(first <= a and b <= last and (a, b) != (first, last) for a, b in jumps):
                    continue
                body = [text for _, text in lines[first : last + 1]]
                dots = [i for i, text in enumerate(body) if re.match(dot, text)]
                if not dots:
                    continue
                loops += 1
                body = body[dots[0] : dots[-1]]
                spills = [
                    t
                    for t in body
                    if re.match(rf"vmov\w+\s+%{register}\d+,[-0-9a-fx]*\(%r[sb]p", t)
                ]
                assert not spills, f"{path.name}: {name}: {spills[:4]} ({len(spills)})"
    assert loops > 0, f"no loop with {dot} in {[p.name for p in files]}"
    print(f"{tier}: {loops} loops")


def addressed(path: Path) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    name = ""
    for line in run("objdump", "-dC", "--no-show-raw-insn", str(path)).splitlines():
        header = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if header:
            name = header.group(1)
            found[name] = []
            continue
        match = re.match(r"\s+([0-9a-f]+):\s+(.*)", line)
        if name and match:
            found[name].append((int(match.group(1), 16), match.group(2).strip()))
    return found


def test_no_openmp_runtime_of_our_own() -> None:
    for library in (operators(), next(package().glob("_C.*so"))):
        needed = re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", str(library)))
        assert needed
        assert not [n for n in needed if re.search(r"omp|tbb|mkl", n)], needed
    needed = re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", str(operators())))
    assert "libtorch_cpu.so" in needed and not [
        n for n in needed if "c10" in n or "torch_python" in n
    ]


def test_only_stable_symbols_of_torch() -> None:
    text = run("nm", "-DC", "--undefined-only", str(operators()))
    assert "aoti_torch_" in text or "torch_" in text
    for line in text.splitlines():
        assert not re.search(r"\b(at|c10|torch)::", line), line


def test_nothing_but_its_interface_is_exported() -> None:
    text = run("nm", "-DC", "--defined-only", str(operators()))
    bad = [
        line
        for line in text.splitlines()
        if re.search(r"\b(avx2|avx_vnni|avx512_vnni|amx_int8|scalar)::", line)
    ]
    assert not bad, bad[:5]


def test_one_openmp_runtime_is_mapped() -> None:
    code = (
        "import torch, octavo\n"
        "octavo.quantize(torch.nn.Linear(64, 64), 8, progress=False)(torch.ones(64, 64))\n"
        "names = {l.split()[-1] for l in open('/proc/self/maps') if '.so' in l}\n"
        "print(sorted(n for n in names if 'libgomp' in n or 'libomp' in n or 'libiomp' in n))\n"
    )
    if not Path("/proc/self/maps").exists():
        missing("no /proc/self/maps on this system")
    path = os.pathsep.join(p for p in sys.path if p)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert len(eval(result.stdout)) == 1, result.stdout


def test_size_of_the_package() -> None:
    """The wheel promises at most 8 MB."""
    total = sum(
        p.stat().st_size
        for p in package().rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    )
    assert total < 16 * 2**20, f"{total / 2**20:.1f} MiB unpacked"
