"""batches: every accepted form of data becomes calls of the model; every other is refused in
words.
"""

import collections
import dataclasses
import itertools
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

import octavo
from octavo import data as data_module
from octavo.data import Batches
from octavo.errors import CalibrationError

X = torch.arange(6.0).reshape(2, 3)


class Two(nn.Module):
    def forward(self, x, y=None):
        return x if y is None else x + y


class Keywords(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids


class TakesMapping(nn.Module):
    def forward(self, batch):
        return batch["x"]


def calls(data, model=None):
    return list(Batches(data).calls(model or nn.Identity()))


def test_a_tensor_is_one_batch():
    (call,) = calls(X)
    assert call.args[0] is X and call.samples == 2


@pytest.mark.parametrize(
    "make",
    [list, tuple, iter, lambda x: (b for b in x)],
    ids=["list", "tuple", "iterator", "generator"],
)
def test_iterables_of_tensors_can_be_read_twice(make):
    batches = Batches(make([X, X + 1]))
    for _ in range(2):
        assert [float(c.args[0][0, 0]) for c in batches.calls(nn.Identity())] == [0.0, 1.0]


def test_labels_that_forward_cannot_take_are_dropped_and_told():
    (call,) = calls([(X, torch.tensor([0, 1]))])
    assert len(call.args) == 1 and call.dropped == ("item 1",)
    (call,) = calls([(X, X)], Two())
    assert len(call.args) == 2 and call.dropped == ()


def test_mappings_are_keywords():
    (call,) = calls([{"input_ids": X, "label": 3}], Keywords())
    assert set(call.kwargs) == {"input_ids"} and call.dropped == ("label",)
    (call,) = calls(collections.UserDict(input_ids=X), Keywords())
    assert set(call.kwargs) == {"input_ids"} and call.samples == 2
    (call,) = calls([{"x": X}], TakesMapping())
    assert set(call.args[0]) == {"x"} and call.samples == 2


def test_other_objects_are_passed_as_they_are():
    @dataclasses.dataclass
    class Batch:
        image: torch.Tensor

    (call,) = calls([Batch(X)])
    assert call.args[0].image is X and call.samples == 2
    assert [t is X for t in call.tensors] == [True]


def test_a_callable_runs_the_model():
    seen = []
    batches = Batches(lambda model: seen.append(model(X)))
    assert batches.first(nn.Identity()) is None
    batches.run(nn.Identity(), lambda number, call: seen.append((number, call)))
    assert seen[0] == (0, None) and seen[1] is X


@pytest.mark.parametrize("data", [[], (), iter([])], ids=["list", "tuple", "iterator"])
def test_no_batch(data):
    with pytest.raises(CalibrationError, match=r"at least one batch, got 0 batches\. Pass batches"):
        calls(data)


def test_wrong_arity_shows_the_signature():
    with pytest.raises(
        TypeError,
        match=r"batch 1 of data must fit Keywords\.forward\(input_ids, attention_mask=None\), got",
    ):
        calls([X, ()], Keywords())


@pytest.mark.parametrize("data", [3, "images", nn.Identity()])
def test_what_is_no_data(data):
    with pytest.raises(TypeError, match=r"data must be batches of inputs or a callable"):
        calls(data)


def test_numpy_batches_name_the_remedy():
    with pytest.raises(
        TypeError, match=r"must hold tensors, got ndarray\. Convert with torch\.as_tensor"
    ):
        calls([X.numpy()])


class Bar:
    """A progress bar: it can be read again if what it stands around can."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        yield from self.items

    def __len__(self):
        return 3


class Stream(IterableDataset):
    """A data set over a socket."""

    def __init__(self):
        self.items = iter([X, X + 1, X + 2])

    def __iter__(self):
        return self.items


ONCE = {
    "iterator": lambda: iter([X, X + 1, X + 2]),
    "bar around a generator": lambda: Bar(X + i for i in range(3)),
    "stream": Stream,
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=None),
    "bar around a loader of a stream": lambda: Bar(DataLoader(Stream(), batch_size=None)),
    "map": lambda: map(lambda i: X + i, range(3)),
}


@pytest.mark.parametrize("make", ONCE.values(), ids=ONCE)
def test_what_gives_its_batches_once_is_kept(make):
    batches = Batches(make())
    assert torch.equal(batches.first(Two()).args[0], X)
    for same in (batches, Batches(batches.source), batches):
        got = [call.args[0] for call in same.calls(Two())]
        assert len(got) == 3 and all(torch.equal(x, X + i) for i, x in enumerate(got))


class Counted(list):
    """A sequence that counts how often it is read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_what_gives_them_again_is_not_kept():
    data = Counted([X, X])
    batches = Batches(data)
    assert data.reads == 0
    assert len(list(batches.calls(Two()))) == len(list(batches.calls(Two()))) == data.reads == 2
    loader = DataLoader(Counted([X, X]), batch_size=None)
    assert Batches(loader)._items is loader


def endless():
    while True:
        yield X


class Forever:
    """It can be read again, and has no length."""

    def __iter__(self):
        return endless()


class EndlessSampler(Sampler):
    def __iter__(self):
        return itertools.repeat(0)


class EndlessStream(IterableDataset):
    def __iter__(self):
        return endless()


ENDLESS = {
    "repeat": lambda: itertools.repeat(X),
    "cycle": lambda: itertools.cycle([X, X + 1]),
    "generator": endless,
    "iterable": Forever,
    "pairs with labels": lambda: zip(endless(), itertools.count()),
    "mappings": lambda: ({"input": x} for x in endless()),
    "empty batches": lambda: (x[:0] for x in endless()),
    "loader of a stream": lambda: DataLoader(EndlessStream(), batch_size=None),
    "loader with an endless sampler": lambda: DataLoader([X], None, sampler=EndlessSampler()),
}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_data_without_an_end_names_the_remedy(linear, make):
    with pytest.raises(
        CalibrationError,
        match=r"must end within 20,000 batches and 4 GiB, got 20,001 batches \(0\.\d GiB\) and no "
        r"end from a \w+\. Pass as many batches as are needed, .* itertools\.islice\(data, 64\)",
    ):
        octavo.quantize(linear, 8, data=make(), progress=False)
    few = itertools.islice(make(), 4)
    if make is not ENDLESS["empty batches"]:
        octavo.quantize(linear, 8, data=few, progress=False)


def test_every_call_that_reads_all_of_the_data_refuses_data_without_an_end(linear):
    trainee = octavo.quantize(linear, 8, data=X, qat=True, progress=False)
    frozen = octavo.freeze(trainee)
    for call in (
        lambda: octavo.quantize(linear, 8, data=endless(), qat=True, progress=False),
        lambda: octavo.verify(trainee, frozen, endless()),
        lambda: octavo.reestimate_batch_norm(trainee, endless()),
        lambda: octavo.report(frozen, endless(), reference=linear),
        lambda: octavo.pareto_front(
            linear, endless(), evaluate=lambda m: 0.0, bits=8, rounds=1, progress=False
        ),
    ):
        with pytest.raises(CalibrationError, match=r"no end from a generator\. Pass"):
            call()


def test_calls_that_need_a_few_samples_read_no_more(linear):
    read = []

    def loader():
        for i in itertools.count():
            read.append(i)
            yield X

    quantized = octavo.quantize(linear, 8, progress=False)
    for call, batches in (
        (lambda: octavo.sensitivity(linear, loader(), progress=False), 16),  # 32 samples, 2 each.
        (lambda: octavo.advise(linear, "server", loader()), 16),
        (lambda: octavo.report(quantized, loader()), 1),
        (
            lambda: octavo.pareto_front(
                linear, evaluate=lambda m: 0.0, bits=8, inputs=loader(), rounds=1, progress=False
            ),
            1,
        ),
    ):
        read.clear()
        call()
        assert len(read) == batches


class Holder:
    """A batch that is an object of the user's."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, 1),
        lambda x: {"input": x},
        lambda x: x.numpy(),
        Holder,
        lambda x: Holder([{"image": x}]),
    ],
    ids=["tensor", "tuple", "mapping", "array", "object", "nested"],
)
def test_memory_of_what_is_kept_is_bounded(monkeypatch, wrap):
    monkeypatch.setattr(data_module, "_MOST_BYTES", 1 << 20)
    made = []

    def loader():
        while True:
            made.append(torch.zeros(1 << 16))  # 256 KiB.
            yield wrap(made[-1])

    with pytest.raises(CalibrationError, match=r"got 5 batches \(0\.0 GiB\) and no end"):
        Batches(loader())
    same = torch.zeros(1 << 16)
    assert len(Batches(iter([wrap(same)] * 9))._items) == 9  # One tensor, however often given.


def test_sequences_are_read_as_far_as_their_length():
    class Random(collections.abc.Sequence):
        """Never raises IndexError."""

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X + index

    assert [float(call.args[0][0, 0]) for call in calls(Random())] == [0.0, 1.0, 2.0]


def test_ctrl_c_ends_the_reading_of_data():
    def loader():
        yield X
        signal.raise_signal(signal.SIGINT)
        yield X

    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(nn.Linear(3, 16), 8, data=loader(), progress=False)
