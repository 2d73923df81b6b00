"""Which number of a sentence is its answer.

A final sentence often holds several numbers ("She makes $18 per day for 5 days, so **$90** over 5 days."). The rules, in order:

1. Bold: where bold spans hold a number that is no label, only the last such span is read.
2. Parentheses are left out where a number stands outside them.
3. Equality: what follows the last `=` (or `≈`, `→`), its first number; but a later "so", "thus" or "for a total of" wins.
4. Every number has a level: -1 after "a total of"; 0 plain; 1 in a modifier ("for 5 days", "out of 20", "than 5", "at $2 each",
   "3-egg", "to reach 100", "because …"); 2 as a label ("Step 3", "Day 5"). The lowest level present wins; of several at one
   level, the last at level 0 or below, else the first; but where that one was there before, the last computed (`= 98`).
   Of "X, so Y" only Y is read.
5. What follows a colon or "i.e." after a plain number details or restates it ("72 clips: 48 in April and 24 in May").
6. Two alternatives ("18 or 20", "between 18 and 20") are no answer unless they are equal.
"""

from __future__ import annotations

import itertools
import re

from grpo_gsm8k.rewards.numbers import NUMBER, Value, clean, number_value

Match = re.Match[str]

_BOLD = re.compile(r"\*\*(?!\s)([^*\n]+)\*\*|__(?!\s)([^_\n]+)__")
_PARENTHESES = re.compile(r"\([^()]*\)")
_TURN = re.compile(
    r",?\s(?:(?:so|therefore|thus|hence|giving|leaving|making|meaning|which (?:means|gives|equals|leaves|makes)"
    r"|(?:which )?round(?:s|ed|ing)? (?:up |down |off )?to)\b|for a (?=total of)"
    r"|which is (?=(?:about )?[$]?[0-9][0-9.,]*%?(?! (?:[a-z]+ )?"
    r"(?:more|less|fewer|times|greater|higher|lower|of|out|half)\b)))"
)
_SO = re.compile(
    r",\s(?:and\s)?(?:so|therefore|thus|hence|giving|making|meaning|which (?:means|gives|equals|makes|leaves))\b"
    r"|\bfor a (?=total of)|\sso (?=(?:he|she|it|they|the|there|we|you|each|his|her)\b|\$|\*)"
)
_MODIFIER = frozenset(
    "per every each in for after over within during at with from before since until between on across through using without "
    "past among amongst versus vs than around by above below under beyond".split()
)
_MODIFIER_OF_NOUN = frozenset(
    "in for after over within during at from before since until than per every among across of with on all both "
    "twice double triple half".split()
)
_FILLER = frozenset(
    "the all next first last those these his her their its about approximately only a an another exactly original remaining "
    "other just some roughly around nearly almost previous following initial whole entire full same coming more both".split()
)
_LABEL = frozenset(
    "step day week month year part option question problem case equation chapter room no number version method example "
    "scenario round phase section page line group person level".split()
)
_VERB_FOR = frozenset("run runs ran last lasts lasted sell sells sold enough sleeps slept".split())
_LEFT_WITH = frozenset("left end ends ended up remains remaining leaves leaving comes came".split())
_UNIT_RATE = re.compile(
    r"[^,;=]{0,25}?\b(?:each|apiece)\b|-[A-Za-z]|(?:st|nd|rd|th)\b|[^,;=0-9]{0,3}\s*of\s+(?:the\s+|\$)?[0-9]"
    r"|\s+times (?:as|more|the|larger|bigger|older|that|what|less|fewer)\b"
)
_PERCENT_OF = re.compile(
    r"\s*(?:of|off)\b(?!\s+(?:the|his|her|their|all|its|a|an|students|people)\b)"
    r"|\s*(?:off|discount|tax|tip|increase|decrease|interest)\b"
)
_NEEDS_TO = "needs need has have had able going wants used likely gets expected managed ready decided got".split()
_OPENER = re.compile(
    r"\b(?:because|since|if|when|given|assuming|compared|considering|based on|instead of|rather than|not|unlike|out of"
    r"|averaging|including|excluding|of which|who (?:has|had|is|was|gets|got)|as"
    r"|(?:after|before) (?:he|she|they|it|[A-Z][a-z]+)|(?:after|before|by|from) [a-z]+ing"
    r"|which (?:is|was|are|were) (?:about |exactly |only )?[$]?[0-9][0-9.,]*%? ?(?:[a-z]+ )?"
    r"(?:more|less|fewer|times|greater|higher|lower|of|out|half)"
    rf"|{''.join(f'(?<!{word} )' for word in _NEEDS_TO)}"
    r"to (?!a\b|the\b|be\b|about\b|equal\b|total\b|"
    r"(?:get|give|leave|obtain|have|find) \$?[0-9]|\$|[0-9])[a-z]+)\b"
)
_CLAUSE_END = re.compile(r"[,;:=]\s|\.\s")
_PHRASE_END = re.compile(r"[,;:=]\s|\.\s|\s(?:he|she|they|it|we|you|there)(?:'d|'ll|'s)?\s")
_OPENING_CLAUSE = re.compile(
    r"\W*(?:(?:So|Thus|Therefore|Hence),? )?(?:[Ff]or|[A-Z][a-z]+ing"
    r"|With|Since|Because|If|When|Given|After|Before|As|At|In|On|By)\b"
)
_COMPARED = re.compile(r"(?:\s[a-z]+)?\s(?:more|less|fewer|greater|higher|lower|older|younger|[a-z]+er) than\b")
_REASON = re.compile(r",?\s(?:because|since)\s+(?=[$(]?[0-9])(?![^,]*,\s)")
_RESTATED = re.compile(r"\bi\.e\b|\bin other words\b|\bthat is,")
_ALTERNATIVE = re.compile(r"\s*(?:[A-Za-z$]+\s+){0,3}or\s+(?:[a-z]+\s+){0,2}\$?\s*")
_BARE_JOIN = re.compile(r"\s*(?:\*\*)?\s*(?:and|or|,|&|to|;)\s*(?:\*\*)?\s*\$?\s*")
_TRUNCATED = re.compile(r"(?:[-+/=(×÷]|\s[*$])\s*$")

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


