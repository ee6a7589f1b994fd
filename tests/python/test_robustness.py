"""Threads, forks, soak, dispatch, compile, objects."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from concurrency import forked, in_threads
from conftest import FULL

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Net(nn.Module):
    """Convolution, residual, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv3 = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.conv3(F.hardswish(self.conv2(y))) + y)
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def made(with_data: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    data = [torch.randn(4, 3, 16, 16) for _ in range(2)] if with_data else None
    return octavo.quantize(Net().eval(), 8, data=data, progress=False)


def image(seed: int = 5, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# ---- instruction sets ------------------------------------------------------------------------


@torch.no_grad()
def test_every_isa_and_thread_count() -> None:
    small = made()
    linear = octavo.quantize(nn.Linear(300, 70), 8, progress=False)
    rows = torch.randn(65, 300)
    conv = octavo.quantize(nn.Conv2d(3, 16, 3, 2, 1), 8, progress=False)
    x = image(batch=9)
    results = set()
    before, threads = octavo.isa(), torch.get_num_threads()
    for isa in octavo.isas():
        octavo.set_isa(isa)
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.add(b"".join(t.numpy().tobytes() for t in (small(x), linear(rows), conv(x))))
    octavo.set_isa(before)
    torch.set_num_threads(threads)
    assert len(octavo.isas()) >= 1 and len(results) == 1


@torch.no_grad()
def test_the_forced_isa_runs() -> None:
    """The panel's header says for which layout it was packed; scalar and the rest differ."""
    layer = octavo.quantize(nn.Linear(64, 64), 8, progress=False)
    x = torch.randn(2, 64)
    layouts = {}
    before = octavo.isa()
    for isa in octavo.isas():
        octavo.set_isa(isa)
        assert octavo.isa() == isa
        layer(x)
        layouts[isa] = struct.unpack("<i", layer.panel[4:8].numpy().tobytes())[0]
    octavo.set_isa(before)
    expected = {
        "scalar": 0,
        "avx2": 1,
        "avx_vnni": 1,
        "avx512_vnni": 1,
        "amx_int8": 2,
        "neon_dotprod": 3,
    }
    assert layouts == {isa: expected[isa] for isa in octavo.isas()}
    assert "scalar" in octavo.isas()


@torch.no_grad()
def test_speed_tells_the_isa() -> None:
    """A forced scalar run that is as fast as the best one would mean that forcing does nothing."""
    if len(octavo.isas()) == 1:
        pytest.skip("this machine has only scalar")
    layer = octavo.quantize(nn.Linear(512, 512), 8, progress=False)
    x = torch.randn(64, 512)
    best: dict[str, float] = {}
    before = octavo.isa()
    for isa in ("scalar", before):
        octavo.set_isa(isa)
        layer(x)
        for _ in range(7):
            start = time.perf_counter()
            layer(x)
            best[isa] = min(best.get(isa, 1e9), time.perf_counter() - start)
    octavo.set_isa(before)
    assert best["scalar"] > 2 * best[before], best


@torch.no_grad()
def test_isa_storm() -> None:
    """Calls of every kind, copies and packing, while a thread goes through all instruction sets."""
    torch.manual_seed(0)
    x, rows = image(batch=3), torch.randn(20, 128)
    sequence, tokens = torch.randn(2, 5, 128), torch.arange(90).view(9, 10)
    layers: list[tuple[nn.Module, Tensor]] = [
        (made(), x),
        (made(with_data=False), x),
        (octavo.quantize(nn.Conv2d(3, 24, 3, padding=1), 8, progress=False), x),
        (octavo.quantize(nn.Linear(128, 70), 8, progress=False), rows),
        (octavo.quantize(nn.Linear(128, 70), 4, progress=False), rows),
        (octavo.quantize(nn.LSTM(128, 32, batch_first=True), 8, progress=False), sequence),
        (octavo.quantize(nn.LSTM(128, 32, batch_first=True), 4, progress=False), sequence),
        (octavo.quantize(nn.Embedding(90, 32), 4, progress=False), tokens),
    ]

    def results() -> list[Tensor]:
        found = [layer(value) for layer, value in layers]
        return [y[0] if isinstance(y, tuple) else y for y in found]

    expected = results()
    states = [layer.state_dict() for layer, _ in layers]
    before = octavo.isa()
    finished: list[int] = []

    def work(i: int) -> None:
        if i == 5:
            k = 0
            while len(finished) < 5:
                octavo.set_isa(octavo.isas()[k % len(octavo.isas())])
                k += 1
            return
        try:
            with torch.no_grad():
                for j in range(200 if FULL else 15):
                    assert all(map(torch.equal, results(), expected))
                    layer, value = layers[(i + j) % len(layers)]
                    k = (i + j) % len(layers)
                    twin = copy.deepcopy(layer)
                    twin.load_state_dict(states[k])  # packs anew
                    y = twin(value)
                    assert torch.equal(y[0] if isinstance(y, tuple) else y, expected[k])
        finally:
            finished.append(i)

    try:
        in_threads(6, work)
        assert all(map(torch.equal, results(), expected))
    finally:
        octavo.set_isa(before)


# ---- soak -------------------------------------------------------------------------------------------


def rss() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_files_and_threads_stay_constant_over_many_cycles(tmp_path: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    path = tmp_path / "net.safetensors"
    cycles, warm = (500, 100) if FULL else (20, 8)
    start = after = 0
    for i in range(cycles):
        with torch.no_grad():
            small = made(i % 2 == 0)
            for j in range(5):
                small(torch.randn(1 + j, 3, 8 + (i + j) % 23, 8 + j))
            octavo.save(small, path)
            octavo.load(path, Net().eval())(image())
        del small
        if i == warm:
            gc.collect()
            start = rss()
            fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    gc.collect()
    after = rss()
    growth = (after - start) / 2**20
    print(f"{growth:.2f} MiB over {cycles - warm} cycles")
    assert growth < 12, f"{growth:.1f} MiB"
    assert len(os.listdir("/proc/self/fd")) == fds and threading.active_count() == threads
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@torch.no_grad()
def test_many_shapes_leave_no_memory_behind() -> None:
    """No cache grows with the number of shapes."""
    small = made()
    start = 0
    for i in range(300):
        small(torch.randn(1 + i % 3, 3, 5 + i % 31, 5 + i % 37))
        if i == 120:
            start = rss()
    assert rss() - start < 8 * 2**20


# ---- memory that ends ------------------------------------------------------------------------------------

MODELS = ("cnn", "cnn_dynamic", "linear", "low_bits", "lstm", "attention", "embedding", "region", "trainee")  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux only")
@pytest.mark.parametrize("model", MODELS if FULL else ("cnn", "linear", "low_bits", "region"))
def test_memory_ends(model: str) -> None:
    """Neither in the calling thread nor in the pool's: MemoryError, and the model works afterwards."""
    script = Path(__file__).parents[1] / "support" / "memory_ladder.py"
    # Large blocks go back to the system at once, so that every rung asks it for memory.
    malloc = {"ARENA_MAX": "1", "MMAP_THRESHOLD_": "65536", "TRIM_THRESHOLD_": "0"}
    environment = {**os.environ, **{f"MALLOC_{name}": value for name, value in malloc.items()}}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), model, "200" if FULL else "12"],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr[-2000:]}"
    failed, passed = map(int, done.stdout.split()[1::2])
    assert failed >= 1 and passed >= 1, done.stdout


