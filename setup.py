"""Runs CMake for setuptools. CMakeLists.txt is the description of the build; pyproject.toml that of the package.

`CMAKE_ARGS` and `MAX_JOBS` in the environment are honoured. Build trees persist under build/.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures, builds and installs the component `python` where setuptools wants the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Builds octavo_ops and _C beside the Python files (editable), or into the wheel's folder."""
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        tree = ROOT / "build" / f"wheel-{sys.implementation.cache_tag}"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(tree), *generator,
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DOCTAVO_PYTHONPATH={os.pathsep.join(sys.path)}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run([*configure], check=True)
        subprocess.run(["cmake", "--build", str(tree), "--parallel", jobs], check=True)
        subprocess.run(
            ["cmake", "--install", str(tree), "--component", "python"]
            + ["--prefix", str(destination), "--strip"],
            check=True,
        )


setup(ext_modules=[Extension("octavo._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