def _words_left(text: str, start: int) -> list[str]:
    return text[max(0, start - 48) : start].lower().replace("*", " ").replace("(", " ").split()[-4:]


def _level(text: str, match: Match) -> int:
    """Returns how much of an answer this number looks like: -1 best, 0 plain, 1 modifier, 2 label."""
    words = _words_left(text, match.start())
    money = "$" in match[0] or "€" in match[0] or "£" in match[0]
    end = match.end()
    after = text[end : end + 40]
    if words:
        last = words[-1].rstrip("#")
        if last in _LABEL or (words[-1].endswith("#") and not last):
            return 2
        if last == "total" or (last == "of" and words[-2:-1] in (["total"], ["sum"], ["profit"], ["average"])):
            return 1 if "out" in words else -1
        if last == "the" and not money:
            return 2
        near = len(words) - 1
        while near > 0 and (words[near] in _FILLER or words[near].endswith(("'s", "'"))):
            near -= 1
        noun = near < len(words) - 1
        head = words[near]
        if head in _MODIFIER or (noun and head in _MODIFIER_OF_NOUN):
            if head == "with" and near > 0 and words[near - 1] in _LEFT_WITH:
                return 0
            if head == "for" and near > 0 and words[near - 1] in _VERB_FOR:
                return 0
            if head == "by" or (money and head in ("for", "with", "in", "over")):
                return 1 if _UNIT_RATE.match(after) else 0
            return 1
        if (
            head == "of"
            and near > 0
            and (words[near - 1] in ("out", "short", "instead") or (noun and words[-1] in ("the", "original")))
        ):
            return 1
        if head == "of" and near > 1 and words[near - 1] in ("rate", "speed", "price", "cost") and "at" in words:
            return 1
    if after and (_UNIT_RATE.match(after) or (match["percent"] and _PERCENT_OF.match(after))):
        return 1
    return 0


