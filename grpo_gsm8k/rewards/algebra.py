"""Equality of two LaTeX expressions by their values: what math-verify's symbolic comparison misses (`\\cos 60^\\circ` = 1/2).

Both sides are parsed whole (a side with words in it, or that is a relation or a set, is no expression) and evaluated to
`DIGITS` digits, at `POINTS` where they have variables; a point where either side has no finite value is passed over. Degrees
count as such where there is a trigonometric function; `i` is the imaginary unit, `e` Euler's number. Decimals are exact: 0.333
is not 1/3. Values far apart settle it at once, so that a wrong answer costs no simplification.
"""

from __future__ import annotations

import re
from typing import Any

DIGITS = 60
AGREED_DIGITS = 40
POINTS = ((17, 13), (-29, 11), (5, 23), (-7, 31), (41, 19))
MIN_POINTS = 2
MAX_CHARS = 500

_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_WORDS = re.compile(r"\\(?:text|mbox|operatorname)|(?<![\\A-Za-z])[A-Za-z]{3,}")


def same_value(answer: str, gold: str) -> bool:
    """Returns whether two LaTeX expressions have the same value wherever both have one, by this module's docstring.

    May hang or raise whatever sympy raises on the evaluation, which is why it runs in a worker.
    """
    left, right = _expression(answer), _expression(gold)
    if left is None or right is None:
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    num_agreed = 0
    for i in range(len(POINTS) if symbols else 1):
        at = {symbol: _rational(*POINTS[(i + j) % len(POINTS)]) + j for j, symbol in enumerate(symbols)}
        values = _value(left, at), _value(right, at)
        if values[0] is None or values[1] is None:
            continue
        if abs(values[0] - values[1]) > abs(values[0] + values[1] + 1) * _rational(1, 10**AGREED_DIGITS):
            return False
        num_agreed += 1
    return num_agreed >= (MIN_POINTS if symbols else 1)


def _rational(above: int, below: int) -> Any:
    from sympy import Rational

    return Rational(above, below)


def _expression(text: str) -> Any | None:
    """Returns the sympy expression of a whole text, or None where it is none."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from sympy.core.function import AppliedUndef

    text = _DEGREE.sub("^{\\\\circ}" if _TRIGONOMETRIC.search(text) else "", text)
    if not text or len(text) > MAX_CHARS or _WORDS.search(text):
        return None
    try:
        parsed = latex2sympy(
            text,
            is_real=False,
            convert_degrees=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # the parser raises plain Exceptions: this text is no expression
        return None
    if not isinstance(parsed, sympy.Expr) or parsed.has(
        sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, AppliedUndef, sympy.MatrixSymbol
    ):
        return None
    exact = {number: sympy.Rational(str(number)) for number in parsed.atoms(sympy.Float)}
    units = {symbol: sympy.I for symbol in parsed.free_symbols if str(symbol) == "i"}
    return parsed.xreplace(exact | units)


def _value(expression: Any, at: dict[Any, Any]) -> Any | None:
    """Returns the finite complex value at a point, or None where there is none."""
    import sympy

    value = expression.xreplace(at).doit().evalf(DIGITS)
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo) or value.is_finite is False:
        return None
    return value if all(part.is_Float or part.is_Integer for part in value.as_real_imag()) else None
