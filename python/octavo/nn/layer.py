"""What every quantized layer shares: its state, how it is copied, moved, saved and loaded.

The weight lives once, in ``panel``: the form that the active instruction set computes with.
Everything that leaves the process (state_dict, pickle, files) holds the canonical bits instead,
which do not depend on the machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo import ops
from octavo.nn.facts import LayerFacts
from octavo.nn.state import StateError, StateForm, read_range, read_state
from octavo.nn.surgery import MODULE_STATE
from octavo.numerics.grids import codes_of, spread_zero_point, values_of
from octavo.numerics.scheme import Activations, QParams

__all__ = ["QLayer"]

# What a quantized layer takes over from its float layer: the very hook tables, so that handles keep
# working.
_KEPT_STATE = frozenset({"training", *(name for name in MODULE_STATE if "hooks" in name)})
_COMPUTED = frozenset({"weight", "bias", "forward"})


class QLayer(LayerFacts, nn.Module):
    """A layer with integer weights that takes and returns floats.

    What it tells of the float layer that it stands for is in `octavo.nn.facts`.

    Attributes:
        weight_scale: float32 [O], real size of one step of a level in each output channel, negative
            where a trained BatchNorm's gamma was; no gradient. [O, groups] where groups of inputs
            have their own: where weights are packed, these live in the panel alone and are read
            from it each time.
        bias: float32 [O] or None; no gradient.
        panel: uint8 [bytes], codes, scale and bias packed for the active instruction set. Never
            changed in place: a new panel replaces it in one assignment, so a forward that runs
            meanwhile sees one of the two.
        bits: width of the weight's codes.
        grid: name of the levels that the codes stand for.
        levels: int8 [tables, 2^bits], one table for 64 output channels; None where codes are the
            levels.
        group_size: inputs that share a scale; 0: all of an output channel.
        weight_zero_point: uint8 [O, groups], read from the panel each time, or None: levels are
            codes minus it.
        symmetric: whether there are no zero points.
        activations: "static", "dynamic" (each row or sample gets a range of its own in every call)
            or "float".
        packed: whether weights stay in ``bits`` bits in memory, else they are int8.
        input_params: range of the input where activations are static.
        path: name of the layer in the model it was made for; used in messages only.
        float_class: the class that it replaced.
    """

    computed_tensors = frozenset({"weight"})
    """What a captured forward may read of the layer beside parameters and buffers."""

    weight_scale: nn.Parameter
    bias: nn.Parameter | None
    panel: Tensor
    bits: int
    grid: str
    levels: Tensor | None
    group_size: int
    symmetric: bool
    activations: Activations
    packed: bool
    input_params: QParams | None
    path: str
    float_class: type[nn.Module]
    _isa: str
    _prepared: tuple[Tensor, str, Tensor] | None

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        bits: int = 8,
        *,
        grid: str = "linear",
        levels: Tensor | None = None,
        zero_point: Tensor | None = None,
        group_size: int = 0,
        activations: Activations | None = None,
        packed: bool = False,
        input_params: QParams | None = None,
        path: str = "",
    ) -> QLayer:
        """The quantized form of ``module``.

        Args:
            module: the float layer. Its plain attributes and hooks are taken over, its weight is
            not read.
            codes: int8 [O, I / groups, kernel ...] in torch's weight order; with ``levels``, those.
            scale: float32 [O], finite and positive; [O, groups] with ``group_size``.
            bias: float32 [O] or None.
            bits: width of the codes, 2..8.
            grid: name of the levels that the codes stand for.
            levels: tables of the grid, None for "linear".
            zero_point: uint8 [O, groups], already subtracted from ``codes``; only with ``packed``.
            group_size: inputs that share a scale; 0: all of an output channel.
            activations: None: static with ``input_params``, else dynamic.
            packed: whether weights stay in ``bits`` bits in memory, where the class can do that.
            input_params: static range of the input.
            path: name of the layer, for messages.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        for name, value in module.__dict__.items():
            if (name not in MODULE_STATE or name in _KEPT_STATE) and name not in _COMPUTED:
                layer.__dict__[name] = value
        for name, buffer in module._buffers.items():
            if name not in _COMPUTED:
                layer._buffers[name] = buffer
        layer.float_class = type(module)
        layer.bits, layer.grid, layer.path = bits, grid, path
        layer.group_size, layer.packed, layer.input_params = group_size, packed, input_params
        layer.symmetric = zero_point is None
        layer.activations = activations or ("dynamic" if input_params is None else "static")
        with torch.inference_mode(False), torch.no_grad():
            layer.levels = None if levels is None else levels.detach().clone()
            layer._take_sizes(codes)
            if not layer._scale_in_panel:
                layer.weight_scale = _frozen(scale)
            layer.register_parameter("bias", None if bias is None else _frozen(bias))
            layer._set_values(codes, scale.detach().to(torch.float32), zero_point)
        return layer

    # ---- what a subclass tells -------------------------------------------------------------------

    def _float_weight(self, weight: Tensor) -> Tensor:
        """Turns a canonical weight into the order of the float class."""
        return weight

    def _take_sizes(self, codes: Tensor) -> None:
        """Sets the sizes that the float class did not have as attributes."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the canonical codes: (O, I / groups, kernel ...)."""
        raise NotImplementedError

    @property
    def layer_groups(self) -> int:
        """Groups of the float layer."""
        return type(self).channel_groups(self)

    # ---- the weight ------------------------------------------------------------------------------

    @property
    def _scale_in_panel(self) -> bool:
        """Whether group scales live in the panel alone; a copy costs 32 bits a group."""
        return self.packed and self.group_size > 0

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        if name == "weight_scale" and "panel" in state and "weight_scale" not in self._parameters:
            with torch.inference_mode(False), torch.no_grad():
                scale = ops.unpack_lowbit(state["panel"], *self.weight_shape).scale
                return nn.Parameter(scale, requires_grad=False)
        return super().__getattr__(name)

    @property
    def weight_zero_point(self) -> Tensor | None:
        """uint8 [O, groups]; None where the weight is symmetric."""
        if self.symmetric:
            return None
        with torch.inference_mode(False), torch.no_grad():
            return ops.unpack_lowbit(self.panel, *self.weight_shape).zero_point

    def _pack(self, values: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """The panel of int8 levels."""
        bias = None if self.bias is None else self.bias.detach()
        if self.packed:
            codes = codes_of(values, self.bits, self.levels, self._spread_zero(zero_point))
            codes = codes.to(torch.int16) + (1 << self.bits - 1)
            return ops.pack_lowbit(
                codes.to(torch.uint8),
                scale.view(scale.shape[0], -1),
                self.bits,
                self.group_size,
                zero_point=zero_point,
                levels=self.levels,
                bias=bias,
                rows=type(self).looks_up,  # Panels of look-ups have an order of their own.
            )
        bits = self.bits if self.levels is None else 8
        return ops.pack_weight(values.detach(), scale, bias, self.layer_groups, bits)

    def _values(self, panel: Tensor) -> Tensor:
        """The int8 levels in a panel, in torch's weight order."""
        if not self.packed:
            return ops.unpack_weight(panel, self.weight_shape)
        found = ops.unpack_lowbit(panel, *self.weight_shape)
        zero_point = self._spread_zero(found.zero_point)
        return values_of(self._signed(found.codes), self.bits, self.levels, zero_point)

    def _spread_zero(self, zero_point: Tensor | None) -> Tensor | None:
        return spread_zero_point(zero_point, self.group_size, self.weight_shape[1])

    def _signed(self, codes: Tensor) -> Tensor:
        """int8 of a packed panel's codes: less 2^(bits - 1)."""
        return (codes.to(torch.int16) - (1 << self.bits - 1)).to(torch.int8)

    def _set_values(self, values: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
        """Packs levels with scale and bias; the new panel appears in one assignment."""
        isa = ops.active_isa()
        panel = self._pack(values, scale, zero_point)
        self._prepared = None
        self._isa = isa
        self.panel = panel
        self.prepare()

    def current_panel(self) -> Tensor:
        """The panel for the active instruction set; packed again if another one was chosen since.

        Where another thread chooses meanwhile it may be for either: operators compute with the
        kernels of the panel that they are given, and all kernels give the same bits.
        """
        panel = self.panel
        if torch.compiler.is_compiling() or self.packed:
            return panel  # Packed panels serve every instruction set.
        isa = ops.active_isa()
        if isa != self._isa:
            if not ops.panel_is_current(panel):
                with torch.inference_mode(False), torch.no_grad():
                    panel = self._pack(self._values(panel), self.weight_scale.detach())
                self.panel = panel
            self._isa = isa
            if self.panel is not panel or ops.active_isa() != isa:
                self._isa = ""  # Another thread was here too: the next call looks again.
        return panel

    def _program(self) -> str:
        """The region program that is this layer alone; "" where an operator of its own does it."""
        raise NotImplementedError

    def prepare(self) -> tuple[Tensor, str, Tensor]:
        """Panel, program and constants that belong together, where the layer is a region."""
        if torch.compiler.is_compiling() and self._prepared is not None:
            return self._prepared
        panel = self.current_panel()
        prepared = self._prepared
        if prepared is None or prepared[0] is not panel:
            with torch.inference_mode(False), torch.no_grad():
                program = self._program()
                constants = (
                    ops.region_constants([panel], program)
                    if program
                    else torch.empty(0, dtype=torch.float32)
                )
                prepared = (panel, program, constants)
            self._prepared = prepared
        return prepared

    def codes(self) -> Tensor:
        """The weight's codes, int8 in torch's weight order.

        With a table of levels, code c stands for the level of index c + 2^(bits - 1), and with zero
        points z for the level c + 2^(bits - 1) - z.
        """
        with torch.inference_mode(False), torch.no_grad():
            if self.packed:
                return self._signed(ops.unpack_lowbit(self.panel, *self.weight_shape).codes)
            return codes_of(self._values(self.panel), self.bits, self.levels)

    def level_values(self) -> Tensor:
        """Levels, int8 in torch's weight order: times the scale of their channel the weight."""
        with torch.inference_mode(False), torch.no_grad():
            return self._values(self.panel)

    def weight_packed(self) -> Tensor:
        """The canonical bits: uint8 [O, bytes of one channel], least significant bit first."""
        with torch.inference_mode(False), torch.no_grad():
            return ops.pack_bits(self.codes(), self.bits)

    @property
    def weight(self) -> Tensor:
        """Level times scale as float32, in the order of the float class. Computed each time."""
        with torch.inference_mode(False), torch.no_grad():
            if self.packed:
                weight = ops.dequantize_lowbit(self.panel, *self.weight_shape)
                return self._float_weight(weight)
            values = self._values(self.panel)
            scale = self.weight_scale.view(-1, *[1] * (values.dim() - 1))
            return self._float_weight(values.float() * scale)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" or (name == "weight_scale" and self._scale_in_panel):
            raise AttributeError(self._weight_is_computed(name))
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            raise AttributeError(self._weight_is_computed())
        super().__delattr__(name)

    def _weight_is_computed(self, name: str = "weight") -> str:
        return (
            f"{self._where()}.{name}: expected to be read only, "
            "since it is computed from integer codes, got an assignment or deletion. "
            "Change the float model and quantize it again; codes() gives the integers."
        )

    def to_float(self) -> nn.Module:
        """The float class again, with the dequantized weight and the hooks of this layer."""
        module = self.float_class.__new__(self.float_class)
        nn.Module.__init__(module)
        for name, value in self.__dict__.items():
            if name in _KEPT_STATE or (name not in MODULE_STATE and name not in _OWN_ATTRIBUTES):
                module.__dict__[name] = value
        module._buffers.update(self._buffers)
        with torch.inference_mode(False), torch.no_grad():
            bias = self.bias
            module.register_parameter("weight", nn.Parameter(self.weight))
            module.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
        return module

    # ---- the input -------------------------------------------------------------------------------

    def _where(self) -> str:
        return f"layer {self.path!r} ({type(self).__name__})" if self.path else type(self).__name__

    def _float32(self, x: Tensor) -> Tensor:
        """``x`` as a float32 tensor on the CPU, or an error that names this layer."""
        # Its name is not looked at where it is not needed: torch.compile would guard on it.
        return x if ops.is_float32(x) else ops.as_float32(x, self._where())

    # ---- copies ----------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> QLayer:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        # Panels are never changed in place, so that copies may share them.
        for name, value in self.__dict__.items():
            twin.__dict__[name] = (
                value if name in ("panel", "_prepared") else copy.deepcopy(value, memo)
            )
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_prepared")
        # By value, as arrays: a process that is spawned would get a tensor as an open file, which
        # is closed before the process has it if nothing but the pickle holds the tensor.
        scale = self.weight_scale.detach().numpy() if self._scale_in_panel else None
        zero_point = self.weight_zero_point
        zeros = None if zero_point is None else zero_point.numpy()
        state["panel"] = self.weight_packed().numpy(), scale, zeros
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        packed, *rest = state.pop("panel")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        with torch.inference_mode(False), torch.no_grad():
            # Pickles of before hold tensors, and every scale.
            scale, zero_point = (None if x is None else torch.as_tensor(x) for x in rest)
            if scale is None:
                scale = self.weight_scale.detach()
            values = self._unpack(torch.as_tensor(packed), zero_point)
            self._set_values(values, scale, zero_point)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QLayer:
        try:
            device = fn(torch.empty(0, dtype=torch.float32)).device
        except (AssertionError, RuntimeError) as error:
            raise RuntimeError(self._cpu_only(f"a move that fails ({error})")) from error
        if device.type != "cpu":
            raise RuntimeError(self._cpu_only(f"device {str(device)!r}"))
        # Codes, scales and biases keep their types: only a change of storage (share_memory) is
        # taken over.
        with torch.inference_mode(False), torch.no_grad():
            for parameter in self.parameters(recurse=False):
                moved = fn(parameter.data)
                if moved.dtype is parameter.dtype:
                    parameter.data = moved
            moved = fn(self.panel)
            if moved.dtype is self.panel.dtype:
                self.panel = moved
        return self

    def _cpu_only(self, got: str) -> str:
        return (
            f"{self._where()}: expected the CPU, since integer layers compute on the CPU only, "
            f"got {got}. Keep the quantized model on the CPU, or move octavo.dequantize(model)."
        )

    # ---- state_dict ------------------------------------------------------------------------------

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight_packed"] = self.weight_packed()
        if self._scale_in_panel:
            destination[prefix + "weight_scale"] = self.weight_scale.detach()
        if self.levels is not None:
            destination[prefix + "weight_levels"] = self.levels
        if not self.symmetric:
            destination[prefix + "weight_zero_point"] = self.weight_zero_point
        if self.input_params is not None:
            with torch.inference_mode(False):
                destination[prefix + "input_scale"] = torch.tensor(
                    self.input_params.scale, dtype=torch.float32
                )
                destination[prefix + "input_zero_point"] = torch.tensor(
                    self.input_params.zero_point, dtype=torch.int32
                )

    def _load_from_state_dict(  # noqa: PLR0917 (torch's own interface)
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if prefix + "weight" in state_dict:
            error_msgs.append(
                f"{self._where()}: expected integer codes ({prefix}weight_packed), "
                f"got a float weight ({prefix}weight). "
                "Load a float state_dict into the float model and quantize that."
            )
            return
        form, p = self._state_form(), self.input_params
        members = form.members if p is None else (*form.members, "input_scale", "input_zero_point")
        given = {name: state_dict[prefix + name] for name in members if prefix + name in state_dict}
        missing = [name for name in members if name not in given]
        own: dict[str, Any] = {}
        unexpected: list[str] = []
        with torch.inference_mode(False), torch.no_grad():
            if missing:  # They stay as they are. torch raises where that is an error.
                self._save_to_state_dict(own, "", keep_vars=False)
            whole = own | given
            try:  # All is read before anything is changed.
                state = read_state(form, whole, prefix)
                if p is not None:
                    scale, zero_point = whole["input_scale"], whole["input_zero_point"]
                    p = read_range(scale, zero_point, p.bits, f"{prefix}input")
            except StateError as error:
                error_msgs.append(
                    f"{error} Load the state_dict of a model that was quantized with this scheme."
                )
                return
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs
            )
            # load_state_dict(assign=True) puts the given tensors in place: gradients are ours.
            for name in ("weight_scale", "bias"):
                parameter = self._parameters.get(name)
                if parameter is not None and parameter.requires_grad:
                    self._parameters[name] = _frozen(parameter)
            if state.levels is not None:
                self.levels = state.levels.clone()
            self.input_params = p
            self._set_values(state.values, state.scale, state.zero_point)
        missing_keys += [prefix + name for name in missing if name not in self._parameters]
        unexpected_keys += [key for key in unexpected if key.removeprefix(prefix) not in members]

    def _state_form(self) -> StateForm:
        return StateForm(
            self.weight_shape,
            self.bits,
            self.levels is not None,
            self.group_size,
            self.symmetric,
            self.packed,
            self.bias is not None,
        )

    def _unpack(self, packed: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """int8 levels from the canonical bits."""
        codes = ops.unpack_bits(packed, self.weight_shape, self.bits)
        return values_of(codes, self.bits, self.levels, self._spread_zero(zero_point))

    def _repr_end(self) -> str:
        p = self.input_params
        inputs: str = self.activations
        if p is not None:
            inputs = f"static(scale={p.scale:.4g}, zero_point={p.zero_point})"
        parts = [f"bits={self.bits}"]
        if self.grid != "linear":
            parts.append(f"grid={self.grid}")
        if self.group_size:
            parts.append(f"group_size={self.group_size}")
        if not self.symmetric:
            parts.append("symmetric=False")
        return ", ".join([*parts, f"activations={inputs}"])


_OWN_ATTRIBUTES = frozenset(QLayer.__annotations__)


def _frozen(values: Tensor) -> nn.Parameter:
    """A float32 parameter of its own memory, without gradient."""
    detached = values.detach().to(torch.float32)
    if detached.data_ptr() == values.data_ptr():
        detached = detached.clone()
    return nn.Parameter(detached.contiguous(), requires_grad=False)
