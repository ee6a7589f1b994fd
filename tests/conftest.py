"""What all tests share: seeds, the instruction sets of this machine, real data, suite sizes.

OCTAVO_SUITE=ci selects the long sizes (full test sets, more fuzz); otherwise sizes suit every edit.
OCTAVO_SHARD=2/4 runs every fourth test, beginning with the second.
CI=true turns a skip for missing data into a failure, so that a green run never means "nothing ran".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

FULL = os.environ.get("OCTAVO_SUITE", "") == "ci"


def shard(text: str) -> slice:
    """What OCTAVO_SHARD="2/4" selects of all tests: neighbours, which take equally long, are dealt out in turn."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise pytest.UsageError(
            f"OCTAVO_SHARD: expected a part of all, such as 1/4, got {text!r}. Say which part."
        )
    return slice(int(match[1]) - 1, None, int(match[2]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = items[shard(os.environ.get("OCTAVO_SHARD", "1/1"))]
    if len(chosen) < len(items):
        kept = set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = chosen
    if FULL:
        return
    skip = pytest.mark.skip(reason="long suite: set OCTAVO_SUITE=ci")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


def missing(reason: str) -> None:
    """Skips the test, or fails it where CI=true says that everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Fixed seeds; OCTAVO_SEED overrides them. Printed by pytest only when a test fails."""
    value = int(os.environ.get("OCTAVO_SEED", "0"))
    torch.manual_seed(value)
    print(f"reproduce with OCTAVO_SEED={value} OCTAVO_ISA={os.environ.get('OCTAVO_ISA', '')}")


def _isas() -> list[str]:
    import octavo

    return list(octavo.isas())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", _isas(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set of this machine, forced."""
    import octavo

    before = octavo.isa()
    octavo.set_isa(request.param)
    assert octavo.isa() == request.param
    yield request.param
    octavo.set_isa(before)


def isas_and_thread_counts() -> Iterator[None]:
    """Every instruction set of this machine with one and two threads, one after the other."""
    import octavo

    before, threads = octavo.isa(), torch.get_num_threads()
    try:
        for name in _isas():
            octavo.set_isa(name)
            for count in (1, 2):
                torch.set_num_threads(count)
                yield
    finally:
        octavo.set_isa(before)
        torch.set_num_threads(threads)


@pytest.fixture
def full() -> bool:
    """True when the long sizes were asked for."""
    return FULL


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder with the real weights and images: OCTAVO_DATA, or shared/data beside the repository."""
    from networks import data_folder

    try:
        return data_folder()
    except FileNotFoundError as error:
        missing(str(error))
    raise AssertionError


@pytest.fixture
def torchvision() -> object:
    """The torchvision package, which only some environments have."""
    try:
        import torchvision
    except ImportError:
        missing("torchvision is not installed (pip install torchvision)")
    return torchvision
