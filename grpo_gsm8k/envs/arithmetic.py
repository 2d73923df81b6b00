"""A calculator for text: + - * / and parentheses over exact fractions, by a parser of its own (nothing is ever executed).

It cannot take long: an expression has at most 100 characters, and no operation makes a number longer than they allow.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 100
MAX_DIGITS = 30
MAX_DECIMALS = 10

_TOKEN = re.compile(r"\s*(?:([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([-+*/()]))")


class CalculationError(ValueError):
    """The text is no calculation, or one without a result; the message is what the calculator says."""


def calculate(expression: str) -> str:
    """Returns the exact result of an expression: `17`, `2.5`, or `1/3` where its decimals never end (or are more than 10).

    `1,200` is one number. Raises: CalculationError.
    """
    if len(expression) > MAX_CHARS:
        raise CalculationError(f"more than {MAX_CHARS} characters")
    result = _Parser(_tokens(expression)).parse()
    if max(abs(result.numerator), result.denominator) >= 10**MAX_DIGITS:
        raise CalculationError(f"the result has more than {MAX_DIGITS} digits")
    return _written(result)


def _tokens(expression: str) -> list[str]:
    tokens, at, end = [], 0, len(expression.rstrip())
    while at < end:
        match = _TOKEN.match(expression, at)
        if match is None:
            raise CalculationError("not a calculation")
        tokens.append(match[1].replace(",", "") if match[1] else match[2])
        at = match.end()
    return tokens


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**MAX_DECIMALS
    if scaled.denominator != 1:
        return str(value)
    sign, digits = "-" if value < 0 else "", str(abs(scaled.numerator)).rjust(MAX_DECIMALS + 1, "0")
    return f"{sign}{digits[:-MAX_DECIMALS]}.{digits[-MAX_DECIMALS:]}".rstrip("0")


class _Parser:
    """sum = product {(+|-) product}; product = factor {(*|/) factor}; factor = {+|-} (number | "(" sum ")")."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def parse(self) -> Fraction:
        """Returns the value of all tokens. Raises: CalculationError."""
        value = self._sum()
        if self._at < len(self._tokens):
            raise CalculationError("not a calculation")
        return value

    def _next(self, *wanted: str) -> str | None:
        """Returns the next token and passes it, if it is a wanted one."""
        if self._at < len(self._tokens) and self._tokens[self._at] in wanted:
            self._at += 1
            return self._tokens[self._at - 1]
        return None

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._next("+", "-"):
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._next("*", "/"):
            factor = self._factor()
            if sign == "/" and factor == 0:
                raise CalculationError("division by zero")
            value = value * factor if sign == "*" else value / factor
        return value

    def _factor(self) -> Fraction:
        negative = False
        while sign := self._next("+", "-"):
            negative ^= sign == "-"
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise CalculationError("not a calculation")
        elif self._at < len(self._tokens) and self._tokens[self._at] not in "+-*/()":
            value = Fraction(self._tokens[self._at])
            self._at += 1
        else:
            raise CalculationError("not a calculation")
        return -value if negative else value
