"""nn.LSTM, nn.GRU, nn.RNN and their cells, whose products are layers that can be quantized."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from octavo import ops
from octavo.nn.decomposed.protocol import become, has_class, linear_of, weight_and_bias
from octavo.nn.decomposed.recurrence import State, cell, over_time
from octavo.nn.hooks import is_watched
from octavo.nn.linear import QLinear
from octavo.nn.trained_layer import trained_layer

__all__ = ["ROWS", "DecomposedCell", "DecomposedRecurrent"]


class _Products(nn.Module):
    """Parameters ``weight_X`` and ``bias_X`` are those of a layer ``X``; the old names still read.

    Attributes:
        floats: the torch class that it stands for.
    """

    floats: type[nn.Module]

    @classmethod
    def replaces(cls, module: nn.Module, training: bool) -> bool:
        """All Parameters stay the objects that they are; weights made of others do not fit."""
        if not has_class(module, cls.floats):
            return False
        own = {name for name, parameter in module._parameters.items() if parameter is not None}
        return own == set(cls.names(module))

    @staticmethod
    def names(module: nn.Module) -> list[str]:
        """Names of the Parameters of the torch class, in its order."""
        raise NotImplementedError

    @classmethod
    def take(cls, module: nn.Module) -> None:
        """Parameters go into layers."""
        own = module._parameters
        for name in cls.names(module):
            kind, _, part = name.partition("_")
            if kind == "weight":
                weight, bias = own.pop(name), own.get(f"bias_{part}")
                assert weight is not None
                if bias is not None:
                    del own[f"bias_{part}"]
                module._modules[part] = linear_of(weight, bias)
        for name in ("_flat_weights", "_flat_weight_refs"):  # They would keep float weights alive.
            module.__dict__.pop(name, None)
        become(module, cls)

    @classmethod
    def give_back(cls, module: nn.Module) -> bool:
        """If its layers are float ones, with biases where there were some."""
        names = cls.names(module)
        found: dict[str, nn.Parameter] = {}
        for part, layer in module._modules.items():
            if type(layer) is not nn.Linear:
                return False
            weight, bias = weight_and_bias(layer)
            found[f"weight_{part}"] = weight
            if bias is not None:
                found[f"bias_{part}"] = bias
        if found.keys() != set(names):
            return False
        module._modules.clear()
        for name in names:
            module.register_parameter(name, found[name])
        module.__class__ = cls.floats
        return True

    def _is_float(self) -> bool:
        """Whether no layer is quantized or watched, so that torch's own function does it."""
        return all(
            type(layer) is nn.Linear and "forward" not in layer.__dict__ and not is_watched(layer)
            for layer in self._modules.values()
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            kind, _, part = name.partition("_")
            layers = self.__dict__.get("_modules", {})
            if kind in ("weight", "bias") and part in layers:
                return getattr(layers[part], kind)
            return super().__getattr__(name)


class DecomposedRecurrent(_Products):
    """The same function as nn.LSTM, nn.GRU or nn.RNN, which keep their weights in Parameters.

    For every level k and direction ("" or "_reverse"):
    ih_l<k><direction>: Linear [gates * hidden_size, inputs], called once for all times;
    hh_l<k><direction>: Linear [gates * hidden_size, hidden], called for each time;
    hr_l<k><direction>: Linear [proj_size, hidden_size] where hidden states are projected.

    Made by `octavo.nn.decomposed.decompose.decompose`, not by its constructor.
    """

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    bidirectional: bool
    dropout: float
    proj_size: int

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """As nn.LSTM, nn.GRU and nn.RNN: tensors [time, batch, width] or packed sequences."""
        if self._is_float():
            return self.floats.forward(self, input, hx)  # type: ignore[no-any-return, attr-defined]
        packed = input if isinstance(input, PackedSequence) else None
        batched = packed is not None or input.dim() == 3
        x, batch_sizes = self._rows(input)
        state = self._first_state(x, batch_sizes[0] if batch_sizes else None, hx, packed, batched)
        sequences = state[0].shape[1]
        directions = ("", "_reverse") if self.bidirectional else ("",)
        last: list[State] = []
        for level in range(self.num_layers):
            outputs = []
            for direction in directions:
                first = tuple(s[len(last)] for s in state)
                part = f"l{level}{direction}"
                y, end = self._run(part, x, first, batch_sizes, bool(direction))
                outputs.append(y)
                last.append(end)
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
            if self.training and self.dropout and level + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, True)
        if len(last) == 1:
            ends = tuple(s.unsqueeze(0) for s in last[0])
        else:
            ends = tuple(torch.stack(part) for part in zip(*last, strict=True))
        if packed is not None:
            order = packed.unsorted_indices
            ends = ends if order is None else tuple(e.index_select(1, order) for e in ends)
            return packed._replace(data=x), self._as_given(ends)
        y = x.view(len(batch_sizes), sequences, -1)
        if not batched:
            return y.squeeze(1), self._as_given(tuple(e.squeeze(1) for e in ends))
        return y.transpose(0, 1) if self.batch_first else y, self._as_given(ends)

    def _rows(self, input: Any) -> tuple[Tensor, list[int]]:
        """The input by time steps, [rows of all times, width], and the rows of each."""
        if isinstance(input, PackedSequence):
            self._check_width(input.data, 2)
            return input.data, input.batch_sizes.tolist()
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        self._check_width(input, input.dim())
        if input.dim() == 2:
            return input, [1] * input.shape[0]
        x = input.transpose(0, 1) if self.batch_first else input
        return x.reshape(-1, x.shape[-1]), [x.shape[1]] * x.shape[0]

    def _check_width(self, x: Tensor, dims: int) -> None:
        if x.dim() != dims or x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{type(self).__name__}: input.size(-1) must be equal to input_size. Expected "
                f"{self.input_size}, got {x.size(-1)}"
            )

    def _first_state(
        self, x: Tensor, sequences: int | None, hx: Any, packed: Any, batched: bool
    ) -> State:
        """[levels * directions, sequences, width] each, in the order of packed sequences."""
        if sequences is None:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self._has_c else 1]
        if hx is None:
            return tuple(x.new_zeros(count, sequences, size) for size in sizes)
        given = hx if isinstance(hx, (tuple, list)) else (hx,)
        if len(given) != len(sizes):
            raise RuntimeError(
                f"{type(self).__name__}: expected {len(sizes)} states, got {len(given)}."
            )
        state = tuple(given if batched else (s.unsqueeze(1) for s in given))
        for s, size, name in zip(state, sizes, ("hidden", "cell"), strict=False):
            wanted = (count, sequences, size)
            if tuple(s.shape) != wanted:
                shape = wanted if batched else (count, size)
                got = s if batched else s.squeeze(1)
                raise RuntimeError(f"Expected {name} size {shape}, got {list(got.shape)}")
        order = None if packed is None else packed.sorted_indices
        return state if order is None else tuple(s.index_select(1, order) for s in state)

    @property
    def _has_c(self) -> bool:
        return self.mode == "LSTM"

    def _as_given(self, state: State) -> Any:
        return state if self._has_c else state[0]

    def _run(
        self, part: str, x: Tensor, state: State, batch_sizes: list[int], reverse: bool
    ) -> tuple[Tensor, State]:
        """One level in one direction."""
        layers = self._modules
        ih, hh, hr = (layers.get(f"{name}_{part}") for name in ("ih", "hh", "hr"))
        assert ih is not None and hh is not None
        gates = ih(x)
        if isinstance(hh, QLinear) and hr is None and _is_silent(hh, gates, state):
            return _all_steps(self.mode, gates, hh, state, batch_sizes, reverse)

        from_h, project = _many_times(hh), None if hr is None else _many_times(hr)

        def step(gates: Tensor, state: State) -> State:
            form = _cell_after(hh, gates, state)
            h, *c = form(self.mode, gates, from_h(state[0]), state)
            return (h if project is None else project(h), *c)

        return over_time(gates, state, batch_sizes, reverse, step)

    @staticmethod
    def names(module: nn.Module) -> list[str]:
        """Names of the Parameters of the torch class, in its order."""
        names: list[str] = module._flat_weights_names  # type: ignore[assignment]
        return names

    # ---- what nn.RNNBase does with its flat weights ----------------------------------------------

    @classmethod
    def give_back(cls, module: nn.Module) -> bool:
        """If its layers are float ones, with biases where there were some."""
        done = super().give_back(module)
        if done:
            module._init_flat_weights()  # type: ignore[operator]
        return done

    def flatten_parameters(self) -> None:
        """Nothing: there are no flat weights."""

    def _update_flat_weights(self) -> None:
        """Nothing: they are collected again in every call."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.names(self)]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """Weights and biases by level and direction."""
        names: list[list[str]] = self._all_weights  # type: ignore[assignment]
        return [[getattr(self, name) for name in level] for level in names]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)  # type: ignore[no-untyped-call]


class DecomposedCell(_Products):
    """The same function as nn.LSTMCell, nn.GRUCell or nn.RNNCell.

    Attributes:
        ih: Linear [gates * hidden_size, input_size].
        hh: Linear [gates * hidden_size, hidden_size].
    """

    ih: nn.Module
    hh: nn.Module
    mode: str
    input_size: int
    hidden_size: int

    @staticmethod
    def names(module: nn.Module) -> list[str]:
        """Names of the Parameters of the torch class, in its order."""
        kinds = ("weight", "bias") if module.bias else ("weight",)
        return [f"{kind}_{part}" for kind in kinds for part in ("ih", "hh")]

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """[batch, input_size] or [input_size], and the state, to the next state."""
        if self._is_float():
            return self.floats.forward(self, input, hx)  # type: ignore[attr-defined]
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        has_c = self.mode == "LSTM"
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            state: State = (x.new_zeros(x.shape[0], self.hidden_size),) * (2 if has_c else 1)
        else:
            given = hx if isinstance(hx, (tuple, list)) else (hx,)
            state = tuple(s if batched else s.unsqueeze(0) for s in given)
        wanted = (x.shape[0], self.hidden_size)
        if any(tuple(s.shape) != wanted for s in state) or len(state) != (2 if has_c else 1):
            raise RuntimeError(
                f"{name}: expected {'h and c' if has_c else 'h'} of shape {list(wanted)}, got "
                f"{[list(s.shape) for s in state]}"
            )
        gates = self.ih(x)
        form = _cell_after(self.hh, gates, state)
        state = form(self.mode, gates, self.hh(state[0]), state)
        state = state if batched else tuple(s.squeeze(0) for s in state)
        return state if has_c else state[0]


def _many_times(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer, for calls of which a trainee fake-quantizes the weight once."""
    trained = trained_layer(layer)
    if trained is None or is_watched(layer):
        return layer
    return functools.partial(trained, weight=trained.weight())


