"""One safetensors file, read and written with every byte checked: files may come from strangers.

Reading: the whole file is read once into memory of our own; every rule below is applied to those
bytes, and the very same bytes are then given to the safetensors library. Any byte string gives
tensors or a CheckpointError.
Writing: the file at the path is replaced whole (atomic_file.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from octavo.errors import CheckpointError, describe
from octavo.files.atomic_file import kind_of, replacing, write_all

__all__ = ["read", "write"]

_HARD_LIMIT = 100_000_000  # Of the safetensors format itself.
_HEADER_LIMIT = 16 << 20
_MAX_TENSORS = 1_000_000
_MAX_NAME = 1024
_MAX_RANK = 8
_MAX_NUMBER = 2**63 - 1
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BAD_NAME = re.compile(r"[\x00-\x1f\x7f/\\]|\.\.")
_DIGEST = "sha256"
_STRANGERS = (
    (b"PK\x03\x04", "a zip archive (torch.save): octavo does not open pickles"),
    (b"\x80\x02", "a pickle: octavo does not open pickles"),
    (b"\x80\x03", "a pickle: octavo does not open pickles"),
    (b"\x80\x04", "a pickle: octavo does not open pickles"),
    (b"\x80\x05", "a pickle: octavo does not open pickles"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a git-LFS pointer, not the file that it points to"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\x08", "perhaps an ONNX file"),
)


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


# ---- reading -------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        OSError: the path is missing, no regular file, or may not be read.
        CheckpointError: the bytes are not a valid file, or do not fit their digest.
    """
    where = f"load: {describe(os.fspath(path))}"
    data = _bytes_of(path, where)
    entries, metadata, start = _header(data, where)
    _check_digest(data, entries, metadata, start, where)
    for entry in entries:
        if entry.dtype == "BOOL" and data[start + entry.begin : start + entry.end].strip(b"\0\1"):
            raise CheckpointError(
                f"{where}: expected BOOL bytes 0 or 1 in tensor {entry.name!r}, got another one. "
                "The file is damaged."
            )
    try:
        return safetensors.torch.load(data), metadata
    except Exception as error:  # The library's own exceptions are no part of its interface.
        raise CheckpointError(f"{where}: the safetensors library refuses it ({error}).") from error


def _bytes_of(path: str | os.PathLike[str], where: str) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(
                f"{where}: expected a regular file, got {kind_of(status.st_mode)}. Pass the path "
                "of a checkpoint."
            )
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(status.st_size)
    finally:
        os.close(descriptor)
    if len(data) != status.st_size:
        raise CheckpointError(
            f"{where}: expected {status.st_size} bytes, "
            f"got {len(data)}: the file shrank while it was read."
        )
    return data


def _header(data: bytes, where: str) -> tuple[list[_Entry], dict[str, str], int]:
    """Tensors in the order of their data, metadata, and where the data starts."""
    size = len(data)
    if size < 9:
        raise CheckpointError(
            f"{where}: expected a header of 8 bytes and more, got {size} bytes: too short."
        )
    length = int.from_bytes(data[:8], "little")
    if length > size - 8 or data[8:9] != b"{":
        for magic, text in _STRANGERS:
            if data.startswith(magic):
                raise CheckpointError(f"{where}: expected a safetensors file, got {text}.")
    if not 2 <= length <= min(size - 8, _HARD_LIMIT):
        raise CheckpointError(
            f"{where}: expected a header length in 2..{min(size - 8, _HARD_LIMIT)} "
            f"for a file of {size} bytes, got {length}. The file is damaged or no safetensors file."
        )
    if length > _HEADER_LIMIT:
        raise CheckpointError(
            f"{where}: expected a header of at most {_HEADER_LIMIT} bytes, got {length}."
        )
    raw = data[8 : 8 + length]
    if raw[:1] != b"{":
        raise CheckpointError(
            f"{where}: expected '{{' at byte 8, got {raw[:1]!r}. No safetensors file."
        )
    if not raw.rstrip(b" ").endswith(b"}"):
        raise CheckpointError(
            f"{where}: expected only spaces after the header's JSON, got other bytes."
        )
    fields = _json(raw, where)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(
            f"{where}: expected __metadata__ of strings, got {describe(metadata)}."
        )
    if len(fields) > _MAX_TENSORS:
        raise CheckpointError(
            f"{where}: expected at most {_MAX_TENSORS} tensors, got {len(fields)}."
        )
    entries = [_entry(name, value, where) for name, value in fields.items()]
    _check_order(entries, size - 8 - length, where)
    return entries, metadata, 8 + length


