"""rounding.lockstep: runs of all batches halt in order, with what rounded layers before give."""

import copy
import dataclasses
import threading

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from octavo.data import Batches
from octavo.graph.capture import capture
from octavo.graph.keys import SiteKey
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.prepare.calibrate import calibrate
from octavo.rounding.lockstep import Lockstep
from octavo.rounding.methods.nearest import nearest

X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Two blocks with a sum each, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.block:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.a(x))
        y = self.b(y)
        y += x
        return torch.relu(y)


def model_of(cls=Residual):
    torch.manual_seed(0)
    return cls().eval()


def runs_of(model, x, bits=8, activations="static", **options):
    batches = Batches(x)
    decided = plan(capture(model, batches.example(model)), Scheme(bits), activations)
    params = calibrate(model, decided, batches).qparams if activations == "static" else {}
    return Lockstep(model, decided, batches, qparams=params, flows=decided.flows, **options)


def rounded(runs, name):
    module = runs.model.get_submodule(name)
    return nearest(runs.weights[name], module.bias, runs.sites[name].scheme)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_layers_come_in_order_with_their_float_outputs(activations):
    model = model_of()
    runs = runs_of(model, [X[:10], X[10:]], activations=activations)
    seen = []
    for pause in runs:
        (name,) = pause.layers
        seen.append(name)
        module = model.get_submodule(name)
        for x, y, float_x in zip(pause.inputs, pause.targets, pause.float_inputs, strict=True):
            assert torch.allclose(type(module).forward(module, float_x), y, atol=1e-5)
            assert x.shape == float_x.shape
            # 8 bits: what the quantized layers give is near to float, and not equal.
            off = float((x - float_x).norm() / float_x.norm())
            assert off < 0.05 and (off > 0 or (name == "stem" and activations == "dynamic"))
        runs.codes[name] = rounded(runs, name)
    assert seen == ["stem", "block.0.a", "block.0.b", "block.1.a", "block.1.b", "head"]
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_blocks_lie_between_single_values():
    model = model_of()
    runs = runs_of(model, X, blockwise=True)
    seen = []
    for pause in runs:
        seen.append(pause.layers)
        assert pause.block is not None
        for name in pause.layers:
            runs.codes[name] = rounded(runs, name)
    assert seen == [("stem",), ("block.0.a", "block.0.b"), ("block.1.a", "block.1.b"), ("head",)]


def test_a_model_that_cannot_be_traced_gets_the_rounded_prefix_too():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            x = torch.relu(self.a(x))
            if float(x.sum()) > 0:
                x = self.b(x)
            return self.c(x)

    model = model_of(Branching)
    x = torch.randn(16, 6)
    runs = runs_of(model, [x[:8], x[8:]], 2, "dynamic")
    for pause in runs:
        (name,) = pause.layers
        if name == "c":  # Far from float: two layers of 2 bits lie before it.
            off = (pause.inputs[0] - pause.float_inputs[0]).norm() / pause.float_inputs[0].norm()
            assert float(off) > 0.05
        runs.codes[name] = rounded(runs, name)
    assert set(runs.codes) == {"a", "b", "c"}


def test_errors_of_the_model_and_of_the_caller_leave_it_as_it_was():
    model = model_of()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="mine"):
        for _pause in runs_of(model, X):
            raise RuntimeError("mine")
    assert not any("forward" in module.__dict__ for module in model.modules())
    runs = runs_of(model, X, activations="dynamic")

    def broken(_module, _args):
        raise KeyError("theirs")

    model.head.register_forward_pre_hook(broken)
    with pytest.raises(KeyError, match="theirs"):
        for pause in runs:
            runs.codes |= {name: rounded(runs, name) for name in pause.layers}
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.get_num_threads() == threads


def finished(runs):
    """Rounds all layers; the samples that each pause had."""
    counts = []
    for pause in runs:
        counts.append(sum(len(x) for x in pause.inputs))
        runs.codes |= {name: rounded(runs, name) for name in pause.layers}
    return counts


def test_small_batches_are_joined():
    runs = runs_of(model_of(), list(X.split(1)))
    counts = finished(runs)
    assert counts == [24] * 6 and runs.samples == runs.given == 24 and len(runs._pairs) == 1


def test_few_samples_start_and_more_join_in_where_values_are_small(monkeypatch):
    class Shrinking(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Conv2d(8, 8, 2, stride=2),
                nn.Conv2d(8, 4, 2, stride=2),
                nn.Conv2d(4, 4, 2),
            )

    # Two runs hold three values of 512 floats each in front of the first two layers, and the input.
    each = 4 * (6 * 512 + 3 * 64)
    monkeypatch.setattr("octavo.rounding.sample_budget._LITTLE_MEMORY", 12 * each)
    monkeypatch.setattr("octavo.rounding.sample_budget._LEAST_MEMORY", 12 * each)
    model = model_of(Shrinking)
    all_at_once = runs_of(model, X)
    # 6 samples of 12 start, since those that join later hold as much on their way. From the third
    # layer on values have 128 floats.
    assert finished(all_at_once) == [6, 6, 18, 24]
    assert (all_at_once.samples, all_at_once.given) == (24, 24)
    # No more than one batch's activations: of 6 images with 512 + 128 + 16 + 4 floats.
    monkeypatch.setattr("octavo.rounding.sample_budget._LEAST_MEMORY", 0)
    assert finished(runs_of(model, list(X.split(6))))[0] == 1


