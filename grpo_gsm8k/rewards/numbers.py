"""Numbers in text: cleaning, reading and exact comparison.

Values are exact (`int` or `Fraction`), never floats. The rules, all of them:

- Grouping: `1,000`, `1\\,000`, `1{,}000`, `1 000` (a thin or no-break space; a plain space before a group that starts with 0),
  Indian `1,00,000`, European `1.234.567,89`.
  One comma before one or two digits is a decimal comma (`18,50`). `1.000` is one, as in English.
- Percent: the sign is a unit, so gold 20 matches `20%` and `20 percent`; nothing is multiplied by 100, so `0.2` does not match
  gold 20. Only where the gold lies strictly between 0 and 1 is a percentage divided by 100 (gold 0.2 matches `20%`).
- Cents: an amount with a `$` below one dollar also matches its cents, where the completion says so in cents too (gold 25
  matches `$0.25` of a text with `25 cents`, never `$0.25` alone).
- Scales: `1.5 million` is 1500000. Some of GSM8K's questions ask "how many millions", so it also matches 1.5 where the gold has
  decimals; and `405 million` matches gold 405 where the completion calculates in millions, which is where another
  amount in millions stands in it (thousands and billions likewise). `18 million` alone does not match 18.
- Clock times: `5:00` is 5; any other `h:mm`, and a ratio such as `3:4`, is no number.
- Rounding: a gold is matched exactly. Only one with two or more decimals may be a rounded non-terminating fraction; it is
  also matched by that fraction (`100/3` for 33.33) and by more of its decimals than the gold has (`33.333`): the answer must
  agree in all its decimals with a non-terminating fraction of denominator 12 or less (100 from 6 decimals on, ten times more
  every two further) that rounds to the gold. So 33.3 and 33.34 do not match 33.33, 0.46 not 0.5, 1.54 not 1.5, 1.254 not 1.25.
- A number of more than 400 characters, or with an exponent beyond 60, is never equal to anything.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

Value = int | Fraction

MAX_NUMBER_CHARS = 400
MAX_EXPONENT = 60
MIN_ROUNDED_DECIMALS = 2
MAX_SIMPLE_DENOMINATOR = 12

_CHARACTERS = str.maketrans(
    {0xFF10 + d: str(d) for d in range(10)}
    | dict.fromkeys("\u2212\u2012\u2013\ufe63\uff0d\u2010\u2011", "-")
    | {"\u2014": " - ", "．": ".", "，": ",", "％": "%", "＄": "$", "：": ":", "＝": "=", "（": "(", "）": ")", "。": ". "}
    | {"\u00a0": "\u202f", "\u2009": "\u202f", "\u2007": "\u202f", "\u200a": "\u202f", "\u2008": "\u202f"}
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u2061", None)
    | {"×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/", "∕": "/", "’": "'", "≈": "=", "≃": "=", "≅": "=", "→": "=", "⇒": "="}
    | {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⅛": " 1/8", "⅕": " 1/5", "⅖": " 2/5", "⅗": " 3/5"}
)
_NARROW_GROUP = re.compile("(?<=[0-9])\u202f(?=[0-9]{3}(?![0-9]))")
_SPACED_GROUPS = re.compile(
    r"(?<![0-9.,])[1-9][0-9]{0,2}(?: 0[0-9]{2})+(?!-| ?[0-9])|(?<== )[1-9][0-9]{0,2}(?: [0-9]{3})+(?!-| ?[0-9])"
)
_LATEX_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]?frac\s*\{\s*(-?[0-9][0-9.,]*)\s*\}\s*\{\s*([0-9][0-9.,]*)\s*\}", r" \1/\2 "),
        (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2 "),
        (r"-\s+(?=[0-9]+/[0-9])", "-"),
        (r"(?<=[0-9])(?:,?\\[,!;: ]|\{,\}|\\thinspace\b|~)(?=[0-9]{3})", ","),
        (r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|operatorname|mbox|bm|boldsymbol|emph)\s*\{", " {"),
        (r"\\(?:approx|simeq|Rightarrow|rightarrow|to|implies|therefore)(?![A-Za-z])", "="),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\%|\\percent\b", "%"),
        (r"\\(?:\$|pounds\b|euro\b|EUR\b|textdollar\b)", "$"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", " "),
        (r"\\(?:left|right|displaystyle|quad|qquad|boxed|fbox)(?![A-Za-z])|\\[,!;: \[\]()]|\\\\", " "),
    )
)
_UNIT_POWER = re.compile(r"(?<![0-9^])(\s{0,3}\}?\s{0,3})\^\s?(?:\{[^{}]{0,20}\}|-?[0-9])")
_BRACES = str.maketrans({"{": " ", "}": " "})
_CURRENCY_NAMES = re.compile(
    r"\b(?:(?:USD|CAD|AUD|EUR|GBP|INR|Rs|PHP|JPY|NZD|HKD|SGD)\.?\s?(?=[$€£¥₹]?[0-9])|(?:US|A|C|NZ|HK|S)\s?(?=[$€£¥₹][0-9]))"
)
_POWER_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_POWER = re.compile(f"(?<=[0-9)])[{_POWER_DIGITS}]+")
_PLAIN_DIGITS = str.maketrans(_POWER_DIGITS, "0123456789")

NUMBER = re.compile(
    r"(?=[-0-9.$€£¥₹₱NnMm])"  # nothing else can begin one; without it every other character costs five tries
    r"(?P<sign>(?<![\w)\]}%$-])-|\b(?:[Nn]egative|[Mm]inus)\s)?"
    r"(?:[$€£¥₹₱]\s*(?P<sign2>-)?)?"
    r"(?<![A-Za-z_^0-9])(?P<body>(?:[0-9]+(?:[.,][0-9]+)*|(?<![.0-9])\.[0-9]+))"
    r"(?:(?P<fraction>\s?/\s?[0-9]+(?:\.[0-9]+)?(?![0-9]))|(?P<mixed>(?:\s+|-|\sand\s)[0-9]+/[0-9]+)"
    r"|(?P<clock>:[0-9]{2}(?![0-9]))"
    r"|(?P<exponent>[eE][+-]?[0-9]+(?![A-Za-z0-9])"
    r"|\s?[xX*]\s?10\s?\^\s?\{?[+-]?[0-9]+\}?|\^\s?\{?-?[0-9]+\}?(?:\^\S*)?)"
    r"|(?P<range>-[$]?[0-9]))?"
    r"(?P<scale>\s?(?:million|billion|thousand|hundred|trillion)\b|[kKM]\b)?"
    r"(?P<percent>\s?(?:%|percent(?:age)?\b|per cent\b))?"
)
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?:\.[0-9]+)?")
_EUROPEAN = re.compile(r"[0-9]{1,3}(?:(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|(?:\.[0-9]{3})+,[0-9]{1,2})")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NAMED_SCALES = frozenset({"thousand", "million", "billion"})
_SCALES |= {"k": 10**3, "K": 10**3, "M": 10**6}


class Gold(NamedTuple):
    """A gold answer: its exact value and how many decimals it was written with."""

    value: Value
    decimals: int


def clean(segment: str) -> str:
    """Returns `segment` with odd characters, LaTeX spacing, wrappers and fractions, and units' exponents made plain."""
    if not segment.isascii():
        segment = _NARROW_GROUP.sub(",", segment.translate(_CHARACTERS))
        segment = _POWER.sub(lambda m: "^" + m[0].translate(_PLAIN_DIGITS), segment)
    if " 0" in segment or "= " in segment:
        segment = _SPACED_GROUPS.sub(lambda m: m[0].replace(" ", ","), segment)
    if "\\" in segment or "{" in segment:
        for pattern, replacement in _LATEX_STEPS:
            segment = pattern.sub(replacement, segment)
    if "^" in segment:
        segment = _UNIT_POWER.sub(r"\1", segment)
    if "{" in segment or "}" in segment:
        segment = segment.translate(_BRACES)
    return _CURRENCY_NAMES.sub("", segment)


