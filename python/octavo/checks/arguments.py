"""What a user can get wrong in the arguments of `quantize`, refused before any work is done."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from octavo.errors import NothingQuantizedError, describe
from octavo.graph.flow_check import FlowCheck
from octavo.nn.fake_quantize import METHODS as TRAINING_METHODS
from octavo.numerics.grids import GRIDS
from octavo.numerics.ranges import RULES
from octavo.numerics.scheme import Activations
from octavo.planning.plan import Plan
from octavo.rounding import METHODS

__all__ = [
    "check_choices",
    "check_patterns",
    "check_plan",
    "check_search",
    "check_widths",
]


def _check_bits(bits: object, where: str = "bits") -> int:
    """``bits`` as an int in 2..8; NumPy integers are accepted, bools are not."""
    if isinstance(bits, bool) or bits is None or isinstance(bits, (str, bytes)):
        raise TypeError(
            f"quantize: {where} must be an integer from 2 to 8, got {describe(bits)}. {_BITS_HELP}"
        )
    if isinstance(bits, float):
        if math.isnan(bits):
            raise TypeError(
                f"quantize: {where} must be a number from 2 to 8, got nan. {_BITS_HELP}"
            )
        if not 2.0 <= bits <= 8.0:
            raise ValueError(f"quantize: {where} must lie in 2..8, got {bits}. {_BITS_HELP}")
        raise ValueError(
            f"quantize: {where} must be an integer from 2 to 8, got the average {bits}. An average "
            "stands for all layers: bits=4.5."
        )
    try:
        value = operator.index(bits)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"quantize: {where} must be an integer from 2 to 8, got {describe(bits)}. {_BITS_HELP}"
        ) from None
    if not 2 <= value <= 8:
        hint = "Use the float model itself for 16 bits and more." if value > 8 else _BITS_HELP
        raise ValueError(f"quantize: {where} must lie in 2..8, got {value}. {hint}")
    return value


_BITS_HELP = "For example octavo.quantize(model, 8)."


def check_widths(
    bits: object, activations: object, has_data: bool
) -> tuple[Mapping[Any, int] | Plan | float, Activations, int | Mapping[Any, int]]:
    """Pattern to weight bits (a Plan, an average), what activations are, bits of static ones.

    The latter by pattern too where a pattern has a pair (weights, activations).
    """
    asked: Mapping[Any, int] | Plan | float
    if isinstance(bits, Path):
        bits = Plan.from_json(bits.read_text(encoding="utf-8"))
    if isinstance(bits, tuple):
        if len(bits) != 2:
            raise ValueError(
                f"quantize: bits must be a pair (weights, activations), got {describe(bits)}. Use "
                "for example (4, 8)."
            )
        if activations is not None:
            raise ValueError(
                "quantize: activations must be left out where bits is a pair, got "
                f"{describe(activations)}. "
                "Say it once."
            )
        bits, activations = bits
    if isinstance(bits, Plan):
        asked = bits
        static = [site for site in bits.sites if site.activations == "static"]
        if static and not has_data:
            raise ValueError(
                "quantize: data must be batches for a plan with static activations "
                f"({static[0].name!r}), got None. "
                "Pass data=batches."
            )
    elif isinstance(bits, Mapping):
        pairs = {key: width for key, width in bits.items() if isinstance(width, tuple)}
        for key, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(
                    f"quantize: bits[{key!r}] must be an integer or a pair (weights, activations), "
                    f"got {describe(pair)}. Use for example (4, 8)."
                )
        alone = {key: pairs[key][0] if key in pairs else width for key, width in bits.items()}
        asked = {key: _check_bits(width, f"bits[{key!r}]") for key, width in alone.items()}
        if pairs:
            how, default = _check_activations(activations, has_data)
            if how != "static":
                raise ValueError(
                    f"quantize: data must be batches where bits has a pair ({describe(pairs)}), "
                    "got none or other activations. Pass data=batches."
                )
            return (
                asked,
                how,
                {
                    key: _check_bits(pairs[key][1], f"bits[{key!r}]") if key in pairs else default
                    for key in bits
                },
            )
    elif isinstance(bits, float) and 2.0 <= bits <= 8.0:
        asked = float(bits)
    else:
        asked = {"*": _check_bits(bits)}
    return asked, *_check_activations(activations, has_data)


def _check_activations(activations: object, has_data: bool) -> tuple[Activations, int]:
    valid = '"float", "dynamic", or 2 to 8 with data'
    if activations is None:
        return ("static", 8) if has_data else ("dynamic", 8)
    if isinstance(activations, str):
        if activations == "dynamic":
            return "dynamic", 8
        if activations == "float":
            return "float", 8
        raise ValueError(
            f"quantize: activations must be {valid}, got {activations!r}. Choose one of those."
        )
    value = _check_bits(activations, "activations")
    if not has_data:
        raise ValueError(
            f"quantize: activations must be 'dynamic' or 'float' without data, got {value}. "
            "Pass data=batches for static activations."
        )
    return "static", value


def check_patterns(argument: str, value: object) -> tuple[object, ...] | None:
    """The patterns as a tuple; a single name or class stands for itself."""
    if value is None:
        return None
    if isinstance(value, (str, type)):
        return (value,)
    if not isinstance(value, Iterable):
        raise TypeError(
            f"quantize: {argument} must be a sequence of names, globs or classes, "
            f'got {describe(value)}. Use for example ["head", "layer1.*"].'
        )
    return tuple(value)


def check_plan(plan: Plan, model: nn.Module) -> None:
    """ValueError unless the layers of the plan are those of the (folded) model."""
    modules = dict(model.named_modules())
    for site in plan.sites:
        module = modules.get(site.name)
        if module is None or type(module).__name__ != site.type:
            found = "no such module" if module is None else f"a {type(module).__name__}"
            raise ValueError(
                f"quantize: the plan's layer {site.name!r} must be a {site.type} of the model, "
                f"got {found}. Use a plan that was made for this model."
            )
    for flow in plan.flows:
        if flow.flow.path not in modules:
            raise ValueError(
                f"quantize: the plan's module {flow.flow.path!r} must be in the model, "
                "got no such module. Use a plan that was made for this model."
            )
    allowed = FlowCheck(model)
    for flow in plan.flows:
        try:
            allowed.check(flow.flow, flow.steps)
        except ValueError as error:
            raise ValueError(
                f"quantize: the plan's module {flow.flow.path!r}: {error} Use a plan that was made "
                "for this model."
            ) from None
    if not any(site.scheme for site in plan.sites):
        raise NothingQuantizedError(
            "quantize: at least one layer of the plan must have a scheme, got none. "
            "Give one layer bits."
        )


def check_choices(
    *,
    grid: object,
    group_size: object,
    symmetric: object,
    rounding: object,
    ranges: object,
    effort: object,
    evaluate: object,
    max_drop: object,
    qat: object,
    qat_method: object,
    has_data: bool = True,
) -> None:
    """Refuses values that do not exist, and says of later work that it is not available yet."""
    _one_of("grid", grid, tuple(GRIDS))
    if rounding is not None:
        _one_of("rounding", rounding, tuple(METHODS))
        if METHODS[str(rounding)].needs_data and not has_data:
            free = ", ".join(repr(m.name) for m in METHODS.values() if not m.needs_data)
            raise ValueError(
                f"quantize: data must be batches for rounding={rounding!r}, got None. Pass "
                f"data=batches, or choose one of {free}."
            )
    if ranges is not None:
        _one_of("ranges", ranges, tuple(RULES))
    _one_of("effort", effort, ("fast", "balanced", "best"))
    if group_size == "tensor":
        if qat:
            raise ValueError(
                "quantize: group_size must be an integer or None with qat=True, got 'tensor'. "
                "Scales of output channels are trained."
            )
    elif group_size is not None:
        size = _index("group_size", group_size)
        if not 16 <= size <= 256 or size % 16:
            raise ValueError(
                f"quantize: group_size must be a multiple of 16 from 16 to 256, got {size}. Use "
                "for example 64."
            )
    if not isinstance(symmetric, bool):
        got = describe(symmetric)
        raise TypeError(f"quantize: symmetric must be True or False, got {got}. Say which.")
    if not symmetric and grid != "linear":
        raise ValueError(
            f"quantize: symmetric must be True with grid={grid!r}, got False. Zero points shift "
            "the codes of the linear grid."
        )
    _check_drop(evaluate, max_drop)
    if not isinstance(qat, bool):
        raise TypeError(f"quantize: qat must be True or False, got {describe(qat)}. Say which.")
    if qat_method is not None:
        if not qat:
            raise ValueError(
                f"quantize: qat_method must be None without qat=True, got {describe(qat_method)}. "
                "It says how ranges are trained."
            )
        _one_of("qat_method", qat_method, TRAINING_METHODS)
    if qat and rounding is not None:
        raise ValueError(
            f"quantize: rounding must be None with qat=True, got {describe(rounding)}. Training "
            "itself decides how weights round."
        )


def _check_drop(evaluate: object, max_drop: object) -> None:
    """``evaluate`` and ``max_drop`` go together: a callable and a number that is not negative."""
    if (evaluate is None) != (max_drop is None):
        missing = "evaluate" if evaluate is None else "max_drop"
        wanted = "a callable from model to score" if evaluate is None else "a number"
        raise ValueError(
            f"quantize: {missing} must be {wanted} beside the other, got None. Pass both, for "
            "example evaluate=accuracy, max_drop=0.5."
        )
    if evaluate is None:
        return
    if not callable(evaluate):
        raise TypeError(
            f"quantize: evaluate must be a callable from model to score, got {describe(evaluate)}. "
            "Pass a function."
        )
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)):
        raise TypeError(
            f"quantize: max_drop must be a number, got {describe(max_drop)}. Use for example 0.5."
        )
    if not 0 <= max_drop < math.inf:
        raise ValueError(
            f"quantize: max_drop must be at least 0 and finite, got {max_drop}. "
            "Use for example 0.5."
        )


def check_search(bits: object, qat: bool) -> int:
    """The largest width of a search, which makes no trainee."""
    if qat:
        raise ValueError(
            "quantize: max_drop must be None with qat=True, got a number. Search first, and train "
            "the widths found."
        )
    if isinstance(bits, (float, tuple, Mapping, Plan, Path)):
        raise ValueError(
            "quantize: with max_drop bits must be an integer, the largest width, got "
            f"{describe(bits)}. Use for example 8."
        )
    return _check_bits(bits)


def _one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(
            f"quantize: {name} must be one of {', '.join(map(repr, valid))}, "
            f"got {describe(value)}. Pass a string."
        )
    if value not in valid:
        near = difflib.get_close_matches(value, valid, 1)
        hint = f"Did you mean {near[0]!r}?" if near else "Choose one of those available."
        raise ValueError(
            f"quantize: {name} must be one of {', '.join(map(repr, valid))}, got {value!r}. {hint}"
        )


def _index(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"quantize: {name} must be an integer, got {value}. Use for example 64.")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"quantize: {name} must be an integer, got {describe(value)}. Use for example 64."
        ) from None
