"""Whole numbers that depend on the sizes of a call's tensors: expressions as plain data.

An expression is an integer, the name of a symbol, or a tuple of an operation and its operands:
("+", "$s0", 1). A symbol stands for the size of one dimension of one argument (`Flow.sizes`). A
condition is a tuple of a relation and two expressions: ("==", "$s0", "$s1").
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Expression",
    "NotWhole",
    "Size",
    "condition_of",
    "expression_of",
    "holds",
    "is_condition",
    "is_expression",
    "is_symbol",
    "symbols_of",
    "value_of",
]

Expression = int | str | tuple[Any, ...]


class NotWhole(Exception):
    """What torch says of a size is no expression of these operations."""


@dataclass(frozen=True)
class Size:
    """Stands for a whole number inside the arguments of a step."""

    expression: Expression


def _product(values: list[int]) -> int:
    return math.prod(values)


_OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "+": sum,
    "*": _product,
    "//": lambda values: values[0] // values[1],
    "%": lambda values: values[0] % values[1],
    "min": min,
    "max": max,
}
_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# What torch and sympy call them.
_HEADS = {
    "Add": "+",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Mod": "%",
    "PythonMod": "%",
    "Max": "max",
    "Min": "min",
    "Equality": "==",
    "Unequality": "!=",
    "StrictLessThan": "<",
    "LessThan": "<=",
    "StrictGreaterThan": ">",
    "GreaterThan": ">=",
}
_MOST_OPERANDS = 64


def expression_of(found: Any) -> Expression:
    """An expression of sympy's as data; NotWhole for one of other operations."""
    if isinstance(found, int):
        return found
    if getattr(found, "is_Symbol", False):
        return f"${found}"  # No name of a value or parameter begins so.
    if getattr(found, "is_Integer", False):
        return int(found)
    if getattr(found, "is_Pow", False):
        base, exponent = found.args
        if getattr(exponent, "is_Integer", False) and 1 <= int(exponent) <= 8:
            return ("*", *[expression_of(base)] * int(exponent))
    head = _HEADS.get(type(found).__name__, "")
    if head not in _OPERATIONS or not found.args:
        raise NotWhole(str(found))
    return (head, *(expression_of(part) for part in found.args))


def condition_of(found: Any) -> tuple[Any, ...]:
    """A relation of sympy's as data; NotWhole for anything else."""
    head = _HEADS.get(type(found).__name__, "")
    if head not in _RELATIONS:
        raise NotWhole(str(found))
    left, right = found.args
    return (head, expression_of(left), expression_of(right))


def value_of(expression: Expression, number_of: Callable[[str], int]) -> int:
    """The number; ``number_of`` gives that of a symbol."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return number_of(expression)
    return _OPERATIONS[expression[0]]([value_of(part, number_of) for part in expression[1:]])


def is_symbol(name: str) -> bool:
    """Whether a name is that of a symbol; no value is called so."""
    return name.startswith("$")


def holds(condition: tuple[Any, ...], numbers: Mapping[str, int]) -> bool:
    """Whether the relation is true of these numbers; a division by 0 is never."""
    relation, left, right = condition
    try:
        one, other = (value_of(part, numbers.__getitem__) for part in (left, right))
    except ZeroDivisionError:
        return False
    return _RELATIONS[relation](one, other)


def symbols_of(expression: Any) -> Iterator[str]:
    """Names of the symbols of an expression or a condition, with repetitions."""
    if isinstance(expression, str):
        yield expression
    elif isinstance(expression, tuple):
        for part in expression[1:]:
            yield from symbols_of(part)


def is_expression(data: Any, symbols: frozenset[str], depth: int = 32) -> bool:
    """Whether data out of a file is an expression of these symbols."""
    if isinstance(data, bool):
        return False
    if isinstance(data, int):
        return abs(data) < 2**63
    if isinstance(data, str):
        return data in symbols
    if not isinstance(data, tuple) or depth == 0 or not 2 <= len(data) <= _MOST_OPERANDS:
        return False
    if data[0] not in _OPERATIONS or (data[0] in ("//", "%") and len(data) != 3):
        return False
    return all(is_expression(part, symbols, depth - 1) for part in data[1:])


def is_condition(data: Any, symbols: frozenset[str]) -> bool:
    """Whether data out of a file is a condition on these symbols."""
    return (
        isinstance(data, tuple)
        and len(data) == 3
        and data[0] in _RELATIONS
        and all(is_expression(part, symbols) for part in data[1:])
    )
