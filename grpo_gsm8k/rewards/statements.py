"""Which number of a sentence is its answer.

A final sentence often holds several numbers ("She makes $18 per day for 5 days, so **$90** over 5 days."). The rules, in order:

1. Bold: where bold spans hold a number that is no label, only the last such span is read.
2. Parentheses are left out where a number stands outside them, but not those of `18(2)` and `f(18)`.
3. ", which is 21 more than James" or ", which is 60% of the class" at the end is the answer, unless what stands before it is
   the result that was computed.
4. Equality: what follows the last `=` (or `≈`, `→`; "60 divided by 3 gives"), its first number; but a later "so", "thus" or
   "for a total of" wins.
5. Every number has a level (`rewards.levels`). The lowest level present wins; of several at one level, the last at level 0 or
   below, else the first; but where that one was there before, the last computed (`= 98`). Of "X, so Y" only Y is read. Operands
   alone ("7 * 5") are no answer.
6. What follows a colon or "i.e." after a plain number details or restates it ("72 clips: 48 in April and 24 in May").
7. Two alternatives ("18 or 20", "between 18 and 20") are no answer unless they are equal; of "4/20 or 20%" the
   percentage is read.
8. "2 hours and 40 minutes" is one number, 160 (`join_units`).
"""

from __future__ import annotations

import itertools
import re

from grpo_gsm8k.rewards.levels import OPERAND, number_levels, words_left
from grpo_gsm8k.rewards.numbers import NUMBER, Value, clean, number_value

Match = re.Match[str]

_BOLD = re.compile(r"\*\*(?!\s)([^*\n]+)\*\*|__(?!\s)([^_\n]+)__")
_PARENTHESES = re.compile(r"(?<![0-9A-Za-z)])\([^()]*\)(?!\()|\((?!-?[0-9.]+\))[^()]*\)(?!\()")
_TURN = re.compile(
    r",?\s(?:(?:so|therefore|thus|hence|giving|leaving|making|meaning|which (?:means|gives|equals|leaves|makes)"
    r"|which\b[^,.;=0-9]{1,30}(?:[0-9]+[^,.;=0-9]{0,30})?\s(?:is|gives|leaves|makes) (?=[$]?[0-9])"
    r"|(?:which )?round(?:s|ed|ing)? (?:up |down |off )?to)\b|for a (?=total of)"
    r"|which is (?=(?:about )?[$]?[0-9][0-9.,]*%?(?! (?:[a-z]+ )?"
    r"(?:more|less|fewer|times|greater|higher|lower|of|out|half)\b)))"
)
_SO = re.compile(
    r",\s(?:and\s)?(?:so|therefore|thus|hence|giving|making|meaning|which (?:means|gives|equals|makes|leaves))\b"
    r"|\bfor a (?=total of)|\sso (?=(?:he|she|it|they|the|there|we|you|each|his|her)\b|\$|\*)"
    r"|[a-z],?\s(?:that's|it's) (?=[$]?[0-9][0-9.,]*%?(?! (?:[a-z]+ )?(?:more|less|fewer|times|of|out|half)\b))"
)
_CALCULATED = re.compile(
    r"\b(?i:divid(?:ed|ing|e)|multipl(?:ied|ying|y)|add(?:ed|ing)?|subtract(?:ed|ing)?|split(?:ting)?|plus|minus|times"
    r"|(?:sum|difference|product|average) (?:of|between))\b(?=[^=;.]{0,40}[0-9])[^=;]{0,80}?"
    r"\s(?:is|gives|equals|makes|leaves|yields|get|(?:is )?equals? to|equals to|results? in)(?: (?:us|you|him|her|them))?"
    r"\s(?=(?:a total of )?[$]?[0-9])(?![$]?[0-9][0-9.,]* (?:[a-z]+ )?(?:more|less|fewer|times|than)\b)"
)
_COMPARED_LAST = re.compile(
    r",\swhich (?:is|was) (?P<number>(?:about |exactly )?[$]?[0-9][0-9.,]*(?:%? (?:[a-z]+ )?(?:more|less|fewer)\b"
    r"|% of (?:the|his|her|their|its|all)\b))[^,;=0-9]*$"
)
_SMALLER = {
    "week": {"day": 7}, "day": {"hour": 24}, "hour": {"minute": 60}, "minute": {"second": 60}, "year": {"month": 12},
    "foot": {"inch": 12}, "feet": {"inch": 12}, "yard": {"feet": 3, "foot": 3}, "pound": {"ounce": 16},
}  # fmt: skip
_LARGER = ("hour", "feet", "foot", "minute", "week", "day", "year", "yard", "pound")
_COMPOUND = re.compile(
    r"\b(?P<large>[0-9]{1,4})[ -]{1,6}(?P<unit>week|day|hour|minute|year|foot|feet|yard|pound)s?(?: {1,6}and)? {1,6}"
    r"(?P<small>[0-9]{1,3})[ -]{1,6}(?P<part>day|hour|minute|second|month|inch|feet|foot|ounce)(?P<plural>e?s)?\b"
    r"(?! (?:a|an|per|each|every)\b)"
)
_REASON = re.compile(r",?\s(?:because|since)\s+(?=[$(]?[0-9])(?![^,]*,\s)")
_RESTATED = re.compile(r"\bi\.e\b|\bin other words\b|\bthat is,")
_ALTERNATIVE = re.compile(r"\s*(?:[A-Za-z$]+\s+){0,3}or\s+(?:[a-z]+\s+){0,2}\$?\s*")
_BARE_JOIN = re.compile(r"\s*(?:\*\*)?\s*(?:and|or|,|&|to|;)\s*(?:\*\*)?\s*\$?\s*")


