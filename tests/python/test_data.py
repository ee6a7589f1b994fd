"""batches: every accepted form of data becomes calls of the model; every other is refused in
words.
"""

import collections
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

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