def _json(raw: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(
                    f"{where}: expected each name once, got {describe(key)} twice."
                )
            found[key] = value
        return found

    def no_float(text: str) -> Any:
        raise CheckpointError(f"{where}: expected integers in the header, got {text[:40]}.")

    def integer(text: str) -> int:
        if len(text) > 19 or not 0 <= int(text) <= _MAX_NUMBER:
            raise CheckpointError(f"{where}: expected integers in 0..2^63 - 1, got {text[:40]}.")
        return int(text)

    try:
        found = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=once,
            parse_float=no_float,
            parse_constant=no_float,
            parse_int=integer,
        )
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{where}: expected UTF-8 in the header, got a bad byte at {8 + error.start}."
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{where}: expected JSON in the header, got an error at byte {8 + error.pos} "
            f"({error.msg})."
        ) from None
    except RecursionError:
        raise CheckpointError(
            f"{where}: expected a header of depth 4 at most, got a deeper one."
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: expected an object as header, got {describe(found)}.")
    return found


def _entry(name: str, value: Any, where: str) -> _Entry:
    if len(name) > _MAX_NAME or _BAD_NAME.search(name):
        raise CheckpointError(
            f"{where}: expected tensor names of at most {_MAX_NAME} characters "
            f"without separators, '..' and control characters, got {describe(name)}."
        )
    tensor = f"{where}: tensor {describe(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{tensor}: expected dtype, shape and data_offsets, got {describe(value)}."
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{tensor}: expected a dtype of {', '.join(_DTYPES)}, got {describe(dtype)}."
        )
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(n) is int for n in shape)
    ):
        raise CheckpointError(
            f"{tensor}: expected a shape of at most {_MAX_RANK} integers, got {describe(shape)}."
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int for n in offsets)
    ):
        raise CheckpointError(
            f"{tensor}: expected two integers as data_offsets, got {describe(offsets)}."
        )
    bound = _DTYPES[dtype].itemsize  # Zeros do not excuse the other factors.
    for n in shape:
        bound *= max(n, 1)
    if bound > _MAX_NUMBER:
        raise CheckpointError(
            f"{tensor}: expected fewer than 2^63 bytes, got shape {describe(shape)}."
        )
    length = 0 if 0 in shape else bound
    begin, end = offsets
    if begin > end or end - begin != length:
        raise CheckpointError(
            f"{tensor}: expected {length} bytes for {dtype} {describe(shape)}, got data_offsets "
            f"{offsets}."
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _check_order(entries: list[_Entry], size: int, where: str) -> None:
    position, before = 0, "the start"
    for entry in entries:
        if entry.begin != position:
            raise CheckpointError(
                f"{where}: expected tensor {describe(entry.name)} "
                f"to start at {position}, right after {describe(before)}, got {entry.begin}. "
                "Holes, overlaps and other orders are refused."
            )
        position, before = entry.end, entry.name
    if position != size:
        raise CheckpointError(
            f"{where}: expected {position} bytes of data (up to {describe(before)}), got {size}. "
            "The file is cut off or has foreign bytes at its end."
        )


def _digest_of(entries: list[_Entry], metadata: Mapping[str, str]) -> Any:
    """A SHA-256 that has seen metadata and tensor table; the data follow."""
    table = [[e.name, e.dtype, list(e.shape), e.begin, e.end] for e in entries]
    rest = {key: value for key, value in sorted(metadata.items()) if key != _DIGEST}
    return hashlib.sha256(json.dumps([rest, table]).encode())


def _check_digest(
    data: bytes, entries: list[_Entry], metadata: dict[str, str], start: int, where: str
) -> None:
    if _DIGEST not in metadata:
        return
    digest = _digest_of(entries, metadata)
    digest.update(memoryview(data)[start:])
    if digest.hexdigest() != metadata[_DIGEST]:
        raise CheckpointError(
            f"{where}: expected the SHA-256 {metadata[_DIGEST][:16]!r}..., got "
            f"{digest.hexdigest()[:16]!r}...: "
            "the file is damaged. Get it again."
        )


# ---- writing -------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a file with a digest of all it holds; an error leaves what was at ``path``.

    Raises:
        OSError: the directory is missing, full or read-only, or ``path`` is no regular file.
        ValueError: a tensor has a type or a name that a file cannot hold.
    """
    where = f"save: {describe(os.fspath(path))}"
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries, position = [], 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES or len(name) > _MAX_NAME or _BAD_NAME.search(name):
            raise ValueError(
                f"{where}: expected tensors of {', '.join(_DTYPES)} with plain names, "
                f"got {describe(name)} of {tensor.dtype}."
            )
        end = position + tensor.numel() * tensor.dtype.itemsize
        entries.append(_Entry(name, _NAMES[tensor.dtype], tuple(tensor.shape), position, end))
        position = end
    digest = _digest_of(entries, metadata)
    for _, tensor in ordered:
        digest.update(_little_endian(tensor))
    header: dict[str, Any] = {"__metadata__": {**metadata, _DIGEST: digest.hexdigest()}}
    for e in entries:
        header[e.name] = {
            "dtype": e.dtype,
            "shape": list(e.shape),
            "data_offsets": [e.begin, e.end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > _HEADER_LIMIT:
        raise ValueError(
            f"{where}: expected a header of at most {_HEADER_LIMIT} bytes, got {len(raw)}."
        )
    with replacing(path, where) as descriptor:
        write_all(descriptor, len(raw).to_bytes(8, "little"))
        write_all(descriptor, raw)
        for _, tensor in ordered:
            write_all(descriptor, _little_endian(tensor))


def _little_endian(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    if sys.byteorder == "big" and flat.dtype.itemsize > 1:
        width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.dtype.itemsize]
        swapped: memoryview = flat.view(width).numpy().byteswap().data
        return swapped.cast("B")
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
