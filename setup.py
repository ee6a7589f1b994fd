"""Runs CMake for setuptools: CMakeLists.txt describes the build, pyproject.toml the package.

`CMAKE_ARGS` and `MAX_JOBS` in the environment are honoured. Objects persist under build/, so that
a second build is short.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def _folder_of_torch() -> str:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "octavo: expected torch >= 2.10 to build against, got none. Install torch first."
        )
    return str(Path(spec.origin).parent)


class CMakeBuild(build_ext):
    """Configures, builds and installs the component `python` where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Puts octavo_ops and _C beside the Python files (editable) or into the wheel."""
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        tree = (ROOT / self.build_temp).resolve()
        # The last build's CMake and Ninja may have lived in an isolated environment that is gone.
        (tree / "CMakeCache.txt").unlink(missing_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(tree), *generator,
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DOCTAVO_TORCH_FOLDER={_folder_of_torch()}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run([*configure], check=True)
        subprocess.run(["cmake", "--build", str(tree), "--parallel", jobs], check=True)
        subprocess.run(
            [
                "cmake",
                "--install",
                str(tree),
                "--component",
                "python",
                "--prefix",
                str(destination),
                "--strip",
            ],
            check=True,
        )


setup(ext_modules=[Extension("octavo._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
