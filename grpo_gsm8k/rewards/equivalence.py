"""Mathematical equality of an answer and a gold; runs inside a worker process (sympy can hang, crash or fill the memory).

Layers, each tried only where the one before did not say "equal": the same text after normalising; the same exact number;
math-verify; the same parts (tuples, intervals, sets, lists) one by one; the same value to 40 digits (`rewards.algebra`).

- Where the gold is text ("Tuesday", the segment `BA`) or has such a part, only text and parts are compared: to math-verify,
  which multiplies letters, `AB` is `BA`.
- Where the gold is a number, an answer with words is read as `numeric` reads an explicit mark, since math-verify takes any
  number of it ("18 hours and 30 minutes").
- Two numbers that differ are different. Against a fraction or a root, math-verify compares decimals to 6 places.
- Without a mark only math-verify is asked, about the text's end.
- math-verify crashing inside is `error`, unless another layer says "equal".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from grpo_gsm8k.rewards.algebra import same_value
from grpo_gsm8k.rewards.extraction import marked_answer
from grpo_gsm8k.rewards.marks import read_segment
from grpo_gsm8k.rewards.numbers import NUMBER, Gold, clean, number_matches, number_text, parse_gold
from grpo_gsm8k.types import Score

MAX_ANSWER_CHARS = 2000

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|textsf)\s*\{([^{}]*)\}")
_NO_UNIT = r"(?!(?:hundred|thousand|(?:m|b|tr)illion|squared|cubed|factorial|percent)\b)"
_UNIT_TEXT = re.compile(
    rf"(?<=[0-9}}\)])\s*\\?,?\s*\\(?:text|mbox|mathrm|textrm)\s*\{{\s*{_NO_UNIT}"
    r"[A-Za-z][A-Za-z./ ]*\}"
    r"(?:\s*\^\s*(?:\{?-?[0-9]\}?))?(?:\s*\\?/\s*[A-Za-z]+)?\s*$"
)
_UNIT_WORD = re.compile(rf"(?<=[0-9])\s+{_NO_UNIT}" r"(?:[a-z]{2,}|cm|mm|km|m|kg|g|ft|in)(?:\s*\^\s*\{?[23]\}?|²|³)?\.?$")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|big|Big|bigg|Bigg)(?![A-Za-z])|\\[,!;: ]"
    r"|(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)(?:\s*(?:\\(?:text|mathrm)\s*\{\s*[CF]\s*\}|[CF](?![A-Za-z])))?|\\%|%|\\\$|\$|~"
)
_ASSIGNED = re.compile(
    r"^\s*(?:(?:≈|\\approx)|(?:[A-Za-z](?:_\{?\w\}?)?|[A-Za-z]\([a-z]\)|(?:the )?answer)\s*(?:=|\\in(?![A-Za-z])|:))\s*"
)
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])")
_LETTERS = re.compile(r"\(?([A-Za-z]+(?:-[A-Za-z]{3,})*)\)?")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°")
_DEGREE_PLACE = "\ue000"
_LIST_COMMA = re.compile(r"(?<![0-9])[0-9]+,\s*[0-9]{1,2}(?![0-9])")
_NO_EXPRESSION = re.compile(
    r"^\s*(?:\\(?:neq?|[gl]eq?|[gl]t|pm|mp)(?![A-Za-z])|[<>≤≥≠±*/]|--)|(?:[-+*/^_=&<>]|\\(?:cdot|times|div))\s*$|//|&|[0-9]_"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


class ComparisonCrashed(Exception):
    """math-verify raised while it compared; the message says what."""


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


def canonical_answer(answer: str) -> str:
    """Returns the one way of writing an answer that votes: a number's canonical form, else the normalised text, never cut."""
    bare = _UNIT_WORD.sub("", _UNIT_TEXT.sub("", _ASSIGNED.sub("", answer.strip().strip("$").strip())))
    bare = " ".join(clean(bare).split()).rstrip(".").removeprefix("+")
    number = NUMBER.fullmatch(bare[1:-1].strip() if bare.startswith("(") and bare.endswith(")") else bare)
    if number is not None and not _LIST_COMMA.search(bare) and (text := number_text(number)) is not None:
        return text
    normal = normalise(answer)
    letters = _LETTERS.fullmatch(normal)
    return letters[1].casefold() if letters else normal or " ".join(answer.split())


def _same_text(answer: str, gold: str) -> bool:
    left, right = normalise(answer), normalise(gold)
    if left == right:
        return bool(left)
    a, b = _LETTERS.fullmatch(left), _LETTERS.fullmatch(right)
    return a is not None and b is not None and a[1].casefold() == b[1].casefold()


def _is_text(gold: str) -> bool:
    """Returns whether a gold (or a part of it) is words or a name in letters, not a product of variables such as `xy`."""
    normal = normalise(gold)
    letters = _LETTERS.fullmatch(normal)
    if letters:
        return len(letters[1]) > 1 and not set(letters[1]) <= set("xyz")
    found = _parts(gold)
    return found is not None and any(_is_text(part) for part in found[2])


def _gold_number(text: str) -> Gold | None:
    """Returns the number that a text is, or None; `1,2` is a list here, never a decimal comma."""
    return None if _LIST_COMMA.search(text) else parse_gold(text)


