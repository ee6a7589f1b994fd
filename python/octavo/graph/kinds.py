"""Which integer step each call of a flow amounts to: the second half of capture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.flow import Flow, Ref, Step, evaluate, refs
from octavo.graph.functions import BINARY, CLAMPS, LAYOUT, UNARY, operation
from octavo.graph.layouts import map_of, numbered, shape_of, slice_params, slices_as
from octavo.graph.sizes import is_symbol
from octavo.graph.trace import prune, returns_its_input
from octavo.nn.registry import quantized_class

__all__ = ["Recogniser", "clamp_of", "recognise"]

_INF = math.inf
_Params = dict[str, Any]
# How far back a layout change made of several calls is looked for.
_LAYOUT_CALLS = 12
# How many calls may stand between parameters and a number a channel (FrozenBatchNorm2d has nine).
_CONSTANT_CALLS = 16

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.GELU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.LeakyReLU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Tanhshrink,
    nn.Threshold,
)
_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_PARAMETERS = {
    "max_pool": (
        "input",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "ceil_mode",
        "return_indices",
    ),
    "avg_pool": (
        "input",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    "adaptive": ("input", "output_size", "return_indices"),
    "interpolate": (
        "input",
        "size",
        "scale_factor",
        "mode",
        "align_corners",
        "recompute_scale_factor",
        "antialias",
    ),
    "pad": ("input", "pad", "mode", "value"),
    "cat": ("tensors", "dim"),
    "clamp": ("input", "min", "max"),
    "hardtanh": ("input", "min_val", "max_val"),
    "mean": ("input", "dim", "keepdim", "dtype"),
    "dropout": ("input", "p", "training"),
    "add": ("input", "other", "alpha"),
    "channel_shuffle": ("input", "groups"),
    "pixel_shuffle": ("input", "upscale_factor"),
}


def recognise(flow: Flow, model: nn.Module, values: Mapping[str, Any]) -> Flow:
    """The flow with integer kinds and params; calls that make one integer step together become one.

    values: for each value on the example a float tensor's shape (a torch.Size), a Python number, or
      anything else.
      Empty without an example: then only modules are recognised, by their type.
    """
    return prune(Recogniser(flow, model, values).flow())


def clamp_of(step: Step) -> tuple[float, float] | None:
    """The real limits of a step that only clamps its input, else None."""
    if step.kind == "unary" and "lo" in step.params:
        return float(step.params["lo"]), float(step.params["hi"])
    return None


def _pair(value: Any, dims: int) -> list[int]:
    """A size of `dims` numbers as height and width; one-dimensional ones get height 1."""
    numbers = [value] * dims if isinstance(value, int) else list(value)
    if len(numbers) == 1 and dims == 2:
        numbers = numbers * 2
    return [1, *numbers] if dims == 1 else numbers


def _zero_pair(value: Any, dims: int) -> list[int]:
    """Like `_pair`, for padding: height gets 0."""
    numbers = _pair(value, dims)
    return [0, numbers[1]] if dims == 1 else numbers


class Recogniser:
    """Integer kinds for the raw steps of one flow. See `recognise`.

    Attributes:
        layouts: names of functions that move elements.
        numbers: of the symbols in sizes, while a change of layout is tried out.
    """

    layouts = LAYOUT

    def __init__(self, flow: Flow, model: nn.Module, values: Mapping[str, Any]) -> None:
        self.raw = flow
        self.model = model
        self.values = values
        self.shapes = {name: tuple(v) for name, v in values.items() if isinstance(v, torch.Size)}
        self.producer: dict[str, Step] = {step.output: step for step in flow.steps}
        self.found: dict[str, Step] = {}
        self.numbers: Mapping[str, int] = {}

    def flow(self) -> Flow:
        """The flow with the kinds that were found."""
        for step in self.raw.steps:
            try:
                found = self._module(step) if step.module else self._function(step)
            except (TypeError, ValueError, KeyError, IndexError):
                found = None  # An argument form that no rule expects: the call stays float.
            self.found[step.output] = found or step
        return replace(
            self.raw, steps=tuple(self.found[s.output] for s in self.raw.steps), shapes=self.shapes
        )

    # ---- helpers

    def shape(self, value: str) -> tuple[int, ...] | None:
        """Shape of a float tensor on the example, None for anything else."""
        return self.shapes.get(value)

    def _dims(self, value: str) -> int:
        """Spatial dimensions of a batched image: 1 or 2; ValueError for anything else."""
        shape = self.shape(value)
        if shape is None or len(shape) not in (3, 4):
            raise ValueError
        return len(shape) - 2

    def between(self, output: str, sources: Sequence[str]) -> tuple[Step, ...] | None:
        """The raw steps from `sources` to `output`, in order; None if they need anything else."""
        needed, seen = [output], set()
        while needed:
            name = needed.pop()
            if name in sources or name in seen or is_symbol(name):
                continue
            if name not in self.producer:
                return None
            seen.add(name)
            step = self.producer[name]
            needed.extend([*step.inputs, *refs([step.args, dict(step.kwargs)])])
        return tuple(step for step in self.raw.steps if step.output in seen)

    @staticmethod
    def given(step: Step, names: str) -> _Params:
        """The arguments of a function by name."""
        return {**dict(zip(_PARAMETERS[names], step.args, strict=False)), **dict(step.kwargs)}

    def _as(self, step: Step, kind: str, inputs: Sequence[str], **params: Any) -> Step:
        """The step as an integer one; calls that stand between it and its inputs are fused in."""
        fused = self.between(step.output, inputs)
        if fused is None:
            raise ValueError
        return replace(
            step,
            kind=kind,
            inputs=tuple(inputs),
            params=params,
            fused=fused if len(fused) > 1 else (),
        )

    # ---- modules

    def _module(self, step: Step) -> Step | None:
        module = self.model.get_submodule(step.module)
        if len(step.inputs) != 1 or step.args or step.kwargs:
            return None
        (x,) = step.inputs
        shape = self.shape(x)
        if self.values and shape is None:
            return None
        ndim = len(shape) if shape is not None else None
        if isinstance(module, nn.Linear):
            channels = module.out_features
            return (
                None
                if ndim is not None and ndim < 2
                else self._as(step, "linear", [x], channels=channels)
            )
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            params = _conv_params(module)
            return (
                self._as(step, "conv", [x], **params)
                if ndim in (None, params["dims"] + 2)
                else None
            )
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            frozen = (
                not module.training
                and module.running_mean is not None
                and module.running_var is not None
            )
            layout = {2: "rows", 3: "image1d", 4: "image", None: ""}.get(ndim)
            if not frozen or layout is None:
                return None
            return self._affine(step, x, layout, module.num_features)
        if isinstance(module, _DROPOUTS):
            return None if module.training else self._as(step, "identity", [x])
        if isinstance(module, nn.Identity) or returns_its_input(module):
            return self._as(step, "identity", [x])
        if type(module) in _ACTIVATIONS:
            return self._as(step, "unary", [x], **_module_clamp(module))
        if isinstance(module, nn.PReLU):
            if module.num_parameters == 1:
                return self._as(step, "unary", [x])
            return self._as(step, "channel_table", [x]) if ndim is None or ndim >= 2 else None
        if ndim is None or shape is None:
            return None
        if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d)):
            return self._max_pool(step, x, vars(module))
        if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)):
            return self._avg_pool(step, x, vars(module))
        if isinstance(module, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)):
            return self._adaptive(step, x, "adaptive_avg_pool", module.output_size)
        if isinstance(module, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)):
            if module.return_indices:
                return None
            return self._adaptive(step, x, "adaptive_max_pool", module.output_size)
        if isinstance(module, nn.Upsample):
            return self._upsample(step, x, vars(module))
        if isinstance(module, nn.ChannelShuffle):
            return self._shuffle(step, x, module.groups)
        if isinstance(module, nn.PixelShuffle):
            return self._as(step, "pixel_shuffle", [x], factor=module.upscale_factor)
        padding = _padding_of(module)
        if padding is not None:
            return self._pad(step, x, *padding)
        if isinstance(module, (nn.Flatten, nn.Unflatten)):
            return self._layout(step, x, module, False)
        return None

    # ---- functions

    def _function(self, step: Step) -> Step | None:
        if not self.values or step.function in ("get_attr", "getattr"):
            return None
        name = operation(step.function)
        if name == "identity":
            return self._as(step, "identity", step.inputs[:1])
        if name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"):
            training = self.given(step, "dropout").get("training", True)
            return None if training else self._as(step, "identity", step.inputs[:1])
        if self.shape(step.output) is None:
            return None
        if name in UNARY and len(step.inputs) == 1:
            return self._as(step, "unary", step.inputs, **_function_clamp(name, step))
        if name == "pow" and step.args[1:] in ((2,), (3,)):
            return self._as(step, "unary", step.inputs)
        if name in BINARY:
            return self._binary(step, "div" if name == "truediv" else name)
        if name in ("cat", "concat", "concatenate"):
            return self._concat(step)
        if name in ("max_pool1d", "max_pool2d"):
            return self._max_pool(step, step.inputs[0], self.given(step, "max_pool"))
        if name in ("avg_pool1d", "avg_pool2d"):
            return self._avg_pool(step, step.inputs[0], self.given(step, "avg_pool"))
        if name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d"):
            size = self.given(step, "adaptive")["output_size"]
            return self._adaptive(step, step.inputs[0], "adaptive_avg_pool", size)
        if name in ("adaptive_max_pool1d", "adaptive_max_pool2d"):
            size = self.given(step, "adaptive")["output_size"]
            return self._adaptive(step, step.inputs[0], "adaptive_max_pool", size)
        if name == "mean":
            return self._mean(step)
        if name in ("interpolate", "upsample"):
            return self._upsample(step, step.inputs[0], self.given(step, "interpolate"))
        if name == "pad":
            given = self.given(step, "pad")
            value = given.get("value") or 0.0
            return self._pad(
                step, step.inputs[0], given["pad"], given.get("mode", "constant"), value
            )
        if name == "channel_shuffle":
            return self._shuffle(
                step, step.inputs[0], self.given(step, "channel_shuffle")["groups"]
            )
        if name == "pixel_shuffle":
            factor = int(self.given(step, name)["upscale_factor"])
            return self._as(step, name, step.inputs, factor=factor)
        if name in self.layouts:
            return self._layout_calls(step)
        return None

    def _constant(self, value: str) -> Tensor | None:
        """A value that depends on parameters and buffers only, which the flow does not write."""
        if self.shape(value) is None:
            return None
        steps = self.between(value, [])
        if steps is None or len(steps) > _CONSTANT_CALLS or any(map(self._is_layer, steps)):
            return None
        written = {name for kind, name, _ in self.raw.writes if kind == "buffer"}
        if any(step.function == "get_attr" and step.args[0] in written for step in steps):
            return None
        values: dict[str, Any] = {}
        for step in steps:
            evaluate(step, self.model.get_submodule, values)
        result = values[value]
        return result if isinstance(result, Tensor) else None

    def _is_layer(self, step: Step) -> bool:
        """Whether the call is one of a layer, whose weight others will round."""
        if not step.module:
            return False
        return quantized_class(self.model.get_submodule(step.module))[0] is not None

    def _binary(self, step: Step, name: str) -> Step | None:
        if (
            dict(step.kwargs).get("alpha", 1) != 1
            or dict(step.kwargs).get("rounding_mode") is not None
        ):
            return None
        operands = [*step.args, *(v for k, v in step.kwargs if k == "other")]
        if len(operands) != 2:
            return None
        values = [operand.name for operand in operands if isinstance(operand, Ref)]
        constants = [v for v in values if self._constant(v) is not None]
        tensors = [v for v in values if v not in constants]
        if len(tensors) == 1 and not constants and len(values) == 1:
            numeric = all(isinstance(o, (int, float, Ref)) for o in operands)
            divides_by = name == "div" and not isinstance(operands[0], Ref)
            return self._as(step, "unary", tensors) if numeric and not divides_by else None
        if len(tensors) == 1 and len(constants) == 1:
            return self._with_parameter(step, name, tensors[0], constants[0], operands)
        if len(tensors) != 2:
            return None
        a, b = tensors
        source = self._common_source(a, b)
        if source is not None and name in ("add", "sub", "mul"):
            return self._as(step, "unary", [source])
        shape_a, shape_b = self.shape(a), self.shape(b)
        if shape_a is None or shape_b is None or name not in ("add", "mul") or a == b:
            return None
        if shape_a == shape_b:
            return self._as(step, name, [a, b])
        if name == "mul":
            for big, small in ((a, b), (b, a)):
                x, y = self.shapes[big], self.shapes[small]
                if len(x) == 4 and len(y) == 4 and x[:2] == y[:2] and y[2:] == (1, 1):
                    return self._as(step, "mul", [big, small])
        return None

    def _with_parameter(
        self, step: Step, name: str, x: str, constant: str, operands: list[Any]
    ) -> Step | None:
        """`x` op parameter: a table for one number, an affine step for one number a channel."""
        parameter, shape = self._constant(constant), self.shape(x)
        first = isinstance(operands[0], Ref) and operands[0].name == x
        if (
            parameter is None
            or shape is None
            or (name in ("sub", "div") and not first)
            or name == "rsub"
        ):
            return None
        if parameter.numel() == 1 and parameter.dim() <= len(shape):
            return self._as(step, "unary", [x])
        size = [1] * (len(shape) - parameter.dim()) + list(parameter.shape)
        layouts = {2: ("rows",), 3: ("image1d", "rows"), 4: ("image", "rows")}.get(
            len(shape), ("rows",)
        )
        for layout in layouts:
            axis = len(shape) - 1 if layout == "rows" else 1
            if size == [shape[i] if i == axis else 1 for i in range(len(shape))]:
                return self._affine(step, x, layout, shape[axis])
        return None

    def _affine(self, step: Step, x: str, layout: str, channels: int) -> Step:
        """result: the value before a clamp that may be fused in later."""
        params = {"layout": layout, "channels": channels, "result": step.output}
        return self._as(step, "affine", [x], **params)

    def _chain(self, value: str) -> list[str]:
        """The value and those that it is computed from element by element, nearest first."""
        chain = [value]
        while (step := self.found.get(chain[-1])) is not None and step.kind == "unary":
            chain.append(step.inputs[0])
        return chain

    def _common_source(self, a: str, b: str) -> str | None:
        chain = self._chain(b)
        return next((v for v in self._chain(a) if v in chain), None)

    def _concat(self, step: Step) -> Step | None:
        given = self.given(step, "cat")
        tensors = [item.name for item in given["tensors"]]
        shapes = [self.shape(t) for t in tensors]
        first = shapes[0]
        if first is None or any(s is None or len(s) != len(first) for s in shapes):
            return None
        dim = given.get("dim", 0) % len(first)
        layout = {
            (4, 1): "image",
            (3, 1): "image1d",
            (4, 3): "rows",
            (3, 2): "rows",
            (2, 1): "rows",
        }.get((len(first), dim))
        return self._as(step, "concat", tensors, layout=layout) if layout else None

    def _max_pool(self, step: Step, x: str, given: Mapping[str, Any]) -> Step | None:
        if given.get("return_indices", False):
            return None
        dims = self._dims(x)
        kernel = _pair(given["kernel_size"], dims)
        stride = given.get("stride")
        return self._as(
            step,
            "max_pool",
            [x],
            kernel=kernel,
            stride=_pair(stride, dims) if stride not in (None, []) else kernel,
            pad=_both_sides(_zero_pair(given.get("padding", 0), dims)),
            dilation=_pair(given.get("dilation", 1), dims),
            ceil=int(given.get("ceil_mode", False)),
        )

    def _avg_pool(self, step: Step, x: str, given: Mapping[str, Any]) -> Step | None:
        dims = self._dims(x)
        size, padding = given["kernel_size"], given.get("padding", 0)
        if any(True for _ in refs(size)):
            return self._global_avg_pool(step, x, size, given)
        kernel = _pair(size, dims)
        stride = given.get("stride")
        return self._as(
            step,
            "avg_pool",
            [x],
            kernel=kernel,
            stride=_pair(stride, dims) if stride not in (None, []) else kernel,
            pad=_both_sides(_zero_pair(padding, dims)),
            ceil=int(given.get("ceil_mode", False)),
            include_pad=int(given.get("count_include_pad", True)),
            divisor=int(given.get("divisor_override") or 0),
        )

    def _global_avg_pool(
        self, step: Step, x: str, size: Any, given: Mapping[str, Any]
    ) -> Step | None:
        """avg_pool2d(x, x.size()[2:]) and the like: the window is the image, whatever its size."""
        shape = self.shapes[x]
        known = [self.values.get(name) for name in refs(size)]
        concrete = (
            tuple(known[0])
            if len(known) == 1 and isinstance(known[0], (tuple, list))
            else tuple(known)
        )
        window = concrete * len(shape[2:]) if len(concrete) == 1 else concrete
        if window != shape[2:] or given.get("padding", 0) or given.get("divisor_override"):
            return None
        return self._as(step, "adaptive_avg_pool", [x], size=[1, 1], flatten=False)

    def _adaptive(self, step: Step, x: str, kind: str, size: Any) -> Step | None:
        dims = self._dims(x)
        numbers = [size] * dims if size is None or isinstance(size, int) else list(size)
        if len(numbers) == 1 and dims == 2:
            numbers = numbers * 2
        whole = [0 if n is None else int(n) for n in numbers]
        return self._as(step, kind, [x], size=[1, *whole] if dims == 1 else whole, flatten=False)

    def _mean(self, step: Step) -> Step | None:
        given = self.given(step, "mean")
        (x,) = step.inputs
        if given.get("dtype") is not None:
            return None
        shape, keep = self.shapes[x], bool(given.get("keepdim", False))
        before = self.producer.get(x)
        if (
            len(shape) == 3
            and not keep
            and before is not None
            and operation(before.function) == "mean"
        ):
            # x.mean(3).mean(2)
            earlier = self.given(before, "mean")
            whole = self.shapes[before.inputs[0]]
            dims = (_dims_of(earlier, len(whole)), _dims_of(given, 3))
            if (
                len(whole) == 4
                and not earlier.get("keepdim", False)
                and dims in (([3], [2]), ([2], [2]))
            ):
                return self._as(step, "adaptive_avg_pool", before.inputs, size=[1, 1], flatten=True)
        spatial = list(range(2, len(shape)))
        if spatial and len(shape) in (3, 4) and _dims_of(given, len(shape)) == spatial:
            return self._as(step, "adaptive_avg_pool", [x], size=[1, 1], flatten=not keep)
        return None

    def _upsample(self, step: Step, x: str, given: Mapping[str, Any]) -> Step | None:
        dims = self._dims(x)
        size, factor = given.get("size"), given.get("scale_factor")
        if given.get("mode", "nearest") != "nearest" or given.get("recompute_scale_factor"):
            return None
        if any(True for _ in refs([size, factor])):
            return None
        factors = [1.0, 1.0]
        if factor is not None:
            numbers = (
                [float(factor)] * dims
                if isinstance(factor, (int, float))
                else [float(f) for f in factor]
            )
            factors = [1.0, *numbers] if dims == 1 else numbers
        sizes = _pair(size, dims) if size is not None else [0, 0]
        return self._as(step, "upsample_nearest", [x], size=sizes, scale=factors)

    def _shuffle(self, step: Step, x: str, groups: int) -> Step | None:
        dims, channels = self._dims(x), self.shapes[x][1]
        index = torch.arange(channels).view(groups, channels // groups).t().flatten().tolist()
        return self._as(step, "gather_channels", [x], index=index) if dims else None

    def _pad(self, step: Step, x: str, padding: Any, mode: str, value: float) -> Step | None:
        dims = self._dims(x)
        amounts = [int(p) for p in padding]
        amounts += [0] * (2 * (dims + 2) - len(amounts))
        spatial, channel, batch = (
            amounts[: 2 * dims],
            amounts[2 * dims : 2 * dims + 2],
            amounts[2 * dims + 2 :],
        )
        if min(amounts) < 0 or any(batch) or (mode == "constant" and value != 0):
            return None
        if any(channel):
            if any(spatial) or mode != "constant":
                return None
            channels = self.shapes[x][1]
            index = [-1] * channel[0] + list(range(channels)) + [-1] * channel[1]
            return self._as(step, "gather_channels", [x], index=index)
        left, right, top, bottom = [*spatial, 0, 0][:4]
        return self._as(step, "pad", [x], pad=[top, left, bottom, right], mode=mode, value=0.0)

    # ---- layout changes

    def _layout_calls(self, step: Step) -> Step | None:
        literal = True
        value = step.output
        for _ in range(_LAYOUT_CALLS):
            producer = self.producer.get(value)
            if (
                producer is None
                or not producer.inputs
                or operation(producer.function) not in self.layouts
            ):
                return None
            literal = literal and operation(producer.function) in (
                "view",
                "reshape",
                "unflatten",
                "squeeze",
            )
            literal = literal and len(producer.inputs) == 1
            value = producer.inputs[0]
            if self.shape(value) is None:
                continue
            source = value
            parts = self.between(step.output, [source])
            if parts is None or not self._only_layout(parts):
                continue

            def attempt(
                probe: Tensor, source: str = source, parts: tuple[Step, ...] = parts
            ) -> Tensor:
                values: dict[str, Any] = {source: probe, **self.numbers}
                for part in parts:
                    evaluate(part, self.model.get_submodule, values)
                result = values[step.output]
                assert isinstance(result, Tensor)
                return result

            found = self._layout(step, source, attempt, literal)
            if found is not None:
                return found
        return None

    def _only_layout(self, parts: tuple[Step, ...]) -> bool:
        arithmetic = ("add", "sub", "mul", "floordiv", "int", "neg")
        return all(
            p.function
            and operation(p.function) in self.layouts
            and not (operation(p.function) in arithmetic and self.shape(p.output) is not None)
            for p in parts
        )

    def _layout(
        self, step: Step, x: str, attempt: Callable[[Tensor], Tensor], literal: bool
    ) -> Step | None:
        """literal: the sizes are written out, so other image sizes need not work."""
        shape = self.shapes[x]
        result = map_of(numbered((2, *shape[1:])), attempt)
        if result is None:
            return None
        two, one = (shape_of(numbered((n, *shape[1:])), attempt) for n in (2, 1))
        if two is None or one != (1, *two[1:]):
            return None  # `squeeze` takes a lone sample's dimension away.
        kind, params = result
        free = {"to_image": (1, 2), "identity": tuple(range(1, len(shape)))}.get(
            kind, tuple(range(2, len(shape)))
        )
        other = [3, *shape[1:]]
        for axis in () if literal else free:
            other[axis] += axis
        if map_of(numbered(tuple(other)), attempt) != result:
            return None
        if kind == "slice":
            cuts = slice_params(step, len(shape))
            if cuts is None or not slices_as(attempt, cuts, numbered(tuple(other))):
                return None
            params = cuts
        if kind == "to_rows" and len(shape) != 4:
            return None
        return self._as(step, kind, [x], **params)


def _dims_of(given: Mapping[str, Any], ndim: int) -> list[int]:
    dim = given.get("dim")
    if dim is None:
        return list(range(ndim))
    return sorted(d % ndim for d in ([dim] if isinstance(dim, int) else dim))


def _both_sides(pair: list[int]) -> list[int]:
    """Height and width padding as top, left, bottom, right."""
    return [*pair, *pair]


def _conv_params(module: nn.Conv1d | nn.Conv2d) -> _Params:
    dims = len(module.kernel_size)
    kernel, dilation = _pair(module.kernel_size, dims), _pair(module.dilation, dims)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pad = [t // 2 for t in total] + [t - t // 2 for t in total]
    elif module.padding == "valid":
        pad = [0, 0, 0, 0]
    else:
        pad = _both_sides(_zero_pair(module.padding, dims))
    return {
        "dims": dims,
        "channels": module.out_channels,
        "kernel": kernel,
        "stride": _pair(module.stride, dims),
        "pad": pad,
        "dilation": dilation,
        "mode": module.padding_mode,
    }


def _padding_of(module: nn.Module) -> tuple[Any, str, float] | None:
    if isinstance(module, (nn.ZeroPad1d, nn.ZeroPad2d)):
        return module.padding, "constant", 0.0
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d)):
        return module.padding, "constant", float(module.value)
    if isinstance(module, (nn.ReflectionPad1d, nn.ReflectionPad2d)):
        return module.padding, "reflect", 0.0
    if isinstance(module, (nn.ReplicationPad1d, nn.ReplicationPad2d)):
        return module.padding, "replicate", 0.0
    if isinstance(module, (nn.CircularPad1d, nn.CircularPad2d)):
        return module.padding, "circular", 0.0
    return None


def _module_clamp(module: nn.Module) -> _Params:
    if isinstance(module, nn.Hardtanh):  # ReLU6 too
        return {"lo": float(module.min_val), "hi": float(module.max_val)}
    return {"lo": 0.0, "hi": _INF} if isinstance(module, nn.ReLU) else {}


def _function_clamp(name: str, step: Step) -> _Params:
    if name not in CLAMPS:
        return {}
    given = Recogniser.given(step, "hardtanh" if name == "hardtanh" else "clamp")
    lo, hi = {
        "relu": (0.0, _INF),
        "relu6": (0.0, 6.0),
        "hardtanh": (given.get("min_val", -1.0), given.get("max_val", 1.0)),
        "clamp_min": (given.get("min"), None),
        "clamp_max": (None, given.get("max", given.get("min"))),
    }.get(name, (given.get("min"), given.get("max")))
    limits = {"lo": -_INF if lo is None else float(lo), "hi": _INF if hi is None else float(hi)}
    return limits