def _same(a: Match, b: Match) -> bool:
    left, right = number_value(a), number_value(b)
    if left is None or right is None:
        return False
    if left == right:
        return True
    if bool(a["percent"]) == bool(b["percent"]):
        return False
    return right == left * 100 if b["percent"] else left == right * 100


def _is_ambiguous(text: str, matches: list[Match], levels: list[int], chosen: int) -> bool:
    """Returns whether the chosen number is one of two different alternatives."""
    for first, second in ((chosen - 1, chosen), (chosen, chosen + 1)):
        if first < 0 or second >= len(matches) or OPERAND in (levels[first], levels[second]):
            continue
        between = text[matches[first].end() : matches[second].start()]
        if "or" not in between and "and" not in between:
            continue
        if _ALTERNATIVE.fullmatch(between) and not _same(matches[first], matches[second]):
            return True
        if between.strip() == "and" and words_left(text, matches[first].start())[-1:] == ["between"]:
            return True
    return False


def join_units(text: str, before: str = "", *, as_fraction: bool = False) -> str:
    """Returns `text` with "2 hours and 30 minutes" as "150 minutes", or as "2.5 hours" where only 2.5 stands in `before`.

    With `as_fraction` it is always the larger unit, exactly: "150/60 hours".
    """

    def joined(match: Match) -> str:
        ratio = _SMALLER[match["unit"]].get(match["part"])
        if ratio is None or int(match["small"]) >= ratio:
            return match[0]
        small = int(match["large"]) * ratio + int(match["small"])
        if as_fraction:
            return f"{small}/{ratio} {match['unit']}s"
        large = f"{small / ratio:g}"
        in_small = re.search(rf"(?<![0-9.,]){small}(?![0-9])", before) is not None
        in_large = re.search(rf"(?<![0-9.]){re.escape(large)}(?![0-9])", before) is not None
        return f"{large} {match['unit']}s" if in_large and not in_small else f"{small} {match['part']}{match['plural'] or ''}"

    if not any(unit in text for unit in _LARGER):
        return text
    return _COMPOUND.sub(joined, text)


