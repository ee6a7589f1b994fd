"""One file replaced whole: whatever fails, and whenever, the old file is there as it was.

A temporary file beside the target is written, flushed to the disk and renamed. Every file that
octavo writes goes this way.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["kind_of", "replacing", "write_all", "write_text"]

_TEMPORARY = re.compile(r"[0-9a-f]{16}\.tmp")


def kind_of(mode: int) -> str:
    """What a path that is no regular file is, in words."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((text for test, text in kinds if test(mode)), "something else")


def write_text(path: str | os.PathLike[str], text: str, where: str) -> None:
    """Puts a file of UTF-8 text at ``path``.

    Raises:
        OSError: the directory is missing, full or read-only, or ``path`` is no regular file.
    """
    with replacing(path, where) as descriptor:
        write_all(descriptor, text.encode())


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes all of it, in as many calls as the system takes."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(descriptor, view[: 1 << 30]) :]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], where: str) -> Iterator[int]:
    """The descriptor of a temporary file that takes the place of ``path`` when all went well."""
    target = os.path.realpath(path)
    if os.path.lexists(target):
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(f"{where}: expected a regular file or a new name, got {kind_of(mode)}.")
        if not os.access(target, os.W_OK):
            raise PermissionError(
                f"{where}: expected a file that may be written, got a read-only one."
            )
    folder, name = os.path.split(target)
    prefix = f".{os.fsdecode(os.fsencode(name)[:100])}."
    try:
        temporary, descriptor = _create(folder, prefix)
        try:
            try:
                yield descriptor
                os.fsync(descriptor)
                os.replace(temporary, target)
            finally:
                os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _remove_abandoned(folder, prefix)
        if hasattr(os, "O_DIRECTORY"):
            parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    except OSError as error:
        if error.filename is None:
            error.filename = target
        raise


def _create(folder: str, prefix: str) -> tuple[str, int]:
    """A new temporary file, locked for as long as its descriptor is open."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(8)}.tmp")
        descriptor = os.open(path, flags, 0o666)
        if fcntl is None:
            return path, descriptor
        with contextlib.suppress(
            OSError
        ):  # A file system without locks: then nothing is removed either.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # Another writer took it for an abandoned one before it was locked.


def _remove_abandoned(folder: str, prefix: str) -> None:
    """Removes the temporary files of writers that were killed: nobody holds their lock."""
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        found = [
            entry.path
            for entry in entries
            if entry.name.startswith(prefix) and _TEMPORARY.fullmatch(entry.name[len(prefix) :])
        ]
    # What is no regular file is none of ours. O_NONBLOCK: opening a FIFO must not wait.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    for path in found:
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue  # Opening a device can already do something.
            descriptor = os.open(path, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.unlink(path)
            finally:
                os.close(descriptor)
