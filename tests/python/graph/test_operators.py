"""Only listed ATen operators that write into nothing can be named by a step."""

from __future__ import annotations

import pytest
import torch

from octavo.graph.operators import functional_form, is_operator, operator_of, takes


@pytest.mark.parametrize(
    "name", ["aten.add.Tensor", "aten.relu.default", "aten.cat.default", "aten.__and__.Tensor"]
)
def test_listed_operators_are_found(name: str) -> None:
    assert str(operator_of(name)) == name


@pytest.mark.parametrize(
    "name",
    ["aten.add_.Tensor", "aten.relu.out", "aten.as_strided.default", "aten.set_.source_Tensor", "aten.rand.default",
     "aten.from_file.default", "aten.add", "add.Tensor", "aten.add.nothing", "torch.add.Tensor", "aten.a.b.c", "", None],
)  # fmt: skip
def test_no_other_is(name: object) -> None:
    assert not is_operator(name)


def test_arguments_that_an_operator_takes() -> None:
    assert takes("aten.add.Tensor", 2, ("alpha",))
    assert not takes("aten.add.Tensor", 3, ())
    assert not takes("aten.add.Tensor", 2, ("out",)) and not takes("aten.add.Tensor", 2, ("self",))


def test_what_an_in_place_operator_computes() -> None:
    assert functional_form(torch.ops.aten.add_.Tensor) == torch.ops.aten.add.Tensor
    assert functional_form(torch.ops.aten.add.Tensor) is None
