"""Builds and runs the C++ tests, so that one pytest command proves the kernels too.

OCTAVO_BUILD names a CMake tree to build in; otherwise build/tests, which is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from conftest import missing

ROOT = Path(__file__).resolve().parent.parent.parent


def test_cpp_tests_pass() -> None:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed")
    tree = Path(os.environ.get("OCTAVO_BUILD", ROOT / "build" / "tests"))
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(ROOT), "-B", str(tree)]
    if not (tree / "CMakeCache.txt").exists():
        configure += [*generator, "-DBUILD_TESTING=ON", "-DOCTAVO_TORCH=OFF"]
    configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured.returncode and "GTest" in configured.stderr:
        missing("GoogleTest is not installed (Debian: libgtest-dev)")
    assert configured.returncode == 0, configured.stderr
    jobs = str(os.cpu_count() or 1)
    names = ("cpp_tests", "thread_tests")
    build = ["cmake", "--build", str(tree), "--parallel", jobs, "--target", *names]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-4000:]
    for name in names:
        command = [str(tree / name), "--gtest_brief=1"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
        assert "[  PASSED  ]" in ran.stdout
