"""Numbers written in words: "twenty-five", "one hundred and five", "none"."""

from __future__ import annotations

import re

_UNITS = dict(
    zip(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split(),
        range(20),
        strict=True,
    )
)
_TENS = {name: 10 * i for i, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}
_SPELLED_WORD = "|".join(sorted([*_UNITS, *_TENS, "hundred", "thousand", "million"], key=len, reverse=True))
_SPELLED = re.compile(
    rf"\b(?:negative |minus )?(?:a (?=hundred|thousand|million))?"
    rf"(?:{_SPELLED_WORD})(?:(?:-|\s+(?:and\s+)?)(?:{_SPELLED_WORD}))*\b",
    re.I,
)
_STATED = re.compile(
    r"(?:\b(?:is|are|was|were|be|has|have|had|needs?|leaves?|left|gets?|makes?|of|with|remaining|bought|sold|takes?|took)|[=:])\s+"
    r"(?:only |exactly |now |a total of )?\**$",
    re.I,
)
_ZERO_WORDS = re.compile(r"\W*(?:none|nothing|no (?:\w+ )?(?:left|remaining)?|nobody)\W*", re.I)


def spelled_number(text: str, whole: bool) -> tuple[str, int] | None:
    """Returns the words and value of a spelled-out number, or None.

    With `whole`, `text` is an explicit answer and its last spelled number counts (also `none`, which is 0); otherwise only one
    that is stated ("has twenty-five apples", "is zero"), so that "both of the two girls" is no answer.
    """
    if whole and _ZERO_WORDS.fullmatch(text):
        return text.strip(), 0
    whole = whole or _SPELLED.fullmatch(text.strip(" .*\n")) is not None
    found = [m for m in _SPELLED.finditer(text) if whole or _STATED.search(text[max(0, m.start() - 40) : m.start()])]
    return (found[-1][0], _spelled_value(found[-1][0])) if found else None


def _spelled_value(words: str) -> int:
    total, current, sign = 0, 0, 1
    for word in re.split(r"[\s-]+", words.lower()):
        if word in ("negative", "minus"):
            sign = -1
        elif word in _UNITS or word in _TENS:
            current += _UNITS.get(word, _TENS.get(word, 0))
        elif word == "hundred":
            current = max(current, 1) * 100
        elif word in ("thousand", "million"):
            total += max(current, 1) * (1000 if word == "thousand" else 10**6)
            current = 0
    return sign * (total + current)