def is_alternative(text: str, first: Match) -> bool:
    """Returns whether the text ends with a second bare number, different from `first`: "18 or 20", "(18, 20)"."""
    second = NUMBER.search(text, first.end())
    if second is None or not _BARE_JOIN.fullmatch(text, first.end(), second.start()) or _same(first, second):
        return False
    return not text[second.end() :].strip(" .$)]*")


def _may_calculate(t: str) -> bool:
    """Returns whether `_CALCULATED` can match; written out because the regex takes ten times as long."""
    t = t.lower()
    return ("ivid" in t or "ultipl" in t or "dd" in t or "ubtract" in t or "plit" in t or "lus " in t or "inus " in t) or (
        "imes " in t or "um " in t or "ifference " in t or "roduct " in t or "verage " in t
    )


def _may_turn(t: str) -> bool:
    """Returns whether `_SO` can match."""
    return ("so " in t or "so," in t or "for a" in t or "'s" in t or "which " in t or "thus" in t or "hence" in t) or (
        "therefore" in t or "giving" in t or "making" in t or "meaning" in t
    )


def choose(sentence: str, before: str = "") -> Match | None:
    """Returns the number that is the answer in a cleaned sentence, or None (no number, or two alternatives).

    `before` is the text that leads up to it; the last result computed there decides between numbers of the same level.
    """
    if "**" in sentence or "__" in sentence:
        bold = [span for m in _BOLD.finditer(sentence) if _has_plain_number(span := m[1] or m[2])]
        sentence = bold[-1] if bold else sentence
    if "*" in sentence:
        sentence = sentence.replace("**", "")
    if "(" in sentence:
        outside = _PARENTHESES.sub(" ", sentence)
        if NUMBER.search(outside):
            sentence = outside
    if ", which " in sentence and (compared := _COMPARED_LAST.search(sentence)) and "=" not in sentence:
        stated = list(NUMBER.finditer(sentence, 0, compared.start()))
        difference = NUMBER.search(sentence, compared.start("number"))
        if difference and not (stated and _is_the_result(stated[-1], difference, before)):
            return difference
    if "=" not in sentence and _may_calculate(sentence) and (calculated := list(_CALCULATED.finditer(sentence))):
        sentence = f"{sentence[: calculated[-1].end()]}= {sentence[calculated[-1].end() :]}"
    if (
        (" because" in sentence or " since" in sentence)
        and (reason := _REASON.search(sentence))
        and NUMBER.search(sentence, 0, reason.start())
    ):
        before, sentence = sentence[reason.end() :], sentence[: reason.start()]
    equals = sentence.rfind("=")
    if equals >= 0 and not NUMBER.search(sentence, equals) and (solved := list(NUMBER.finditer(sentence, 0, equals))):
        return solved[-1] if not sentence[solved[-1].end() : equals].strip() else None
    if equals >= 0 and NUMBER.search(sentence, equals):
        turns = [m.end() for m in _TURN.finditer(sentence, equals) if NUMBER.search(sentence, m.end())]
        if not turns:
            return _right_hand_side(sentence, equals)
        sentence = sentence[turns[-1] :]
    matches = list(NUMBER.finditer(sentence))
    if len(matches) <= 1:
        return matches[0] if matches else None
    if _may_turn(sentence) and (turns := [m.end() for m in _SO.finditer(sentence) if m.end() <= matches[-1].start()]):
        sentence = sentence[turns[-1] :]
        matches = list(NUMBER.finditer(sentence))
        if len(matches) <= 1:
            return matches[0] if matches else None
    levels = number_levels(sentence, matches)
    matches, levels = _without_breakdown(sentence, matches, levels)
    best = min(levels)
    if best == OPERAND:
        return None
    places = [i for i, level in enumerate(levels) if level == best]
    chosen = places[-1] if best <= 0 else places[0]
    if len(places) > 1 and best >= 0 and matches[chosen]["body"] in before and (result := _last_result(before)) is not None:
        computed = [i for i in places if number_value(matches[i]) == result]
        chosen = computed[-1] if computed else chosen
    if _is_ambiguous(sentence, matches, levels, chosen):
        return None
    return _as_percent(sentence, matches, chosen)


