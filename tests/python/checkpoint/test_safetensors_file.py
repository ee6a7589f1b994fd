"""The file format: what is written reads back, and every other byte string is refused with a reason."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from octavo.checkpoint.safetensors_file import read, write
from octavo.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.c": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 5),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype is b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def test_round_trip_and_the_library_agrees(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {**TENSORS, "t": TENSORS["a"].t()}, {"note": "Grüße"})
    tensors, metadata = read(path)
    assert same(tensors, {**TENSORS, "t": TENSORS["a"].t()})
    assert metadata["note"] == "Grüße" and len(metadata["sha256"]) == 64
    assert same(safetensors.torch.load_file(path), tensors)
    first = path.read_bytes()
    write(path, dict(reversed(tensors.items())), {"note": "Grüße"})
    assert path.read_bytes() == first, "files are reproducible"


def test_files_of_others_need_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"format": "pt"})
    tensors, metadata = read(path)
    assert same(tensors, TENSORS) and metadata == {"format": "pt"}


def build(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(
    shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32", **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


EIGHT = b"\0" * 8
CASES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "too short"),
    "one byte": (b"{", "too short"),
    "eight bytes": (EIGHT, "too short"),
    "header of 0": (b"\0" * 8 + b"{}", r"got 0\."),
    "header of 1": (b"\1" + b"\0" * 7 + b"{}", r"got 1\."),
    "header of 2^63": ((2**63).to_bytes(8, "little") + b"{}", "got 9223372036854775808"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "got 18446744073709551615"),
    "header beyond the file": (b"\3" + b"\0" * 7 + b"{}", r"2\.\.2 for a file of 10 bytes, got 3"),
    "no brace": (build(b"[]", EIGHT), "byte 8"),
    "not UTF-8": (build(b'{"\xff": 1}'), "UTF-8"),
    "cut JSON": (build(b'{"a": }'), "at byte 14"),
    "foreign bytes after JSON": (build(b"{} x"), "only spaces"),
    "other white space": (build(b"{}\n"), "only spaces"),
    "deep": (build(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "depth|dtype"),
    "many spaces": (build(b"{}" + b" " * (20 << 20)), "at most 16777216"),
    "duplicate names": (build(b'{"a":1,"a":2}'), "'a' twice"),
    "duplicate metadata": (build(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "metadata of numbers": (build({"__metadata__": {"a": 1}}), "__metadata__ of strings"),
    "metadata as list": (build({"__metadata__": []}), "__metadata__ of strings"),
    "huge shape": (build({"a": entry([2**40, 2**40])}, EIGHT), r"fewer than 2\^63"),
    "huge and empty": (build({"a": entry([0, 2**63 - 1, 4], [0, 0])}), r"fewer than 2\^63"),
    "negative size": (build({"a": entry([-1])}, EIGHT), "0..2"),
    "float size": (build({"a": entry([1.0])}, EIGHT), "integers in the header, got 1.0"),
    "NaN": (build(b'{"a": NaN}'), "got NaN"),
    "text size": (build({"a": entry(["3"])}, EIGHT), "shape of at most 8 integers"),
    "true as size": (build({"a": entry([True, 2])}, EIGHT), "shape of at most 8 integers"),
    "rank 1000": (build({"a": entry([1] * 1000)}, EIGHT), "shape of at most 8"),
    "reversed offsets": (build({"a": entry(offsets=[8, 0])}, EIGHT), r"got data_offsets \[8, 0\]"),
    "overlap": (
        build({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT + EIGHT),
        "'b' to start at 8.*'a', got 4",
    ),
    "gap": (
        build({"a": entry(), "b": entry(offsets=[9, 17])}, EIGHT + EIGHT + b"\0"),
        "start at 8",
    ),
    "unsorted": (build({"b": entry(offsets=[8, 16]), "a": entry()}, EIGHT + EIGHT), "start at 0"),
    "beyond the end": (build({"a": entry()}, b"\0" * 7), "expected 8 bytes of data.*got 7"),
    "bytes at the end": (build({"a": entry()}, EIGHT + b"PK"), "expected 8 bytes of data.*got 10"),
    "text offsets": (build({"a": entry(offsets=["0", "8"])}, EIGHT), "two integers"),
    "three offsets": (build({"a": entry(offsets=[0, 8, 8])}, EIGHT), "two integers"),
    "wrong length": (build({"a": entry(offsets=[0, 4])}, b"\0" * 4), "expected 8 bytes"),
    "unknown dtype": (build({"a": entry(dtype="F4")}, EIGHT), "got 'F4'"),
    "lower-case dtype": (build({"a": entry(dtype="f32")}, EIGHT), "got 'f32'"),
    "dtype as list": (build({"a": entry(dtype=["F32"])}, EIGHT), "dtype of"),
    "BOOL 7": (build({"a": entry([1], [0, 1], "BOOL")}, b"\7"), "BOOL bytes 0 or 1"),
    "extra field": (build({"a": entry(extra=1)}, EIGHT), "dtype, shape and data_offsets"),
    "missing field": (build({"a": {"dtype": "F32"}}), "dtype, shape and data_offsets"),
    "tensor as number": (build({"a": 3}), "dtype, shape and data_offsets"),
    "path as name": (build({"../x": entry()}, EIGHT), "without separators"),
    "slash in a name": (build({"a/b": entry()}, EIGHT), "without separators"),
    "control character": (build({"a\n": entry()}, EIGHT), "control characters"),
    "long name": (build({"a" * 1025: entry()}, EIGHT), "at most 1024 characters"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "does not open pickles"),
    "pickle": (b"\x80\x04\x95" + b"\xff" * 60, "does not open pickles"),
    "GGUF": (b"GGUF\3\0\0\0" + b"\0" * 60, "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "HDF5"),
    "gzip": (b"\x1f\x8b\x08" + b"\xff" * 60, "gzip"),
    "HTML": (b"<!DOCTYPE html><html></html>", "HTML"),
    "git-LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
}


@pytest.mark.parametrize("content, text", CASES.values(), ids=CASES.keys())
def test_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        read(path)


def test_too_many_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    one = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    path.write_bytes(build(("{" + ",".join(f'"{i:x}":1' for i in range(1_000_001)) + "}").encode()))
    with pytest.raises(CheckpointError, match="at most 1000000 tensors, got 1000001"):
        read(path)
    path.write_bytes(build(("{" + ",".join(f'"{i}":{one}' for i in range(1000)) + "}").encode()))
    assert len(read(path)[0]) == 1000


def test_every_cut_and_every_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {"note": "x"})
    good = path.read_bytes()

    def refused(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            _, metadata = read(path)
        except CheckpointError:
            return True
        # The name of the digest is no part of what it covers: a file without one is another file.
        return "sha256" not in metadata

    assert not refused(good)
    assert all(refused(good[:n]) for n in range(len(good)))
    header = int.from_bytes(good[:8], "little")
    spaces = len(good[: 8 + header]) - len(good[: 8 + header].rstrip(b" "))
    for bit in range(8 * (8 + header - spaces)):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(content)), bit
    for _ in range(300):
        content = bytearray(good)
        bit = random.randrange(8 * (8 + header), 8 * len(good))
        content[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(content)), bit


@pytest.mark.parametrize(
    "name, error",
    [
        ("missing", FileNotFoundError),
        (".", OSError),
        ("", OSError),
        ("a\0b", ValueError),
        ("x" * 5000, OSError),
    ],
    ids=["missing", "directory", "empty", "NUL", "long"],
)
def test_names_that_are_no_files(tmp_path: Path, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(os.path.join(tmp_path, name) if name else name)


def test_fifos_and_devices_do_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="expected a regular file, got a FIFO"):
        read(fifo)
    with pytest.raises(OSError, match="expected a regular file or a new name, got a FIFO"):
        write(fifo, TENSORS, {})
    with pytest.raises(OSError, match="got a device"):
        read("/dev/zero")
    with pytest.raises(OSError, match="got a device"):
        write("/dev/full", TENSORS, {})


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {})
    good = path.read_bytes()

    def fails(error: BaseException) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            raise error

        return call

    for name, error in (
        ("write", OSError(28, "No space left on device")),
        ("fsync", OSError(5, "Input/output error")),
        ("replace", KeyboardInterrupt()),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails(error))
            with pytest.raises(type(error)):
                write(path, {"other": torch.ones(3)}, {})
        assert path.read_bytes() == good and os.listdir(tmp_path) == ["x.safetensors"]
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "x", TENSORS, {})
    with pytest.raises(OSError, match="got a directory"):
        write(tmp_path, TENSORS, {})


def test_a_link_keeps_its_place(tmp_path: Path) -> None:
    target, link = tmp_path / "x.safetensors", tmp_path / "link"
    write(target, TENSORS, {})
    link.symlink_to(target)
    write(link, {"other": torch.ones(3)}, {})
    assert link.is_symlink() and set(read(target)[0]) == {"other"}


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    for name, tensor in (("a", torch.ones(2) * 1j), ("a/b", torch.ones(2)), ("..", torch.ones(2))):
        with pytest.raises(ValueError, match="plain names"):
            write(tmp_path / "x", {name: tensor}, {})