def _same_number(answer: str, gold: str) -> bool:
    target = _gold_number(gold)
    if target is None or _LIST_COMMA.search(answer):
        return False
    number = NUMBER.fullmatch(clean(_UNIT_TEXT.sub("", answer.strip().strip("$"))).strip().rstrip("."))
    return number is not None and number_matches(number, target)


def _has_words(answer: str) -> bool:
    return _WORD.search(_TEXT.sub(lambda m: f" {m[1]} ", _UNIT_TEXT.sub("", answer))) is not None


def _is_read_as(answer: str, place: str, target: Gold) -> bool:
    """Returns whether the number that `numeric` reads in an answer with words is the gold."""
    reading = read_segment(answer, place, explicit=True)
    if reading is None:
        return False
    if reading.spelled is not None:
        return reading.spelled == target.value
    return any(match is not None and number_matches(match, target) for match in (reading.match, reading.also))


def _vote(answer: str, place: str, gold: str) -> str:
    """Returns what an answer votes for: the number read in it, where the gold is one and words stand around it."""
    if _gold_number(gold) is not None and _has_words(answer):
        reading = read_segment(answer, place, explicit=True)
        text = number_text(reading.match) if reading is not None and reading.match is not None else None
        return text or " ".join(answer.split())
    return canonical_answer(answer)


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
    except Exception as error:
        raise ComparisonCrashed(f"math-verify crashed: {type(error).__name__}: {error}"[:200]) from error


def _parts(text: str) -> tuple[str, str, list[str]] | None:
    """Returns the brackets and top-level parts of a tuple, interval, set or bare list; None where there is only one part."""
    body = normalise(_DEGREES.sub(_DEGREE_PLACE, text)).replace(_DEGREE_PLACE, "^{\\circ}")
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
    if _same_text(answer, gold) or _same_number(answer, gold):
        return True
    return not _is_text(gold) and (_same_by_math_verify(f"${answer}$", gold) or same_value(answer, gold))


def _equal_layer(answer: str, place: str, gold: str) -> str | None:
    """Returns the layer that holds a marked answer equal to the gold, or None where they differ.

    Raises: ComparisonCrashed when math-verify crashed and no other layer says "equal".
    """
    for layer, equal in (("same text", _same_text), ("same number", _same_number)):
        if equal(answer, gold):
            return layer
    target = _gold_number(gold)
    if target is not None:
        if _gold_number(answer) is not None and "/" not in clean(answer + gold):
            return None
        if _has_words(answer):
            return "stated number" if _is_read_as(answer, place, target) else None
        if _NO_EXPRESSION.search(answer):
            return None
    crash: ComparisonCrashed | None = None
    if not _is_text(gold):
        bare = answer.strip().strip("$").replace("°", "^{\\circ}")
        for left, right in ((bare, gold), (normalise(answer), normalise(gold))):
            try:
                if _same_by_math_verify(f"${left}$", right):
                    return "math-verify"
            except ComparisonCrashed as error:
                crash = error
    try:
        if _same_parts(answer, gold):
            return "same parts"
    except ComparisonCrashed as error:
        crash = error
    if not _is_text(gold) and same_value(_expression_text(answer), _expression_text(gold)):
        return "same value"
    if crash is not None:
        raise crash
    return None


def _expression_text(answer: str) -> str:
    """Returns an answer's LaTeX without units and wrappers, its degrees kept."""
    bare = _ASSIGNED.sub("", _UNIT_TEXT.sub("", answer.strip()))
    kept = _DROPPED.sub("", _DEGREES.sub(_DEGREE_PLACE, bare)).replace(_DEGREE_PLACE, "^{\\circ}")
    return _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", re.sub(r"\\[dtc]frac", lambda _: "\\frac", kept)).strip().rstrip(".")


def grade_text(completion: str, gold: str) -> Score:
    """Returns the score of one completion; may hang or crash the interpreter, which is why it runs in a worker.

    Raises: MemoryError and RecursionError, when sympy runs out of either, and whatever sympy raises on evaluation.
    """
    found = marked_answer(completion)
    try:
        if found is None:
            return _grade_unmarked(completion[-MAX_ANSWER_CHARS:], gold)
        answer, place = found
        voted = _vote(answer[:MAX_ANSWER_CHARS], place, gold)
        if len(answer) > MAX_ANSWER_CHARS:
            return Score(0.0, voted, "wrong", f"{place}, longer than {MAX_ANSWER_CHARS} characters: {answer[:80]}")
        layer = _equal_layer(answer, place, gold)
    except ComparisonCrashed as error:
        return Score(0.0, None, "error", str(error))
    if layer is not None:
        return Score(1.0, voted, "correct", f"{place}, {layer}")
    return Score(0.0, voted, "wrong", place)


def _grade_unmarked(tail: str, gold: str) -> Score:
    parsed = _parsed(tail)
    if not parsed:
        return Score(0.0, None, "unparsed", "no answer found")
    answer = canonical_answer(str(parsed[-1]))
    if not _is_text(gold) and _same_by_math_verify(tail, gold):
        return Score(1.0, answer, "correct", "math-verify, no mark")
    return Score(0.0, answer, "wrong", "no mark")
