"""What users pass as ``data``, made uniform: calls of the model, one a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from octavo.errors import CalibrationError, describe
from octavo.interrupts import let_through
from octavo.nn.kept_state import state_kept

__all__ = ["Batches", "Call", "Example", "float_tensors"]

#: The arguments of one call, or a callable that is given the model and runs it.
Example = tuple[tuple[Any, ...], Mapping[str, Any]] | Callable[[nn.Module], object] | None

_END = object()

# What can be read only once is kept in memory, and need not have an end. More single images than
# the test set of MNIST has, and 7,000 images of 224 px in float32.
_MOST_BATCHES = 20_000
_MOST_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of one call of the model.

    Attributes:
        dropped: how many trailing items (or which keys) of the batch the model's forward cannot
            take.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dropped: tuple[str, ...] = ()

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The floating-point tensors among the arguments, nested ones included."""
        return float_tensors((self.args, self.kwargs))

    @property
    def samples(self) -> int:
        """Length of the first dimension of the first tensor; 1 if there is none."""
        for tensor in _tensors((self.args, self.kwargs)):
            return tensor.shape[0] if tensor.dim() else 1
        return 1

    def shortened(self, samples: int) -> Call | None:
        """The first samples alone; None unless all arguments are tensors of one larger batch."""
        values = [*self.args, *self.kwargs.values()]
        if not values or not all(isinstance(v, Tensor) and v.dim() > 1 for v in values):
            return None
        if len({v.shape[0] for v in values}) != 1 or values[0].shape[0] <= samples:
            return None
        return Call(
            tuple(v[:samples] for v in self.args), {k: v[:samples] for k, v in self.kwargs.items()}
        )


class Batches:
    """Calibration data of any accepted form, as often as needed.

    A batch is a tensor, a tuple or list of positional arguments, a mapping of keyword arguments, or
    any other object, which is passed as it is. Items at the end of a tuple, and keys, that the
    model's forward cannot take (labels) are dropped.

    What may give its batches only once (an iterator, a progress bar around one, a stream) is read
    into a list of at most 20,000 batches and 4 GiB. Sequences, and DataLoaders of sequences, are
    read each time, as far as their length.

    Args:
        data: a tensor (one batch), a mapping (one batch, passed by keyword), an iterable of
            batches, or a callable that is given the model and runs it.
        samples: how many the caller needs: where batches are given only once, no more are read than
            hold so many.

    Raises:
        TypeError: data is none of these.
        CalibrationError: what can be read only once does not end within what is kept.
    """

    def __init__(self, data: object, samples: float = math.inf) -> None:
        self.runs_model: Callable[[nn.Module], object] | None = None
        self._items: Iterable[object] = ()
        if isinstance(data, Tensor) or _is_mapping(data):
            self._items = [data]
        elif isinstance(data, (nn.Module, str, bytes)):
            raise TypeError(
                "quantize: data must be batches of inputs or a callable that runs the model, got "
                f"{describe(data)}. Pass for example data=[batch1, batch2]."
            )
        elif isinstance(data, Iterable):
            self._items = data if _gives_again(data) else let_through(_kept, data, samples)
        elif callable(data):
            self.runs_model = data
        else:
            raise TypeError(
                "quantize: data must be batches of inputs or a callable that runs the model, got "
                f"{describe(data)}. Pass for example data=[batch1, batch2]."
            )

    @property
    def source(self) -> Callable[[nn.Module], object] | Iterable[object]:
        """What can be given as data in place of ``data``, as often as needed."""
        return self.runs_model or self._items

    def calls(self, model: nn.Module) -> Iterator[Call]:
        """The batches as calls of ``model``; a CalibrationError if there is none."""
        signature = inspect.signature(model.forward)
        length = let_through(len, self._items)  # type: ignore[arg-type]
        items = itertools.islice(let_through(iter, self._items), length)
        for number in itertools.count():
            item = let_through(next, items, _END)
            if item is _END:
                break
            yield _call_of(item, signature, type(model).__name__, number)
        if number == 0:
            raise CalibrationError(
                "quantize: data must hold at least one batch, got 0 batches. "
                "Pass batches, or leave data out for dynamic activations."
            )

    def recorded(self, model: nn.Module) -> list[Call]:
        """The calls as a list; where a callable runs the model, the calls that it makes."""
        if self.runs_model is None:
            return list(self.calls(model))
        found: list[Call] = []

        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(Call(args, kwargs))

        handle = model.register_forward_pre_hook(record, with_kwargs=True)
        try:
            with torch.no_grad(), state_kept(model):
                let_through(self.runs_model, model)
        finally:
            handle.remove()
        return found

    def first(self, model: nn.Module) -> Call | None:
        """The first call; None where a callable runs the model itself."""
        return None if self.runs_model else next(iter(self.calls(model)))

    def example(self, model: nn.Module) -> Example:
        """One call to capture with: two samples of the first batch if the model takes so few."""
        call = self.first(model)
        if call is None:
            return self.runs_model
        few = call.shortened(2)
        if few is not None:
            with torch.no_grad(), contextlib.suppress(Exception), state_kept(model):
                let_through(model, *few.args, **few.kwargs)
                return few.args, few.kwargs
        return call.args, call.kwargs

    def run(
        self,
        model: nn.Module,
        before: Callable[[int, Call | None], None],
        samples: float = math.inf,
    ) -> None:
        """Run the model on the data without gradients.

        Args:
            model: what the batches are passed to.
            before: called as ``before(number, call)`` ahead of each batch; once, as
                ``before(0, None)``, where a callable runs the model.
            samples: stop after the batch that reaches so many; a callable that runs the model is
                not stopped.

        Raises:
            TypeError: a batch does not fit the model's forward.
            CalibrationError: there is no batch.
            Exception: whatever the model itself raises.
        """
        with torch.no_grad():
            if self.runs_model:
                before(0, None)
                let_through(self.runs_model, model)
                return
            seen = 0
            for number, call in enumerate(self.calls(model)):
                before(number, call)
                let_through(model, *call.args, **call.kwargs)
                seen += call.samples
                if seen >= samples:
                    return


