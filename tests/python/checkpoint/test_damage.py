"""Damaged files, interrupted and failing saves: a documented error or the right model, never anything
else, and the old file survives.
"""

from __future__ import annotations

import copy
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from conftest import FULL
from octavo import CheckpointError
from octavo.checkpoint import safetensors_file
from octavo.reporting.record import record_of


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)).eval()


X = torch.linspace(-1, 1, 2 * 2 * 36).view(2, 2, 6, 6)


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return octavo.quantize(net(), 8, data=[torch.randn(4, 2, 6, 6)], progress=False)


@torch.no_grad()
def outcome(path: Path) -> Tensor | None:
    """Output of the loaded model, None for the documented error. Anything else propagates and fails the test."""
    try:
        return octavo.load(path, net())(X)
    except CheckpointError:
        return None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    octavo.save(made(), path)
    return path


def test_a_file_cut_at_every_byte(file: Path) -> None:
    raw = file.read_bytes()
    cut = file.with_name("cut")
    step = 1 if FULL else 5
    for size in range(0, len(raw), step):
        cut.write_bytes(raw[:size])
        assert outcome(cut) is None, f"the first {size} of {len(raw)} bytes were accepted"


@torch.no_grad()
def test_flipped_bits_of_the_header(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    bits = list(range(header * 8))
    if not FULL:
        bits = random.Random(0).sample(bits, min(len(bits), 800))
    flipped = file.with_name("flipped")
    expected = outcome(file)
    accepted = wrong = 0
    for bit in bits:
        raw[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(raw)
        raw[bit // 8] ^= 1 << bit % 8
        result = outcome(flipped)
        accepted += result is not None
        wrong += result is not None and not torch.equal(result, expected)
    print(f"{len(bits)} bits: {accepted} accepted, {wrong} of them with other outputs")
    assert wrong == 0, f"{wrong} of {len(bits)} flips gave a model with other outputs and no error"


def test_flipped_bits_of_the_tensors(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    bits = range(header * 8, len(raw) * 8)
    flipped = file.with_name("flipped")
    for bit in random.Random(0).sample(bits, min(len(bits), 10_000 if FULL else 500)):
        raw[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(raw)
        raw[bit // 8] ^= 1 << bit % 8
        assert outcome(flipped) is None, f"payload bit {bit} was not noticed"


def test_mutated_files_load_or_are_refused(file: Path) -> None:
    """Structure-aware mutations: cut, repeat, exchange and overwrite pieces, and fix the header's length."""
    raw = file.read_bytes()
    source = random.Random(1)
    words = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"1e999", b"-1", b"\0", b"9" * 30]
    mutated = file.with_name("mutated")
    start = time.monotonic()
    for _ in range(20_000 if FULL else 600):
        data = bytearray(raw)
        for _ in range(source.randint(1, 4)):
            a, b = sorted(source.choices(range(len(data) + 1), k=2))
            b = min(b, a + 64)
            kind = source.randrange(4)
            if kind == 0:
                del data[a:b]
            elif kind == 1:
                data[a:a] = data[a:b]
            elif kind == 2:
                data[a:a] = source.choice(words)
            else:
                data[a:b] = bytes(source.randrange(256) for _ in range(b - a))
        if source.random() < 0.7 and len(data) > 8:
            size = 8 + int.from_bytes(raw[:8], "little") + len(data) - len(raw)
            data[:8] = max(size - 8, 0).to_bytes(8, "little")
        mutated.write_bytes(data)
        begin = time.monotonic()
        outcome(mutated)
        assert time.monotonic() - begin < 1.0
    print(f"{time.monotonic() - start:.1f} s")


# ---- contents of wrong types: the digest fits, as a stranger would make it --------------------------

WRONG: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**40, 10**30, 0.5, -2.5e300, "", "x", "0", "fc", "os.system", [], [[]], [0], ["x"],
    {}, {"x": 1}, {"device": "foo"}, {"device": 3}, {"device": None}, {"torch": "save"}, {"torch": "onnx"}, {"torch": 1},
    {"tuple": []}, {"tuple": 3}, {"dict": []}, {"dict": [1]}, {"dict": [[[], 1]]}, {"dict": [[{"tuple": []}, 1]]},
    {"slice": []}, {"slice": [1, 2, 3]}, {"ref": "x"}, {"ref": []}, {"float": "x"}, {"float": "inf"}, {"float": []},
    {"ellipsis": True}, {"step": {}}, {"step": {"kind": "float", "inputs": 3, "output": []}}, {"flow": {}}, {"a": 1, "b": 2},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in nested lists and dicts."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    else:
        items = ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutate(content: Any, source: random.Random) -> None:
    """Puts a value of a wrong type, removes, repeats, renames or exchanges something, in place."""
    everywhere = list(places(content))
    *way, last = source.choice(everywhere)
    parent = functools.reduce(lambda part, key: part[key], way, content)
    kind = source.randrange(8)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(source.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
    elif kind == 2 and isinstance(parent, dict):
        parent[source.choice(["", "x", "kind", "path", "dict"])] = parent.pop(last)
    elif kind == 3:
        parent[last] = copy.deepcopy(
            functools.reduce(lambda part, key: part[key], source.choice(everywhere), content)
        )
    else:
        parent[last] = copy.deepcopy(source.choice(WRONG))


class Every(nn.Module):
    """Steps of many kinds: slices, constants, parameters that are read, dtypes, calls with words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("shift", torch.zeros(1))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        y = torch.cat([y, y[:, 1:3]], dim=1)[:, :4]
        y = torch.nn.functional.max_pool2d(y, kernel_size=2) * self.gain + self.shift
        y = torch.nn.functional.adaptive_avg_pool2d(y, (1, 2)).to(torch.float32)
        return self.fc(torch.flatten(y, 1)) * float("0.5")


def _every(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return octavo.quantize(Every().eval(), 8, progress=False, **options)


SAVED: dict[str, Any] = {
    "static": lambda: _every(data=[X]),
    "dynamic": _every,
    "few bits": lambda: octavo.quantize(Every().eval(), 4, symmetric=False, progress=False),
    "trainee": lambda: _every(data=[X], qat=True),
    "dynamic trainee": lambda: _every(qat=True),
}


@pytest.mark.parametrize("kind", SAVED)
def test_contents_of_wrong_types(tmp_path: Path, kind: str) -> None:
    """Every field of the description, with values that it cannot have: a CheckpointError, or a model that loads."""
    path = tmp_path / "net.safetensors"
    octavo.save(SAVED[kind](), path)
    tensors, metadata = safetensors_file.read(path)
    field = "trainee" if "trainee" in metadata else "model"
    source = random.Random(int(os.environ.get("OCTAVO_SEED", "0")))
    before = set(sys.modules)
    loaded = 0
    rounds = 20_000 if FULL else 400
    for _ in range(rounds):
        content = json.loads(metadata[field])
        for _ in range(source.choice([1, 1, 1, 2, 3])):
            mutate(content, source)
        safetensors_file.write(path, tensors, {**metadata, field: json.dumps(content)})
        try:
            model = octavo.load(path, Every())
            loaded += 1
            if record_of(model) is not None:
                str(octavo.report(model))
        except CheckpointError:
            pass
        except Exception as error:
            kept = json.dumps(content)
            pytest.fail(f"{type(error).__name__}: {error}, for {kept[:20_000]}")
    print(f"{loaded} of {rounds} loaded")
    assert 0 < loaded < rounds / 2
    new = {name for name in set(sys.modules) - before if name.partition(".")[0] in ("torch", "os")}
    assert not new, f"loading has imported {new}"


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_wrong_values_as_a_whole(file: Path, value: Any) -> None:
    tensors, metadata = safetensors_file.read(file)
    for text in (json.dumps(value), json.dumps([value]), repr(value)):
        safetensors_file.write(file, tensors, {**metadata, "model": text})
        assert outcome(file) is None
        safetensors_file.write(file, tensors, {**metadata, "trainee": text})
        assert outcome(file) is None


def test_killed_while_saving(tmp_path: Path) -> None:
    """After SIGKILL at any instant the file is the old or the new one, whole; the next save leaves no temporary."""
    path = tmp_path / "net.safetensors"
    old, new = made(0), made(1)
    octavo.save(old, path)
    with torch.no_grad():
        outputs = [old(X), new(X)]
    assert not torch.equal(*outputs)
    source = random.Random(0)
    seen = set()
    for _ in range(100 if FULL else 20):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            while True:
                octavo.save(new, path)
                octavo.save(old, path)
        time.sleep(source.uniform(0.002, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child must still have been saving"
        result = outcome(path)
        assert result is not None, "the file was torn"
        index = [torch.equal(result, o) for o in outputs].index(True)
        seen.add(index)
    octavo.save(new, path)
    assert [p.name for p in tmp_path.iterdir() if p.name == path.name] == [path.name]
    leftovers = [p.name for p in tmp_path.iterdir() if p.name != path.name]
    assert not leftovers, f"temporaries were left: {leftovers}"
    print(f"seen {sorted(seen)}")


def _fails(path: Path, number: int | None = None) -> None:
    before = path.read_bytes()
    names = sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(OSError) as info:
        octavo.save(made(1), path)
    if number is not None:
        assert info.value.errno == number, info.value
    assert path.name in str(info.value) or str(path.parent) in str(info.value), info.value
    assert path.read_bytes() == before, "the old file was lost"
    assert sorted(p.name for p in path.parent.iterdir()) == names, "a temporary was left"


def test_fsync_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "fsync failed")

    monkeypatch.setattr(os, "fsync", fail)
    _fails(file)
    assert calls, "save does not fsync"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_write_fails(file: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls = []

    def fail(descriptor: int, data: Any) -> int:
        calls.append(descriptor)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    try:
        _fails(file, number)
    finally:
        monkeypatch.undo()
    assert calls, "save does not use os.write"


def test_short_writes_and_replace_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:1000])))
    model = made(1)
    octavo.save(model, file)
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(outcome(file), model(X))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EACCES, "no")

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, fail)
    _fails(file)


def test_a_file_size_limit_leaves_the_old_file(file: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 3
        try:
            torch.set_num_threads(1)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
            octavo.save(made(1), file)
        except OSError as error:
            code = 0 if error.errno == errno.EFBIG else 4
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert outcome(file) is not None
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_full_disk_leaves_the_old_file(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs privileges that this process lacks")
    try:
        with pytest.raises(OSError) as info:
            octavo.save(made(), folder / "net.safetensors")
        assert info.value.errno == errno.ENOSPC
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_leaves_the_old_file(file: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    file.parent.chmod(0o500)
    try:
        _fails(file, errno.EACCES)
    finally:
        file.parent.chmod(0o700)


@torch.no_grad()
def test_save_over_what_was_loaded(file: Path) -> None:
    model = octavo.load(file, net())
    expected = model(X)
    octavo.save(model, file)
    assert torch.equal(model(X), expected), "a loaded model must not depend on its file"
    assert torch.equal(outcome(file), expected)
    file.write_bytes(b"")
    assert torch.equal(model(X), expected)


@torch.no_grad()
def test_saving_to_links(file: Path) -> None:
    link = file.with_name("link.safetensors")
    link.symlink_to(file)
    assert outcome(link) is not None
    octavo.save(made(1), link)
    assert torch.equal(outcome(link), made(1)(X))
    assert outcome(file) is not None
    dangling = file.with_name("dangling")
    dangling.symlink_to(file.parent / "gone")
    with pytest.raises(OSError):
        octavo.load(dangling, net())


@torch.no_grad()
def test_two_writers_at_once(file: Path) -> None:
    models = [made(0), made(1)]
    outputs = [m(X) for m in models]
    errors: list[BaseException] = []

    def write(model: nn.Module) -> None:
        try:
            for _ in range(20):
                octavo.save(model, file)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(m,)) for m in models]
    for thread in threads:
        thread.start()
    for _ in range(20):
        result = outcome(file)
        assert result is not None and any(torch.equal(result, o) for o in outputs)
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_saving_twice_gives_the_same_bytes(file: Path) -> None:
    again = file.with_name("again.safetensors")
    octavo.save(octavo.load(file, net()), again)
    assert again.read_bytes() == file.read_bytes()


def test_mode_follows_umask(file: Path) -> None:
    before = os.umask(0o027)
    try:
        octavo.save(made(), file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640
    assert sys.platform != "win32"
