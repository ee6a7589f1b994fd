"""Files are replaced whole: the old one survives every error, and nothing beside it can hang or fool a writer."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.files.atomic_file import write_text

Writer = Callable[[Path], None]


def small() -> nn.Module:
    torch.manual_seed(0)
    return octavo.quantize(nn.Sequential(nn.Linear(8, 4)).eval(), 8, progress=False)


def _save(path: Path) -> None:
    octavo.save(small(), path)


def _save_trainee(path: Path) -> None:
    octavo.save(octavo.quantize(nn.Sequential(nn.Linear(8, 4)), 8, qat=True, progress=False), path)


def _save_html(path: Path) -> None:
    octavo.report(small()).save_html(path)


WRITERS = pytest.mark.parametrize(
    "write", [_save, _save_trainee, _save_html], ids=["model", "trainee", "html"]
)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails instead of hanging."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"still writing after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def temporary(path: Path, digit: str = "0") -> Path:
    """A name that a killed writer of ``path`` could have left."""
    return path.with_name(f".{path.name}.{digit * 16}.tmp")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # The name of a socket has at most 107 bytes.


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("making a device needs privileges that this process lacks")


MAKERS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": _socket,
    "directory": Path.mkdir,
    "device": _device,
}
KINDS = pytest.mark.parametrize("kind", MAKERS)


@WRITERS
@KINDS
def test_what_is_named_like_a_temporary_harms_nothing(
    tmp_path: Path, kind: str, write: Writer
) -> None:
    path = tmp_path / "file"
    other = temporary(path)
    MAKERS[kind](other)
    with at_most(20):
        write(path)
        write(path)
    assert path.is_file() and other.exists() and not other.is_file(), "it is none of ours"
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, other.name])


@WRITERS
def test_links_named_like_a_temporary_are_not_followed(tmp_path: Path, write: Writer) -> None:
    path, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_text("kept")
    temporary(path).symlink_to(victim)
    write(path)
    assert victim.read_text() == "kept" and temporary(path).is_symlink()


@WRITERS
def test_what_killed_writers_left_is_removed(tmp_path: Path, write: Writer) -> None:
    path = tmp_path / "file"
    temporary(path).write_text("half")
    temporary(path, "f").write_text("")
    temporary(path, "f").chmod(0o444)
    others = [
        temporary(tmp_path / "other"),
        tmp_path / ".file.tmp",
        tmp_path / ".file.0123456789abcdeg.tmp",
    ]
    for other in others:
        other.write_text("another's")
    write(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@WRITERS
@KINDS
def test_targets_that_are_no_files_are_refused(tmp_path: Path, kind: str, write: Writer) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    MAKERS[kind](target)
    link.symlink_to(target)
    for path in (target, link):
        with (
            at_most(20),
            pytest.raises(OSError, match=f"expected a regular file or a new name, got a {kind}"),
        ):
            write(path)
    assert sorted(os.listdir(tmp_path)) == ["link", "target"] and not target.is_file()


@WRITERS
@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_the_old_file_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, write: Writer
) -> None:
    path = tmp_path / "file"
    write(path)
    before = path.read_bytes()

    def fails(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as info:
        patch.setattr(os, name, fails)
        write(path)
    assert info.value is error
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file"]


def test_readers_see_one_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = ["a" * 100_000, "b" * 200_000]
    write_text(path, texts[0], "test")
    done = threading.Event()

    def read() -> list[str]:
        seen = []
        while not done.is_set():
            text = path.read_text()
            if text not in texts:
                seen.append(text[:10])
        return seen

    torn: list[str] = []
    reader = threading.Thread(target=lambda: torn.extend(read()))
    reader.start()
    for turn in range(50):
        write_text(path, texts[turn % 2], "test")
    done.set()
    reader.join()
    assert not torn


@pytest.mark.parametrize("name", ["ü" * 120, "名" * 80, "a" * 250], ids=["two", "three", "one"])
def test_long_names(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x", "test")
    temporary = tmp_path / f".{os.fsdecode(os.fsencode(name)[:100])}.{'0' * 16}.tmp"
    temporary.write_text("half")
    write_text(tmp_path / name, "y", "test")
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "y"
