"""Public calls: a misspelt argument is answered with the nearest name, and tools see the true signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import octavo
from octavo.advice.advise import Advice
from octavo.signature import RENAMED, known_arguments
from octavo.types import QuantizeOptions, SharedOptions

RESULTS = {"Advice", "ParetoFront", "Plan", "Report", "Sensitivity", "Verification"}
"""Classes that calls return and users do not make."""

CALLS = [
    name
    for name in octavo.__all__
    if callable(getattr(octavo, name))
    and name not in RESULTS | {"pareto_front"}  # It passes options on: a test of its own.
    and not name.endswith("Error")
    and inspect.signature(getattr(octavo, name)).parameters
]


def test_all_calls_are_covered() -> None:
    assert {"quantize", "freeze", "load", "save", "report", "DistillationLoss"} <= set(CALLS)
    assert len(CALLS) == 14


@pytest.mark.parametrize("name", CALLS)
def test_unknown_argument_is_answered_by_name(name: str) -> None:
    call = getattr(octavo, name)
    with pytest.raises(
        TypeError, match=rf"^{name}: expected a known argument, got 'zzzzz'. See help"
    ):
        call(zzzzz=1)
    argument = next(iter(inspect.signature(call).parameters))
    with pytest.raises(TypeError, match=f"got '{argument}_'. Did you mean '{argument}'"):
        call(**{f"{argument}_": 1})


@pytest.mark.parametrize("name", CALLS)
def test_tools_see_the_signature_and_the_text(name: str) -> None:
    call = getattr(octavo, name)
    function = call.__init__ if inspect.isclass(call) else call
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert call.__doc__ and call.__module__.startswith("octavo.") and call.__name__ == name


@pytest.mark.parametrize(
    ("given", "meant"),
    [("bit", "bits"), ("only", "include"), ("method", "qat_method"), ("excludes", "exclude")],
)
def test_quantize_names_the_argument_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"got '{given}'. Did you mean '{meant}'"):
        octavo.quantize(nn.Linear(64, 8), **{given: 8})


def test_renamed_arguments_have_their_new_name_somewhere() -> None:
    names = set(inspect.signature(octavo.quantize).parameters)
    assert set(RENAMED.values()) <= names and not set(RENAMED) & names


def test_a_renamed_argument_is_named_only_where_the_new_one_exists() -> None:
    @known_arguments
    def call(model: object, methods: int = 0) -> None: ...

    with pytest.raises(TypeError, match="got 'only'. See help"):
        call(None, only=1)
    with pytest.raises(TypeError, match="got 'method'. Did you mean 'methods'"):
        call(None, method=1)


def passed_on(call: Callable[..., Any], *args: object, **options: object) -> None:
    call(*args, **options)


def test_options_that_are_passed_on_are_checked_at_once() -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    with pytest.raises(TypeError, match=r"^pareto_front: .* 'effor'. Did you mean 'effort'"):
        passed_on(octavo.pareto_front, model, evaluate=lambda _: 0.0, effor="best")
    with pytest.raises(TypeError, match=r"^pareto_front: .* 'inplace'"):
        passed_on(octavo.pareto_front, model, evaluate=lambda _: 0.0, inplace=True)
    advice = octavo.advise(model)
    with pytest.raises(TypeError, match=r"^Advice.apply: .* 'only'. Did you mean 'include'"):
        passed_on(Advice.apply, advice, model, only=["0"])


def test_options_are_the_arguments_of_quantize() -> None:
    parameters = inspect.signature(octavo.quantize).parameters
    options = QuantizeOptions.__annotations__
    assert set(options) == set(parameters) - {"model", "data"}
    own = set(inspect.signature(octavo.pareto_front).parameters)
    assert not own & set(SharedOptions.__annotations__)
    for name, written in options.items():
        assert written.__forward_arg__ == parameters[name].annotation, name