def _plain(body: str) -> Value | None:
    """Returns the value of digits with dots and commas, or None where they are no one number (`3,4,5`)."""
    if len(body) > MAX_NUMBER_CHARS:
        return None
    if "," in body:
        if _THOUSANDS.fullmatch(body):
            body = body.replace(",", "")
        elif _EUROPEAN.fullmatch(body):
            body = body.replace(".", "").replace(",", ".")
        elif body.count(",") == 1 and len(body) - body.index(",") <= 3 and "." not in body:
            body = body.replace(",", ".")
        else:
            return None
    elif body.count(".") > 1:
        if not _EUROPEAN.fullmatch(body):
            return None
        body = body.replace(".", "")
    if "." not in body:
        return int(body)
    whole, _, decimals = body.partition(".")
    if not decimals.strip("0"):
        return int(whole or "0")
    return Fraction(int(whole + decimals), 10 ** len(decimals))


def _with_exponent(value: Value, text: str) -> Value | None:
    power = text.startswith("^")
    digits = re.search(r"([+-]?[0-9]+)\}?$", text)
    if digits is None or len(digits[1]) > 4 or abs(int(digits[1])) > MAX_EXPONENT or "^" in text[text.find("^") + 1 :]:
        return None
    exponent, base = int(digits[1]), Fraction(value)
    if not power:
        return base * Fraction(10) ** exponent
    return None if base == 0 or abs(base.numerator) > 10**6 else Fraction(base**exponent)


