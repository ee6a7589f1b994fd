"""PEP 517 backend: setuptools, plus build requirements that depend on what the environment holds.

pip builds in an isolated environment in which torch would be downloaded anew, gigabytes for
nothing. Where the environment that octavo goes into has torch, this backend builds against it.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay setuptools' own

_Config = Mapping[str, Any] | None


def _find_torch() -> bool:
    """Whether the build can import torch, if need be from the environment's own packages."""
    if find_spec("torch") is not None:
        return True
    # In pip's isolated build these are still the folders of the environment pip runs for.
    for name in ("platlib", "purelib"):
        folder = sysconfig.get_path(name)
        if (Path(folder) / "torch" / "version.py").is_file():
            # At the end: the isolated environment's own packages win.
            sys.path.append(folder)
            return True
    return False


def _requirements() -> list[str]:
    wanted = [] if _find_torch() else ["torch>=2.10"]
    if shutil.which("cmake") is None:
        wanted.append("cmake>=3.22")
    if shutil.which("ninja") is None:
        wanted.append("ninja")
    return wanted


def get_requires_for_build_wheel(config_settings: _Config = None) -> list[str]:
    """Requirements of a wheel build beyond those in pyproject.toml."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements()]


def get_requires_for_build_editable(config_settings: _Config = None) -> list[str]:
    """Requirements of an editable build beyond those in pyproject.toml."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements()]


def build_wheel(
    wheel_directory: str,
    config_settings: _Config = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds a wheel and returns its file name."""
    _find_torch()
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str,
    config_settings: _Config = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds the wheel of an editable install and returns its file name."""
    _find_torch()
    return str(build_meta.build_editable(wheel_directory, config_settings, metadata_directory))
