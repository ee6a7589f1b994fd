"""Whether a captured forward does what its module does: in calls in a row, bit for bit.

Both run on private copies, each on the state that its own earlier calls left: the example (twice
where there is state), three samples of other values, one sample, other sizes where they are free.
Compared are results, arguments, buffers and attributes: a forward that changes attributes is none
that a flow could stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.exported import Form
from octavo.graph.flow import Flow, bound, walk
from octavo.graph.instances import taken_apart
from octavo.graph.sizes import value_of
from octavo.graph.trace import Untraceable
from octavo.nn.surgery import MODULE_STATE

__all__ = ["agreed", "same_bits"]

_MANY = 3  # Samples in a call with more than the example's.
_MORE = 16


def agreed(
    flow: Flow,
    form: Form,
    copied: Callable[[], nn.Module],
    numbers: Mapping[str, int] | None,
) -> Flow:
    """The flow, for one sample too where it holds there; Untraceable if it does something else.

    Args:
        flow: what was captured; its names are those from the root model.
        form: the example, of two samples or more.
        copied: makes a private copy of the module.
        numbers: other numbers for the flow's symbols, None without.
    """
    pair = _Pair(flow, form, copied(), copied())
    try:
        for _ in range(2 if any(True for _ in pair.module.buffers()) else 1):
            pair.call(form.tensors, "")
        many = pair.with_samples(_MANY) if pair.batched else form.tensors
        pair.call(_altered(many), "with other values")
        flow = pair.flow = _for_one(pair)
        if pair.batched and bound(flow, pair.all_of(pair.with_samples(_MORE))) is None:
            raise Untraceable("it is made for few numbers of samples")
        if numbers is not None:
            pair.call(pair.with_sizes(numbers), "for other sizes", must_run=True)
    finally:
        pair.release()
    return flow


class _Pair:
    """The module and what was captured of it, each with a copy of its own."""

    def __init__(self, flow: Flow, form: Form, module: nn.Module, other: nn.Module) -> None:
        self.flow, self.form, self.module = flow, form, module
        self.other = _Rooted(other, flow.path)
        self.before = _attributes(module)
        symbols = [sizes[0] for sizes in flow.sizes.values() if sizes]
        self.batch = next((s for s in symbols if isinstance(s, str)), "")
        if not flow.sizes:  # Traced: whatever has the example's number of samples.
            self.batched = {
                name for name, x in form.tensors.items() if x.dim() and x.shape[0] == form.samples
            }
        else:
            self.batched = {
                name for name, sizes in flow.sizes.items() if sizes and sizes[0] == self.batch
            }
        self.batched -= set(form.same)

    def release(self) -> None:
        """Lets the copies go."""
        del self.module, self.other

    def with_samples(self, samples: int) -> dict[str, Tensor]:
        """The example with another number of samples."""
        return {
            name: _resized(x, (samples, *x.shape[1:])) if name in self.batched else x
            for name, x in self.form.tensors.items()
        }

    def with_sizes(self, numbers: Mapping[str, int]) -> dict[str, Tensor]:
        """The example with other sizes."""
        return {
            name: _resized(
                x, tuple(value_of(e, numbers.__getitem__) for e in self.flow.sizes[name])
            )
            for name, x in self.form.tensors.items()
        }

    def all_of(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """In the order of the flow's parameters; those that are one tensor are one."""
        return tuple(tensors[self.form.same.get(name, name)] for name in self.flow.parameters)

    def call(self, tensors: Mapping[str, Tensor], what: str, must_run: bool = False) -> None:
        """One call of each; Untraceable if they differ."""
        given, again = self._cloned(tensors), self._cloned(tensors)
        failed = None
        try:
            wanted = self.form.call(self.module, given)
        except MemoryError:
            raise
        except Exception as error:  # Any code may run here, so any error may come out.
            if must_run or not what:
                raise Untraceable(f"its forward fails {what} ({type(error).__name__})") from None
            failed = error
        try:
            got = walk(self.flow, self.other, tuple(again.values()), _nothing)  # type: ignore[arg-type]
        except MemoryError:
            raise
        except Exception as error:  # Operators of torch on whatever was recorded.
            if failed is not None:
                return
            raise Untraceable(
                f"its captured form fails {what} ({type(error).__name__}: {str(error)[:120]})"
            ) from None
        if failed is not None:
            raise Untraceable(f"its captured form runs {what} where its forward fails")
        if not same_bits(wanted, got):
            where = f" {what}" if what else " on the example"
            raise Untraceable(f"its captured form computes something else{where}")
        if not same_bits(list(given.values()), list(again.values())):
            raise Untraceable(f"its captured form writes other arguments {what}".rstrip())
        buffers = [dict(m.named_buffers()) for m in (self.module, self.other.module)]
        if not same_bits(*buffers):
            raise Untraceable(f"its captured form leaves other buffers {what}".rstrip())
        changed = _changed(self.before, _attributes(self.module))
        if changed:  # Looked at after each call: the next one may change it back.
            raise Untraceable(f"it changes its attribute {changed!r}")

    def _cloned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: x.clone() for name, x in tensors.items()}
        for name, other in self.form.same.items():
            found[name] = found[other]
        return found