def number_value(match: re.Match[str]) -> Value | None:
    """Returns the exact value of a `NUMBER` match, scales applied, percent signs dropped; None where it is none."""
    value = _plain(match["body"])
    if value is None or match["range"]:
        return None
    if match.lastgroup != "body":
        if fraction := match["fraction"]:
            below = _plain(fraction.strip(" \t\n/\r\u202f"))
            if not below:
                return None
            value = Fraction(value) / below
        elif mixed := match["mixed"]:
            above, _, below_text = mixed.strip().removeprefix("and").lstrip(" -\t\n").partition("/")
            top, bottom = _plain(above), _plain(below_text)
            if top is None or not bottom or top >= bottom:
                return None
            value += Fraction(top) / bottom
        elif clock := match["clock"]:
            if clock != ":00" or value > 24:
                return None
        elif exponent := match["exponent"]:
            scaled = _with_exponent(value, exponent)
            if scaled is None:
                return None
            value = scaled
        if scale := match["scale"]:
            value *= _SCALES[scale.strip()]
    return -value if match["sign"] or match["sign2"] else value


def canonical(value: Value) -> str:
    """Returns the one way of writing a value: `18`, `-3`, `3/4` (of 0.75 too)."""
    return str(value)


def number_text(match: re.Match[str]) -> str | None:
    """Returns a `NUMBER` match's value in its canonical form, `%` kept (`20 percent` → `20%`); None where it has no value."""
    value = number_value(match)
    if value is None:
        return None
    return f"{canonical(value)}%" if match["percent"] else canonical(value)


def number_matches(match: re.Match[str], gold: Gold, completion: str = "") -> bool:
    """Returns whether a `NUMBER` match of `completion` equals `gold` by the rules in this module's docstring."""
    value = number_value(match)
    if value is None:
        return False
    if value == gold.value:
        return True
    if isinstance(value, Fraction) and gold.decimals >= MIN_ROUNDED_DECIMALS and _is_more_precise(match, value, gold):
        return True
    if match["percent"] and 0 < gold.value < 1:
        return Fraction(value) / 100 == gold.value
    if 0 < value < 1 and "$" in match[0] and value * 100 == gold.value:
        return re.search(rf"(?<![0-9.,]){gold.value}\s?(?:cents?\b|¢)", clean(completion)) is not None
    scale = (match["scale"] or "").strip()
    if scale in _NAMED_SCALES and Fraction(value) / _SCALES[scale] == gold.value:
        amounts = re.findall(rf"([0-9](?:[0-9.,]*[0-9])?)\s{{0,4}}{scale}\b", clean(completion))
        return gold.decimals > 0 or any(amount != match["body"] for amount in amounts)
    return False


def _is_more_precise(match: re.Match[str], value: Fraction, gold: Gold) -> bool:
    """Returns whether `value` is a simple non-terminating fraction, to more decimals than the gold, that rounds to it."""
    exact, error = value, Fraction(0)
    if not match["fraction"] and not match["mixed"]:
        num_decimals = len(match["body"].rpartition(".")[2])
        if num_decimals <= gold.decimals:
            return False
        exact = value.limit_denominator(max(MAX_SIMPLE_DENOMINATOR, 10 ** (num_decimals // 2 - 1)))
        error = Fraction(1, 10**num_decimals)
    shifted = abs(exact) * 10**gold.decimals
    terminates = 10**MAX_EXPONENT % exact.denominator == 0
    if terminates or abs(exact - value) > error or (value < 0) != (gold.value < 0):
        return False
    return bool(math.floor(shifted + Fraction(1, 2)) == abs(gold.value) * 10**gold.decimals)


def plain_number(text: str) -> Value | None:
    """Returns the exact value of digits with an optional `-` and one optional dot (`-3`, `18.50`); None for anything else."""
    digits = text.removeprefix("-")
    if not _PLAIN.fullmatch(digits):
        return None
    value = _plain(digits)
    return value if value is None or digits == text else -value


@lru_cache(maxsize=65536)
def parse_gold(gold: str) -> Gold | None:
    """Returns the exact value of a gold answer such as `1,080`, `$18.50`, `-3`, `3/4` or `20%`; None where it is no number."""
    text = clean(gold).strip().rstrip(".")
    match = NUMBER.fullmatch(text)
    value = number_value(match) if match else None
    if match is None or value is None:
        return None
    body = match["body"]
    decimals = len(body.rpartition(".")[2]) if "." in body and isinstance(value, Fraction) and not match["fraction"] else 0
    return Gold(value, decimals)


def gold_number(answer: str) -> str:
    """Returns the gold of a published GSM8K answer (`… #### 1,080` → `"1080"`).

    Raises: ValueError when there is no `####` or no number after the last one.
    """
    _, mark, tail = answer.rpartition("####")
    number = tail.strip().replace(",", "").removeprefix("$")
    if not mark:
        raise ValueError("no '####' in the answer; a GSM8K answer ends with '#### <number>'")
    if parse_gold(number) is None:
        raise ValueError(f"no number after '####' (found {tail.strip()[:40]!r}); a GSM8K answer ends with '#### <number>'")
    return number