def test_late_runs_see_the_codes_of_layers_that_are_done(monkeypatch):
    model = model_of()
    whole = runs_of(model, X)
    finished(whole)
    monkeypatch.setattr("octavo.rounding.sample_budget._MERGED", 4)
    few = runs_of(model, X)
    few._supply = dataclasses.replace(few._supply, memory=1, late=True)
    seen = []
    for pause in few:
        few._supply = dataclasses.replace(few._supply, memory=1e9)  # The rest joins at the second.
        seen.append(pause)
        few.codes |= {name: whole.codes[name] for name in pause.layers}
    assert [sum(map(len, pause.inputs)) for pause in seen] == [4] + [24] * 5
    at_once = runs_of(model, X)
    for ours, other in zip(seen, at_once, strict=True):
        assert ours.layers == other.layers
        for kind in ("inputs", "targets", "float_inputs"):
            some, every = torch.cat(getattr(ours, kind)), torch.cat(getattr(other, kind))
            assert torch.allclose(some, every[: len(some)], atol=1e-5), kind
        at_once.codes |= {name: whole.codes[name] for name in other.layers}


def test_all_functions_of_torch_run_in_the_callers_thread():
    """Memory that glibc and torch's convolutions keep for each thread would add up."""
    threads = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") != "__get__":
                threads.add(threading.get_ident())
            return func(*args, **(kwargs or {}))

    runs = runs_of(model_of(), X)
    with Watch():
        finished(runs)
    assert threads == {threading.get_ident()}


def test_a_callable_that_runs_the_model_is_recorded():
    model = model_of()
    runs = runs_of(model, lambda m: [m(X[:4]), m(X[4:8])])
    assert runs.given == 8
    for pause in runs:
        runs.codes |= {name: rounded(runs, name) for name in pause.layers}
    assert len(runs.codes) == 6


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layer(torch.relu(self.layer(x))))


class UntracedTwice(Twice):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize("cls", [Twice, UntracedTwice])
def test_a_layer_called_twice_halts_once_with_what_both_calls_have(cls, blockwise):
    model, data = model_of(cls), [torch.randn(8, 6), torch.randn(5, 6)]
    layer = copy.deepcopy(model.layer)
    runs = runs_of(model, data, activations="dynamic", blockwise=blockwise)
    assert not runs.plans or cls is Twice
    seen = []
    for pause in runs:
        seen.append(pause.layers)
        if pause.block is None and pause.layers == ("layer",):
            first = torch.cat(data)
            second = torch.relu(layer(first))
            wanted = torch.cat([first, second])
            got, targets = torch.cat(pause.inputs), torch.cat(pause.targets)
            assert got.shape == wanted.shape
            torch.testing.assert_close(targets, layer(torch.cat(pause.float_inputs)))
            # The rows of both calls, in 8 bits, in some order.
            assert torch.cdist(wanted, got).amin(1).max() < 0.05
        runs.codes |= {name: rounded(runs, name) for name in pause.layers}
    assert seen.count(("layer",)) + seen.count(("layer", "head")) == 1
    assert set(runs.codes) == {"layer", "head"}


def test_static_without_region_reads_its_own_range():
    model = model_of()
    runs = runs_of(model, X)
    sites = tuple(dataclasses.replace(site, region="") for site in runs.sites.values())
    alone = dataclasses.replace(
        plan(capture(model, ((X[:2],), {})), Scheme(8), "static"), sites=sites, flows=()
    )
    params = calibrate(model, alone, X).qparams
    runs = Lockstep(model, alone, Batches(X), qparams=params)
    for pause in runs:
        (name,) = pause.layers
        p = params[SiteKey(name)]
        codes = pause.inputs[0] / p.scale
        assert torch.allclose(codes, codes.round(), atol=1e-2)
        runs.codes[name] = rounded(runs, name)


def test_an_activation_called_twice_needs_no_more_memory():
    """Residual networks call one ReLU again and again; only layers are kept with all their calls."""

    class Shared(Residual):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            x = self.relu(self.stem(x))
            return self.head(self.relu(x + 1).mean((2, 3)))

    class Apart(Shared):
        def __init__(self):
            super().__init__()
            self.other = nn.ReLU()

        def forward(self, x):
            x = self.relu(self.stem(x))
            return self.head(self.other(x + 1).mean((2, 3)))

    one, other = (runs_of(model_of(cls), X)._supply for cls in (Shared, Apart))
    assert one.repeated == other.repeated == frozenset()
    assert one.held["stem"] == other.held["stem"]