def _cell_after(
    hh: nn.Module, gates: Tensor, state: State
) -> Callable[[str, Tensor, Tensor, State], State]:
    """The step that follows a layer: with gradients, or octavo's own."""
    own = isinstance(hh, QLinear) and not _passes_gradients(hh, gates, state)
    return _own_cell if own else cell


def _own_cell(mode: str, x: Tensor, h: Tensor, state: State) -> State:
    """`cell` without gradients: equal bits wherever it runs."""
    full = torch.float32
    found = ops.recurrent_cell(_as(full, x), _as(full, h), _as(full, state[-1]), mode)
    return tuple(_as(x.dtype, s) for s in found[: len(state)])


def _all_steps(  # noqa: PLR0917
    mode: str, gates: Tensor, hh: QLinear, state: State, batch_sizes: list[int], reverse: bool
) -> tuple[Tensor, State]:
    """What `over_time` gives, in one call."""
    h = _as(torch.float32, state[0])
    c = _as(torch.float32, state[1]) if mode == "LSTM" else None
    given = hh.input_params
    params = (1.0, 0, 255) if given is None else (given.scale, given.zero_point, given.qmax)
    y, *last = ops.recurrent(
        _as(torch.float32, gates), hh.current_panel(), h, c, batch_sizes, reverse, mode,
        hh.activations, *params, hh.packed,
    )  # fmt: skip
    return _as(gates.dtype, y), tuple(_as(gates.dtype, s) for s in last[: len(state)])