# ---- threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
def test_concurrent_forwards(with_data: bool) -> None:
    small = made(with_data)
    inputs = [image(i, 1 + i) for i in range(8)]
    with torch.no_grad():
        expected = [small(x) for x in inputs]

    def work(i: int) -> None:
        with torch.no_grad():
            for j in range(2000 if FULL else 60):
                k = (i + j) % 8
                assert torch.equal(small(inputs[k]), expected[k])

    in_threads(8, work)


def test_first_calls_at_a_barrier() -> None:
    small = made()
    x = image()
    with torch.no_grad():
        expected = small(x)
    for _ in range(200 if FULL else 15):
        fresh = copy.deepcopy(small)

        def work(i: int, fresh: nn.Module = fresh) -> None:
            with torch.no_grad():
                assert torch.equal(fresh(x), expected)

        in_threads(8, work)


def test_forward_while_loading() -> None:
    a, b = made(seed=0), made(seed=1)
    live = copy.deepcopy(a)
    x = image()
    with torch.no_grad():
        outputs = [a(x), b(x)]
    states = [copy.deepcopy(a.state_dict()), copy.deepcopy(b.state_dict())]
    stop = threading.Event()
    errors: list[str] = []

    def reader() -> None:
        with torch.no_grad():
            while not stop.is_set():
                try:
                    y = live(x)
                    if not bool(y.isfinite().all()):
                        errors.append("not finite")
                except ValueError:
                    pass

    thread = threading.Thread(target=reader)
    thread.start()
    for i in range(60):
        live.load_state_dict(states[(i + 1) % 2])
    stop.set()
    thread.join()
    assert not errors
    with torch.no_grad():
        live.load_state_dict(states[0])
        assert torch.equal(live(x), outputs[0])