def _gives_again(data: Iterable[object]) -> bool:
    """Whether it is certain that a second reading gives what the first gave."""
    if isinstance(data, Iterator) or not hasattr(data, "__len__"):
        return False
    if isinstance(data, DataLoader):
        return not isinstance(data.dataset, IterableDataset) and _has_length(data)
    return hasattr(data, "__getitem__") and _has_length(data)


def _has_length(data: object) -> bool:
    """False where a DataLoader's sampler has none, since it goes on for ever."""
    try:
        let_through(len, data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return False
    return True


def _kept(data: Iterable[object], samples: float) -> list[object]:
    """The batches that hold so many samples; a CalibrationError if they are too many to keep."""
    items: list[object] = []
    counted: set[int] = set()
    seen = size = 0
    for item in data:
        items.append(item)
        seen += Call((item,), {}).samples
        size += _bytes(item, counted)
        if seen >= samples:
            break
        if len(items) > _MOST_BATCHES or size > _MOST_BYTES:
            raise CalibrationError(
                "quantize: data that can be read only once is kept in memory and must end within "
                f"{_MOST_BATCHES:,} batches and {_MOST_BYTES / 2**30:.0f} GiB, got {len(items):,} "
                f"batches ({size / 2**30:.1f} GiB) and no end from a {type(data).__name__}. Pass "
                "as many batches as are needed, for example itertools.islice(data, 64), or a list "
                "or a DataLoader with a length, which are not kept."
            )
    return items


def _bytes(value: object, counted: set[int], depth: int = 4) -> int:
    """Bytes of tensors and arrays, also in objects of other classes, each of them once."""
    if id(value) in counted or depth == 0:
        return 0
    counted.add(id(value))
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if type(value).__module__ == "numpy":
        return int(getattr(value, "nbytes", 0))
    if isinstance(value, (str, bytes)):
        return len(value)
    inner: Iterable[object] = ()
    if isinstance(value, (tuple, list)):
        inner = value
    elif _is_mapping(value):
        inner = value.values()  # type: ignore[attr-defined]
    elif hasattr(value, "__dict__"):
        inner = vars(value).values()
    return sum(_bytes(item, counted, depth - 1) for item in inner)


def _call_of(item: object, signature: inspect.Signature, name: str, number: int) -> Call:
    """How a batch is passed; TypeError with the signature where forward cannot take it."""
    if isinstance(item, Tensor):
        call = Call((item,), {})
    elif _is_mapping(item):
        call = _keywords(dict(item.items()), signature)  # type: ignore[attr-defined]
    elif isinstance(item, (tuple, list)):
        call = _positional(tuple(item), signature)
    elif type(item).__module__ == "numpy":
        raise TypeError(
            f"quantize: batch {number} of data must hold tensors, got {type(item).__name__}. "
            "Convert with torch.as_tensor."
        )
    else:
        call = Call((item,), {})
    try:
        signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        raise TypeError(
            f"quantize: batch {number} of data must fit {name}.forward{signature}, "
            f"got {_shape_of(item)} ({error}). "
            "Make each batch a tensor, a tuple of positional arguments "
            "or a dict of keyword arguments."
        ) from None
    return call


def _positional(args: tuple[Any, ...], signature: inspect.Signature) -> Call:
    kept = len(args)
    while kept > 1:
        try:
            signature.bind(*args[:kept])
            break
        except TypeError:
            kept -= 1
    dropped = tuple(f"item {i}" for i in range(kept, len(args)))
    try:
        signature.bind(*args[:kept])
    except TypeError:
        return Call(args, {})  # Not a matter of labels: the caller words the error.
    return Call(args[:kept], {}, dropped)


def _keywords(kwargs: dict[str, Any], signature: inspect.Signature) -> Call:
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return Call((), kwargs)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not names & set(kwargs):
        return Call((kwargs,), {})  # forward(self, batch) takes the mapping itself.
    dropped = tuple(key for key in kwargs if key not in names)
    return Call((), {key: value for key, value in kwargs.items() if key in names}, dropped)


def _is_mapping(value: object) -> bool:
    """A dict, or what acts like one (the batch of a Hugging Face tokenizer)."""
    return isinstance(value, Mapping) or (
        hasattr(value, "keys") and hasattr(value, "items") and hasattr(value, "__getitem__")
    )


def _shape_of(item: object) -> str:
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    if _is_mapping(item):
        return f"keys {describe(list(item.keys()))}"  # type: ignore[attr-defined]
    return describe(type(item).__name__)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif _is_mapping(value):
        for item in value.values():  # type: ignore[attr-defined]
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def float_tensors(value: object) -> Iterator[Tensor]:
    """The floating-point tensors in a nest of sequences, mappings and dataclasses."""
    return (tensor for tensor in _tensors(value) if tensor.is_floating_point())