def _as(dtype: torch.dtype, x: Tensor) -> Tensor:
    """Of this dtype; a call that changes nothing would take a fraction of a microsecond."""
    return x if x.dtype is dtype else x.to(dtype)


def _is_silent(hh: QLinear, gates: Tensor, state: State) -> bool:
    """Whether nothing needs its calls one by one."""
    return not is_watched(hh) and not _passes_gradients(hh, gates, state)


def _passes_gradients(hh: QLinear, gates: Tensor, state: State) -> bool:
    """Whether a gradient is wanted, and the layer has one."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (gates, *state))
    return hh.activations == "float" and wanted


class DecomposedLSTM(DecomposedRecurrent, nn.LSTM):  # type: ignore[misc]
    """nn.LSTM of layers."""

    floats = nn.LSTM


class DecomposedGRU(DecomposedRecurrent, nn.GRU):  # type: ignore[misc]
    """nn.GRU of layers."""

    floats = nn.GRU


class DecomposedRNN(DecomposedRecurrent, nn.RNN):  # type: ignore[misc]
    """nn.RNN of layers."""

    floats = nn.RNN


class DecomposedLSTMCell(DecomposedCell, nn.LSTMCell):  # type: ignore[misc]
    """nn.LSTMCell of layers."""

    floats = nn.LSTMCell
    mode = "LSTM"


class DecomposedGRUCell(DecomposedCell, nn.GRUCell):  # type: ignore[misc]
    """nn.GRUCell of layers."""

    floats = nn.GRUCell
    mode = "GRU"


class DecomposedRNNCell(DecomposedCell, nn.RNNCell):  # type: ignore[misc]
    """nn.RNNCell of layers."""

    floats = nn.RNNCell

    @property
    def mode(self) -> str:  # type: ignore[override]
        """By its nonlinearity."""
        return f"RNN_{self.nonlinearity.upper()}"


ROWS: tuple[type[_Products], ...] = (
    DecomposedLSTM,
    DecomposedGRU,
    DecomposedRNN,
    DecomposedLSTMCell,
    DecomposedGRUCell,
    DecomposedRNNCell,
)
