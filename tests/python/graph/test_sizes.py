"""Sizes as expressions: from sympy, their numbers, and what data out of a file may be."""

from __future__ import annotations

from typing import Any

import pytest
import sympy

from octavo.graph.sizes import (
    NotWhole,
    condition_of,
    expression_of,
    holds,
    is_condition,
    is_expression,
    value_of,
)

S, T = sympy.Symbol("s0", integer=True, positive=True), sympy.Symbol("s1", integer=True)


@pytest.mark.parametrize(
    ("found", "number"),
    [
        (7, 7),
        (S, 5),
        (2 * S + 1, 11),
        (S * T, 15),
        (S**2, 25),
        (sympy.Max(S, T), 5),
        (sympy.Mod(S, T), 2),
    ],
)
def test_expressions_of_sympy_keep_their_numbers(found: Any, number: int) -> None:
    assert value_of(expression_of(found), {"$s0": 5, "$s1": 3}.__getitem__) == number


def test_a_size_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(NotWhole):
        expression_of(sympy.sqrt(S))
    with pytest.raises(NotWhole):
        condition_of(sympy.Or(S > 1, T > 1))


def test_conditions() -> None:
    condition = condition_of(sympy.Ge(S, T))
    assert holds(condition, {"$s0": 5, "$s1": 3}) and not holds(condition, {"$s0": 2, "$s1": 3})
    assert not holds(("==", ("//", "$s0", "$s1"), 1), {"$s0": 2, "$s1": 0})


@pytest.mark.parametrize(
    "data",
    [
        True,
        1.5,
        2**70,
        "$s9",
        "x",
        ("exec", 1, 2),
        ("+",),
        ("//", 1, 2, 3),
        ("+", "$s0", None),
        ["+", 1, 2],
    ],
)
def test_other_data_is_no_expression(data: Any) -> None:
    assert not is_expression(data, frozenset({"$s0"}))
    assert not is_condition(("==", data, 1), frozenset({"$s0"}))


def test_data_nested_too_deep_is_no_expression() -> None:
    data: Any = "$s0"
    for _ in range(40):
        data = ("+", data, 1)
    assert not is_expression(data, frozenset({"$s0"}))