def _levels(text: str, matches: list[Match]) -> list[int]:
    levels = [_level(text, match) for match in matches]
    if len(matches) == 1:
        return levels
    for opener in _OPENER.finditer(text):
        is_phrase = opener[0].startswith("to ") or opener[0].endswith("ing")
        clause_end = (_PHRASE_END if is_phrase else _CLAUSE_END).search(text, opener.end())
        stop = clause_end.start() if clause_end else len(text)
        if opener[0].startswith("to ") and not any(m.start() < opener.start() for m in matches):
            continue
        for i, match in enumerate(matches):
            if opener.start() <= match.start() < stop and levels[i] < 1:
                levels[i] = 1
    comma = text.find(", ")
    if comma >= 0 and _OPENING_CLAUSE.match(text):
        levels = [2 if match.start() < comma else level for match, level in zip(matches, levels, strict=True)]
    for i in range(1, len(matches)):
        if "," in text[matches[i - 1].end() : matches[i].start()] and _COMPARED.match(text, matches[i].end()):
            levels[i] = max(levels[i], 1)
    return levels


def _same(a: Match, b: Match) -> bool:
    left, right = number_value(a), number_value(b)
    if left is None or right is None:
        return False
    if left == right:
        return True
    if bool(a["percent"]) == bool(b["percent"]):
        return False
    return right == left * 100 if b["percent"] else left == right * 100


def _is_ambiguous(text: str, matches: list[Match], chosen: int) -> bool:
    """Returns whether the chosen number is one of two different alternatives."""
    for first, second in ((chosen - 1, chosen), (chosen, chosen + 1)):
        if first < 0 or second >= len(matches):
            continue
        between = text[matches[first].end() : matches[second].start()]
        if _ALTERNATIVE.fullmatch(between) and not _same(matches[first], matches[second]):
            return True
        if between.strip() == "and" and _words_left(text, matches[first].start())[-1:] == ["between"]:
            return True
    return False


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
    if (reason := _REASON.search(sentence)) and NUMBER.search(sentence, 0, reason.start()):
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
    turns = [m.end() for m in _SO.finditer(sentence) if m.end() < matches[-1].start()]
    if turns:
        sentence = sentence[turns[-1] :]
        matches = list(NUMBER.finditer(sentence))
        if len(matches) <= 1:
            return matches[0] if matches else None
    levels = _levels(sentence, matches)
    matches, levels = _without_breakdown(sentence, matches, levels)
    best = min(levels)
    places = [i for i, level in enumerate(levels) if level == best]
    chosen = places[-1] if best <= 0 else places[0]
    if len(places) > 1 and best >= 0 and matches[chosen]["body"] in before and (result := _last_result(before)) is not None:
        computed = [i for i in places if number_value(matches[i]) == result]
        chosen = computed[-1] if computed else chosen
    return None if _is_ambiguous(sentence, matches, chosen) else matches[chosen]


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


def _without_breakdown(sentence: str, matches: list[Match], levels: list[int]) -> tuple[list[Match], list[int]]:
    """Leaves out what only details or restates a number: "72 clips: 48 in April and 24 in May", "$27, i.e. $9 each"."""
    colon = sentence.find(": ")
    restated = _RESTATED.search(sentence)
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
    return None if _is_ambiguous(sentence, matches, 0) else matches[0]


def _has_plain_number(span: str) -> bool:
    matches = list(NUMBER.finditer(span))
    return bool(matches) and (min(_levels(span, matches)) < 2)


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
    if any(set(join.strip(" $")) <= set("+-*/^:|") for join in joins) or "sqrt" in content:
        return None
    return choose(content)


def _is_expression(content: str) -> bool:
    return "\\sqrt" in content or "\\pi" in content


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


def is_truncated(text: str) -> bool:
    """Returns whether `text` stops in the middle of a calculation."""
    return _TRUNCATED.search(text[-20:]) is not None
