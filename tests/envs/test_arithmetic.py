"""The calculator's parser against Python's own arithmetic on fractions."""

from __future__ import annotations

import ast
import operator
import time
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo_gsm8k.envs.arithmetic import MAX_CHARS, CalculationError, calculate

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NUMBERS = st.one_of(
    st.integers(0, 10**6).map(str),
    st.decimals(0, 1000, places=2).map(str),
)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " + ", " - ", " * ", " / "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=8,
)


def by_python(expression: str) -> Fraction:
    """Python's own parser, its tree worked out over fractions."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(str(node.value))

    return value(ast.parse(expression, mode="eval").body)


@given(EXPRESSIONS)
def test_results_agree_with_python_over_fractions(expression: str) -> None:
    assume(len(expression) <= MAX_CHARS and not any(part[:1] == "0" and part.strip("0.") for part in expression.split()))
    try:
        expected = by_python(expression)
    except ZeroDivisionError:
        with pytest.raises(CalculationError, match="division by zero"):
            calculate(expression)
        return
    except SyntaxError:  # Python takes no number with leading zeros
        return
    assume(max(abs(expected.numerator), expected.denominator) < 10**30)
    assert Fraction(calculate(expression)) == expected


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 + 5", "17"),
        ("17-8", "9"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("8 - 3 - 2", "3"),
        ("24 / 4 / 2", "3"),
        ("--3", "3"),
        ("-(2 - 5)", "3"),
        ("1,200 * 3", "3600"),
        ("5 / 2", "2.5"),
        ("1 / 3", "1/3"),
        ("-7/4", "-1.75"),
        ("1/1024", "0.0009765625"),
        ("1/2048", "1/2048"),
        (".5 * 4", "2"),
        ("7", "7"),
    ],
)
def test_results_are_written_exactly(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "apples",
        "12 +",
        "* 3",
        "(1 + 2",
        "1 + 2)",
        "1 2",
        "2 ** 3",
        "__import__('os')",
        "1e9",
        "3x",
        "1.2.3",
        "(",
        "()",
    ],
)
def test_what_is_no_calculation_is_refused(text: str) -> None:
    with pytest.raises(CalculationError, match="not a calculation"):
        calculate(text)


def test_limits_are_said() -> None:
    with pytest.raises(CalculationError, match="more than 100 characters"):
        calculate("1+" * 60 + "1")
    with pytest.raises(CalculationError, match="more than 30 digits"):
        calculate("*".join(["999999999"] * 9))
    with pytest.raises(CalculationError, match="division by zero"):
        calculate("1 / (2 - 2)")


@given(st.text(alphabet="0123456789.,+-*/() ", max_size=MAX_CHARS))
def test_any_text_gives_a_result_or_one_error_at_once(text: str) -> None:
    began = time.perf_counter()
    try:
        Fraction(calculate(text))
    except CalculationError as error:
        assert "\n" not in str(error)
    assert time.perf_counter() - began < 0.5
