"""Reading and writing region programs, and cutting single steps out of them."""

from __future__ import annotations

import pytest

from octavo.ops.region_program import line_of, parse
from octavo.ops.region_steps import STEPS

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


def test_a_program_is_written_as_it_was_read() -> None:
    assert parse(TEXT).text() == TEXT


def test_layout_and_parameters_of_a_value_far_behind_the_input() -> None:
    head, many = TEXT.partition("1 = conv")[0], 2000
    steps = [
        f"{i} = upsample_nearest x={i - 1} size=0,0 scale=0x1p+0,0x1p+0\n" for i in range(1, many)
    ]
    program = parse(f"{head}{''.join(steps)}out {many - 1}\n")
    assert program.layout(many - 1) == "image"
    assert program.parameters(many - 1) == ("0x1p-5", "128", "255")
    assert program.shapes([(1, 2, 3, 4)], [])[-1] == (1, 2, 3, 4)


def test_a_line_has_the_keys_of_its_kind_in_their_order() -> None:
    values = {"scale": [2.0, 1.5], "size": (0, 0), "x": 3, "groups": 7}
    line = line_of(STEPS["upsample_nearest"], values)
    assert line.text(4) == (
        "4 = upsample_nearest x=3 size=0,0 scale=0x1.0000000000000p+1,0x1.8000000000000p+0\n"
    )


def test_factors_are_written_as_doubles() -> None:
    """torch multiplies sizes by doubles: ten pixels by 0.7 are seven, by float32(0.7) they are six."""
    values = {"x": 0, "size": [0, 0], "scale": [0.7, 1.3]}
    line = line_of(STEPS["upsample_nearest"], values)
    assert [float.fromhex(f) for f in line.keys["scale"].split(",")] == [0.7, 1.3]


def test_a_line_without_one_of_its_keys_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^pad: expected values of 'x pad mode value', got \['pad', 'x'\]"
    ):
        line_of(STEPS["pad"], {"x": 0, "pad": [1, 1, 1, 1]})


def test_a_step_alone() -> None:
    program, panels = parse(TEXT).cut(3, [2])
    assert program.text() == (
        "octavo.region 1\n"
        "0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n"
        "1 = conv x=0 panel=0 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 "
        "s=0x1p-7 z=3 max=255 lo=3 hi=255 r=0\n"
        "out 1\n"
    )
    assert panels == (2,)


def test_a_step_of_two_lines() -> None:
    program, panels = parse(TEXT).cut(4, [2])
    assert [line.kind.name for line in program.lines] == ["quantize", "conv", "table"]
    assert panels == (2, 1)


def test_the_plain_result_of_a_layer() -> None:
    program, _ = parse(TEXT).cut(4, [2], as_float=True)
    assert program.text().splitlines()[2] == (
        "1 = conv_f32 x=0 panel=0 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 lo=-inf hi=inf"
    )
    program, _ = parse(TEXT).cut(6, [5], as_float=True)
    assert program.text().splitlines()[1:3] == [
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
        (lambda t: t.replace("flatten", "flat"), "expected a kind of step, got 'flat'"),
        (lambda t: t.replace(" ceil=0", ""), "expected keys 'x kernel stride pad dilation ceil'"),
        (lambda t: t.replace("x=3 panel=1", "panel=1 x=3"), "expected keys 'x panel s z max'"),
        (lambda t: t.replace("out 6\nout 3\n", ""), "results among its steps"),
        (lambda t: t.replace("out 6", "out 7"), "results among its steps"),
    ],
    ids=[
        "version",
        "cut",
        "ids",
        "order",
        "key",
        "kind",
        "missing key",
        "order of keys",
        "no result",
        "unknown result",
    ],
)
def test_other_texts_are_refused(change: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(change(TEXT))  # type: ignore[operator]
