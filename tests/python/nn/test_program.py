"""Cutting single steps out of region programs."""

from __future__ import annotations

import pytest

from octavo.nn.program import parse

TEXT = """octavo.region 1
0 = quantize in=0 layout=image s=0x1p-5 z=128 max=255
1 = conv x=0 panel=0 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 s=0x1p-6 z=0 max=255 lo=0 hi=255
2 = max_pool x=1 kernel=2,2 stride=2,2 pad=0,0,0,0 dilation=1,1 ceil=0
3 = conv x=2 panel=2 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 s=0x1p-7 z=3 max=255 lo=3 hi=255 r=2
4 = table x=3 panel=1 s=0x1p-8 z=0 max=255
5 = flatten x=4
6 = linear_f32 x=5 panel=3 channels=10 lo=0x0p+0 hi=inf
out 6
out 3
"""


def test_what_a_value_is() -> None:
    program = parse(TEXT)
    assert program.outputs == (6, 3)
    assert [program.layout(i) for i in range(7)] == ["image"] * 5 + ["rows"] * 2
    assert program.parameters(2) == ("0x1p-6", "0", "255")
    assert program.parameters(5) == ("0x1p-8", "0", "255")
    assert program.lines[3].reads() == (2, 2)


def test_a_step_alone() -> None:
    text, panels = parse(TEXT).cut(3, [2])
    assert text == (
        "octavo.region 1\n"
        "0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n"
        "1 = conv x=0 panel=0 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 "
        "s=0x1p-7 z=3 max=255 lo=3 hi=255 r=0\n"
        "out 1\n"
    )
    assert panels == (2,)


def test_a_step_of_two_lines() -> None:
    text, panels = parse(TEXT).cut(4, [2])
    assert [line.split()[2] for line in text.splitlines()[1:-1]] == ["quantize", "conv", "table"]
    assert panels == (2, 1)


def test_the_plain_result_of_a_layer() -> None:
    text, _ = parse(TEXT).cut(4, [2], as_float=True)
    assert text.splitlines()[2] == (
        "1 = conv_f32 x=0 panel=0 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 lo=-inf hi=inf"
    )
    text, _ = parse(TEXT).cut(6, [5], as_float=True)
    assert text.splitlines()[1:3] == [
        "0 = quantize in=0 layout=rows s=0x1p-8 z=0 max=255",
        "1 = linear_f32 x=0 panel=0 channels=10 lo=-inf hi=inf",
    ]


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda t: t.replace("region 1", "region 2"), "expected 'octavo.region 1'"),
        (lambda t: t[:-1], "expected 'octavo.region 1'"),
        (lambda t: t.replace("2 = ", "9 = "), "expected '2 = ...'"),
        (lambda t: t.replace("x=4", "x=5"), "defined before"),
        (lambda t: t.replace("ceil=0", "ceil"), "key=value once each"),
        (lambda t: t.replace("out 6\nout 3\n", ""), "results among its steps"),
        (lambda t: t.replace("out 6", "out 7"), "results among its steps"),
    ],
    ids=["version", "cut", "ids", "order", "key", "no result", "unknown result"],
)
def test_other_texts_are_refused(change: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(change(TEXT))  # type: ignore[operator]