# ---- fork -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fork_after_a_region() -> None:
    """Parallel work in the parent, then octavo in a forked child: libgomp itself would hang there."""
    torch.set_num_threads(2)
    small = made()
    x = torch.randn(16, 3, 64, 64)
    expected = small(x)

    def work() -> bool:
        with torch.no_grad():
            ok = torch.equal(small(x), expected)
            child = os.fork()  # and a child of the child
            if child == 0:
                os._exit(0 if torch.equal(small(x), expected) else 1)
            return ok and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    for _ in range(3):
        forked(work)
    assert torch.equal(small(x), expected)


@torch.no_grad()
def test_fork_before_the_first_call() -> None:
    small = made()
    x = image()
    fresh = copy.deepcopy(small)
    forked(lambda: torch.equal(fresh(x), small(x)))
    assert torch.equal(fresh(x), small(x))


def _job(arguments: tuple[bytes, Tensor]) -> bytes:
    import io

    torch.set_num_threads(1)
    model = torch.load(io.BytesIO(arguments[0]), weights_only=False)
    with torch.no_grad():
        return model(arguments[1]).numpy().tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_give_the_same_bits(method: str) -> None:
    import io

    small = made()
    x = image()
    with torch.no_grad():
        expected = small(x).numpy().tobytes()
    file = io.BytesIO()
    torch.save(small, file)
    context = multiprocessing.get_context(method)
    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *[p for p in sys.path if p]])
    try:
        with context.Pool(2) as pool:
            results = pool.map_async(_job, [(file.getvalue(), x)] * 3).get(60)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    assert results == [expected] * 3


class _Features(torch.utils.data.Dataset[Tensor]):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.model(image(i, 1))[0]


def test_data_loader_workers_give_the_same_bits() -> None:
    dataset = _Features(made())
    expected = torch.stack([dataset[i] for i in range(6)])
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=2, num_workers=workers, timeout=30 if workers else 0
        )
        assert torch.equal(torch.cat(list(loader)), expected)


# ---- objects ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_state_dict_holds_integers_and_scales() -> None:
    for with_data in (False, True):
        small = made(with_data)
        state = small.state_dict()
        for name in ("conv1", "conv2", "conv3", "fc"):
            assert f"{name}.weight" not in state
            assert state[f"{name}.weight_packed"].dtype == torch.uint8
            assert state[f"{name}.weight_scale"].dtype == torch.float32
        assert not any("panel" in key for key in state)
        float_bytes = sum(t.numel() * 4 for t in Net().state_dict().values())
        assert sum(t.numel() * t.element_size() for t in state.values()) < 0.75 * float_bytes
        assert next(small.parameters()) is not None
        assert not any(p.requires_grad for p in small.parameters())


@torch.no_grad()
def test_loading_a_state_makes_new_panels() -> None:
    a, b = made(seed=0), made(seed=1)
    x = image()
    expected = b(x)
    other = copy.deepcopy(a)
    other(x)
    missing = set(a.state_dict()) ^ set(b.state_dict())
    assert not missing
    for (
        name,
        module,
    ) in b.named_modules():  # the ranges are part of the model's program, so take layers alone
        if type(module).__name__ == "QLinear":
            twin = other.get_submodule(name)
            twin.load_state_dict(module.state_dict())
            v = torch.randn(3, 16)
            assert torch.equal(type(twin).forward(twin, v), type(module).forward(module, v))
    back = copy.deepcopy(b)
    back.load_state_dict(copy.deepcopy(b.state_dict()))
    assert torch.equal(back(x), expected)


def test_share_memory_and_repr() -> None:
    small = made()
    text = repr(small)
    assert "QConv2d" in text and "QLinear" in text and "8" in text
    x = image()
    with torch.no_grad():
        expected = small(x)
        small.share_memory()
        assert torch.equal(small(x), expected)
        assert torch.equal(small.eval()(x), expected)
        small.zero_grad()
        small.requires_grad_(False)
        assert torch.equal(small(x), expected)


# ---- compile --------------------------------------------------------------------------------------------

