"""Mathematical equality of an answer and a gold; runs inside a worker process (sympy can hang, crash or fill the memory).

Layers, each tried only where the one before did not say "equal": the same text after normalising; the same exact number;
math-verify; the same parts (tuples, intervals, sets, lists) one by one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from grpo_gsm8k.rewards.extraction import marked_answer
from grpo_gsm8k.rewards.numbers import NUMBER, clean, number_matches, parse_gold
from grpo_gsm8k.types import Score

MAX_ANSWER_CHARS = 2000

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|textsf)\s*\{([^{}]*)\}")
_UNIT_TEXT = re.compile(
    r"(?<=[0-9}\)])\s*\\?,?\s*\\(?:text|mbox|mathrm|textrm)\s*\{\s*[A-Za-z][A-Za-z./ ]*\}"
    r"(?:\s*\^\s*(?:\{?-?[0-9]\}?))?(?:\s*\\?/\s*[A-Za-z]+)?\s*$"
)
_UNIT_WORD = re.compile(r"(?<=[0-9])\s+(?:[a-z]{2,}|cm|mm|km|m|kg|g|ft|in)(?:\s*\^\s*\{?[23]\}?|²|³)?\.?$")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|big|Big|bigg|Bigg)(?![A-Za-z])|\\[,!;: ]"
    r"|\^\s*\{?\s*\\circ\s*\}?|\\degree|°|\\%|%|\\\$|\$|~"
)
_ASSIGNED = re.compile(r"^\s*(?:[A-Za-z](?:_\{?\w\}?)?|[A-Za-z]\([a-z]\)|(?:the )?answer)\s*(?:=|\\in(?![A-Za-z])|:)\s*")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])")
_BRACKETS = {"(": ")", "[": "]", "\\{": "\\}", "{": "}"}


def normalise(answer: str) -> str:
    """Returns an answer's text with spacing, units, wrappers and an assigned variable removed."""
    text = answer.strip().strip("$").strip().rstrip(".")
    text = _UNIT_TEXT.sub("", text)
    text = _UNIT_WORD.sub("", text)
    text = _ASSIGNED.sub("", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = text.replace("\\lbrace", "\\{").replace("\\rbrace", "\\}").replace("−", "-")
    text = _TEXT.sub(lambda m: m[1], _DROPPED.sub("", text))
    return re.sub(r"\s+", "", text)


def _same_text(answer: str, gold: str) -> bool:
    left, right = normalise(answer), normalise(gold)
    if left == right:
        return bool(left)
    if left.isascii() and re.fullmatch(r"\(?[A-Za-z]+\)?", left) and re.fullmatch(r"\(?[A-Za-z]+\)?", right):
        return left.strip("()").casefold() == right.strip("()").casefold()
    return False


def _same_number(answer: str, gold: str) -> bool:
    target = parse_gold(gold)
    if target is None:
        return False
    number = NUMBER.fullmatch(clean(_UNIT_TEXT.sub("", answer.strip().strip("$"))).strip().rstrip("."))
    return number is not None and number_matches(number, target)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    return tuple(parse(text, extraction_config=configs, parsing_timeout=None))


def _same_by_math_verify(answer_text: str, gold: str) -> bool:
    from math_verify import verify

    target = _parsed(f"${gold.strip().strip('$')}$")
    answer = _parsed(answer_text)
    if not target or not answer:
        return False
    try:
        return bool(verify(list(target), list(answer), timeout_seconds=None, raise_on_error=True))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy cannot compare the two (a set with a matrix): they are not equal
        return False


def _parts(text: str) -> tuple[str, str, list[str]] | None:
    """Returns the brackets and top-level parts of a tuple, interval, set or bare list; None where there is only one part."""
    body = normalise(text)
    opening = closing = ""
    for left in ("\\{", "(", "["):
        if body.startswith(left):
            ends = ("\\}",) if left == "\\{" else (")", "]")
            for right in ends:
                if body.endswith(right):
                    opening, closing, body = left, right, body[len(left) : -len(right)]
                    break
            break
    parts, depth, begin = [], 0, 0
    for i, character in enumerate(body):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character in ",;" and not depth:
            parts.append(body[begin:i])
            begin = i + 1
    parts.append(body[begin:])
    if not opening and len(parts) == 1:
        parts = re.split(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])", body)
    return (opening, closing, parts) if len(parts) > 1 else None


def _same_parts(answer: str, gold: str) -> bool:
    left, right = _parts(answer), _parts(gold)
    if left is None or right is None or len(left[2]) != len(right[2]) or len(left[2]) > 12 or left[:2] != right[:2]:
        return False
    if left[0] in ("(", "["):
        return all(_same_part(a, b) for a, b in zip(left[2], right[2], strict=True))
    remaining = list(right[2])
    for part in left[2]:
        found = next((other for other in remaining if _same_part(part, other)), None)
        if found is None:
            return False
        remaining.remove(found)
    return True


def _same_part(answer: str, gold: str) -> bool:
    return _same_text(answer, gold) or _same_number(answer, gold) or _same_by_math_verify(f"${answer}$", gold)


def grade_text(completion: str, gold: str) -> Score:
    """Returns the score of one completion; may hang, crash or raise, which is why it runs in a worker.

    Raises: MemoryError and RecursionError, when sympy runs out of either.
    """
    found = marked_answer(completion)
    if found is None:
        tail = completion[-MAX_ANSWER_CHARS:]
        parsed = _parsed(tail)
        if not parsed:
            return Score(0.0, None, "unparsed", "no answer found")
        if _same_by_math_verify(tail, gold):
            return Score(1.0, str(parsed[-1])[:80], "correct", "math-verify, no mark")
        return Score(0.0, str(parsed[-1])[:80], "wrong", "no mark")
    answer, place = found
    shown = answer[:80]
    if len(answer) > MAX_ANSWER_CHARS:
        return Score(0.0, shown, "wrong", f"{place}, longer than {MAX_ANSWER_CHARS} characters")
    for layer, equal in (("same text", _same_text), ("same number", _same_number)):
        if equal(answer, gold):
            return Score(1.0, shown, "correct", f"{place}, {layer}")
    if parse_gold(gold) is not None and parse_gold(answer) is not None and "/" not in clean(answer + gold):
        return Score(0.0, shown, "wrong", place)
    pairs = ((answer.strip().strip("$"), gold), (normalise(answer), normalise(gold)))
    if any(_same_by_math_verify(f"${left}$", right) for left, right in pairs):
        return Score(1.0, shown, "correct", f"{place}, math-verify")
    if _same_parts(answer, gold):
        return Score(1.0, shown, "correct", f"{place}, same parts")
    return Score(0.0, shown, "wrong", place)