class _Rooted:
    """A copy of one module, asked for modules by their names from the root model."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module, self.path = module, path

    def get_submodule(self, name: str) -> nn.Module:
        """The module of that name in the copy."""
        inside = name.removeprefix(self.path) if self.path else name
        return self.module.get_submodule(inside.removeprefix("."))


def _nothing(_name: str, _value: Any) -> None:
    pass


def _for_one(pair: _Pair) -> Flow:
    """The flow with ranges from one on, if it holds for one sample."""
    flow, batch = pair.flow, pair.batch
    if not pair.batched:
        return flow
    if flow.ranges.get(batch, (1, -1))[0] <= 1:
        pair.call(pair.with_samples(1), "for one sample")
        return flow
    if flow.ranges[batch][0] > 2:
        return flow
    wider = replace(flow, ranges={**flow.ranges, batch: (1, flow.ranges[batch][1])})
    pair.flow = wider
    try:
        pair.call(pair.with_samples(1), "for one sample")
    except Untraceable:
        return flow
    return wider


def _altered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other values: floats of other signs, sizes and order, integers and booleans permuted."""
    found = {}
    for name, x in tensors.items():
        flipped = x.flip(tuple(range(x.dim())))
        if x.is_floating_point():  # The last sample is much larger than the others.
            factors = torch.full(x.shape[:1] or (1,), -0.75, dtype=x.dtype)
            factors[-1] = 40.0
            flipped = flipped * factors.view(-1, *[1] * (x.dim() - 1)).to(x.device)
        found[name] = flipped
    return found


def _resized(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Elements of ``x``, repeated as often as needed, in another shape."""
    if tuple(x.shape) == shape:
        return x
    for axis, size in enumerate(shape):
        index = torch.arange(size, device=x.device) % x.shape[axis]
        x = x.index_select(axis, index)
    return x


def same_bits(a: Any, b: Any) -> bool:
    """Equal types, structure and bits (NaN equals NaN)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if torch.equal(a, b):
            return True
        return bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same_bits(*pair) for pair in zip(a, b, strict=True))
    if isinstance(a, dict) and list(a) != list(b):
        return False
    parts, others = taken_apart(a), taken_apart(b)
    if parts is not None and others is not None:
        return same_bits(parts.fields, others.fields)
    if isinstance(a, dict):
        return all(same_bits(a[key], b[key]) for key in a)
    return bool(a == b)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What every module holds besides parameters, buffers and children, tensors by their bits."""
    found = {}
    for path, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            continue
        for name, value in vars(child).items():
            if name not in MODULE_STATE:
                found[f"{path}.{name}".lstrip(".")] = _frozen(value)
    return found


def _frozen(value: Any) -> Any:
    """A copy that later writes do not change, as deep as containers go."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.device.type == "cpu" else value
    if isinstance(value, (list, tuple)) and len(value) < 10_000:
        return [_frozen(item) for item in value]
    if isinstance(value, dict) and len(value) < 10_000:
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first attribute that is another one, "" if none is."""
    if before.keys() != after.keys():
        return str(next(iter(before.keys() ^ after.keys())))
    return next((name for name in before if not _alike(before[name], after[name])), "")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, (Tensor, list, dict)):
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(_alike, one, other))
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
        return isinstance(one, Tensor) and isinstance(other, Tensor) and same_bits(one, other)
    if one is other:
        return True
    if isinstance(one, (bool, int, float, str, bytes)):
        return type(one) is type(other) and (one == other or repr(one) == repr(other))
    return False