BACKENDS = ("eager", "aot_eager", "inductor") if FULL else ("eager", "aot_eager")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_compile_as_one_graph(backend: str, with_data: bool) -> None:
    torch.compiler.reset()
    small = made(with_data)
    x = image()
    expected = small(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(small, fullgraph=True, backend=backend)
        y = compiled(x)
        if with_data or backend != "inductor":
            assert torch.equal(y, expected)
        else:  # float steps between layers are inductor's own
            assert torch.allclose(y, expected, atol=1e-4)
        assert y.stride() == expected.stride()
        assert torch.equal(compiled(x), y)
        assert torch.equal(small(x), expected)


@torch.no_grad()
def test_compile_with_dynamic_shapes() -> None:
    torch.compiler.reset()
    small = made()
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager", dynamic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in (2, 3, 7):
            x = image(batch=batch)
            assert torch.equal(compiled(x), small(x))


# ---- defaults of torch ---------------------------------------------------------------------------


def _conv() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(512, 5)).float().eval()


@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_default_type_changes_nothing(default: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = _conv(), torch.randn(16, 3, 12, 12)
    lstm, sequence = nn.LSTM(8, 8).eval(), torch.randn(3, 2, 8)

    def results() -> list[Tensor]:
        found = []
        for bits, how in (
            (8, {}),
            (8, {"data": [x]}),
            (4, {"symmetric": False}),
            (4, {"data": [x]}),
            (4, {"data": [x], "effort": "best"}),
            (4, {"grid": "log"}),
            (4, {"rounding": "hqq"}),
        ):
            torch.manual_seed(1)
            found.append(octavo.quantize(model, bits, progress=False, **how)(x))
        found.append(octavo.quantize(lstm, progress=False)(sequence)[0])
        for how in ({}, {"grid": "nf"}, {"qat_method": "lsq+"}, {"qat_method": "pact"}):
            trainee = octavo.quantize(
                copy.deepcopy(model), 4, data=[x], qat=True, progress=False, **how
            )
            trainee.train()
            trainee(x).square().mean().backward()
            trainee.eval()
            found.append(octavo.freeze(trainee, progress=False)(x))
        return [y.detach() for y in found]

    wanted = results()
    torch.set_default_dtype(default)
    try:
        got = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(wanted, got, strict=True):
        assert b.dtype == torch.float32 and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_default_device_changes_nothing() -> None:
    model, x = _conv(), torch.randn(16, 3, 12, 12)
    wanted = octavo.quantize(model, data=[x], progress=False)(x)
    torch.set_default_device("meta")
    try:
        small = octavo.quantize(model, data=[x], progress=False)
        trainee = octavo.quantize(copy.deepcopy(model), data=[x], qat=True, progress=False)
        final = octavo.freeze(trainee, progress=False)
    finally:
        torch.set_default_device("cpu")
    assert torch.equal(small(x), wanted) and torch.isfinite(final(x)).all()


# ---- traced models -------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Three regions that read one value, with float steps between."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)
        return scores @ F.relu(self.v(x))


TRACED = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), (2, 3, 8, 8)),
    "net": (Net, (2, 3, 16, 16)),
    "branches": (Branches, (2, 5, 16)),
    "linear": (lambda: nn.Linear(16, 8), (4, 16)),
    "lstm": (lambda: nn.LSTM(16, 8), (5, 2, 16)),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "hooked"])
@pytest.mark.parametrize("frozen", [False, True], ids=["traced", "frozen"])
@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", list(TRACED))
def test_traced_models_are_right_in_every_call(
    name: str, with_data: bool, frozen: bool, hooked: bool, tmp_path: Path
) -> None:
    """From the second call on lists of constants are constants of the graph, which stay as they are."""
    make, shape = TRACED[name]
    x = torch.randn(shape)
    model = octavo.quantize(make().eval(), 8, data=[x] if with_data else None, progress=False)
    if hooked:
        for child in model.modules():
            child.register_forward_hook(lambda *_: None)
    traced = torch.jit.trace(model, x, check_trace=False)
    if frozen:
        traced = torch.jit.freeze(traced.eval())
    traced.save(str(tmp_path / "traced.pt"))
    loaded = torch.jit.load(str(tmp_path / "traced.pt"))
    for _ in range(4):
        other = torch.randn(shape)
        wanted = model(other)
        for graph in (traced, loaded):
            got = graph(other)
            if isinstance(wanted, tuple):
                assert torch.equal(got[0], wanted[0])
            else:
                assert torch.equal(got, wanted)