def _as_percent(text: str, matches: list[Match], chosen: int) -> Match:
    """Returns the percentage where the chosen number is also given as one ("4/20 or 20% of them")."""
    first = matches[chosen]
    if chosen + 1 == len(matches) or first["percent"] or not (second := matches[chosen + 1])["percent"]:
        return first
    joined = _ALTERNATIVE.fullmatch(text[first.end() : second.start()].replace(",", "")) and _same(first, second)
    return second if joined else first


def _last_result(before: str) -> Value | None:
    """Returns the value of the last `= number` in a text, or None."""
    at = len(before)
    for _ in range(3):
        at = max(before.rfind("=", 0, at), before.rfind("≈", 0, at))
        if at < 0:
            return None
        result = NUMBER.match(clean(before[at + 1 : at + 60]).lstrip(" *&\n"))
        if result:
            return number_value(result)
    return None


def _is_the_result(stated: Match, difference: Match, before: str) -> bool:
    """Returns whether `stated`, and not `difference`, is what was computed before."""
    if (result := _last_result(before)) is not None and result == number_value(difference):
        return False
    return re.search(rf"=[\s$*]*{re.escape(stated['body'])}(?![0-9.,]*[0-9])", before) is not None


def _without_breakdown(sentence: str, matches: list[Match], levels: list[int]) -> tuple[list[Match], list[int]]:
    """Leaves out what only details or restates a number: "72 clips: 48 in April and 24 in May", "$27, i.e. $9 each"."""
    colon = sentence.find(": ")
    restated = _RESTATED.search(sentence) if "i.e" in sentence or "in other" in sentence or "that is" in sentence else None
    if restated is None and colon < 0:
        return matches, levels
    if restated and matches[-1]["percent"] and matches[-2].end() <= restated.start() and _same(matches[-2], matches[-1]):
        return [matches[-1]], [0]
    for cut, needed in ((colon, 2), (restated.start() if restated else -1, 1)):
        before = sum(match.start() < cut for match in matches)
        if cut >= 0 and before and min(levels[:before]) < 1 and len(matches) - before >= needed:
            return matches[:before], levels[:before]
    return matches, levels


def _right_hand_side(sentence: str, equals: int) -> Match | None:
    matches = list(NUMBER.finditer(sentence, equals))
    if len(matches) == 1:
        return matches[0]
    between = sentence[matches[0].end() : matches[1].start()]
    if between.strip(" $") in ("+", "-", "*", "/", "x"):
        return None
    if " or " in between and matches[1]["percent"] and _same(matches[0], matches[1]):
        return matches[1]
    return None if _is_ambiguous(sentence, matches, [0] * len(matches), 0) else matches[0]


def _has_plain_number(span: str) -> bool:
    matches = list(NUMBER.finditer(span))
    return bool(matches) and (min(number_levels(span, matches)) < 2)


def only_number(content: str) -> Match | None:
    """Returns the number of an explicit answer (a box, a tag), or None.

    `content` is cleaned. One number is the answer whatever stands around it; of `a = b` the right-hand side counts; two bare
    numbers joined by "and", "or" or a comma are no answer unless equal; a sentence is read by `choose`.
    """
    if "(" in content and NUMBER.search(outside := _PARENTHESES.sub(" ", content)):
        content = outside
    matches = list(NUMBER.finditer(content))
    if len(matches) == 1:
        return matches[0] if not _is_expression(content) else None
    if not matches:
        return None
    if "=" in content:
        return choose(content)
    joins = [content[a.end() : b.start()] for a, b in itertools.pairwise(matches)]
    if all(_BARE_JOIN.fullmatch(join) for join in joins):
        return matches[0] if all(_same(matches[0], other) for other in matches[1:]) else None
    if any(set(join.strip(" $")) <= set("+-*/^:|()") for join in joins) or "sqrt" in content:
        return None
    return choose(content)


def _is_expression(content: str) -> bool:
    return "\\sqrt" in content or "\\pi" in content
