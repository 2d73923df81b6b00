"""How much of an answer each number of a sentence looks like, by what stands around it.

-1 after "a total of"; 0 plain; 1 in a modifier ("for 5 days", "out of 20", "than 5", "at $2 each", "3-egg", "to reach 100",
"because …"); 2 as a label ("Step 3", "Day 5", "the WidgetMaster 9000"); 3 as an operand ("7 * 5", "a 2 x 8 board").
"""

from __future__ import annotations

import re

Match = re.Match[str]

OPERAND = 3

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
    "scenario round phase section page line group person level mile floor".split()
)
_PRODUCT = re.compile(r"(?:\b[A-Z][a-z]+[A-Z][A-Za-z]*|\b(?:[Tt]he|an?) [A-Z][a-z]+(?<!s)) $")
_OPERATION = re.compile(r"[^0-9=,.;:()]{0,20}\s?[*+]\s?[$(]{0,2}|\s?x\s?[$(]?|\s[-/]\s[$(]?")
_OPERATORS = frozenset("+*x-/")
_OUT_OF = re.compile(r"\s(?:[a-z]+\s)?of\s(?:the\s)?")
_GATHERING = frozenset("party class group team family crowd audience crew".split())
_IN_TOTAL = re.compile(r"[^,.;:=0-9]{0,30}\b(?:in (?:total|all)|altogether)\W*$")
_VERB_FOR = frozenset("run runs ran last lasts lasted sell sells sold enough sleeps slept".split())
_LEFT_WITH = frozenset("left end ends ended up remains remaining leaves leaving comes came".split())
_UNIT_RATE = re.compile(
    r"[^,;=]{0,25}?\b(?:each|apiece)\b|-[A-Za-z]|(?:st|nd|rd|th)\b|[^,;=0-9]{0,3}\s*of\s+(?:the\s+|\$)?[0-9]"
    r"|\s+times (?:as|more|the|larger|bigger|older|that|what|less|fewer)\b"
)
_PERCENT_OF = re.compile(
    r"\s*(?:of|off)\b(?!\s+(?:the|his|her|their|all|its|a|an|students|people|them|those|these|us)\b)"
    r"|\s*(?:off|discount|tax|tip|increase|decrease|interest)\b"
)
_NEEDS_TO = "needs need has have had able going wants used likely gets expected managed ready decided got".split()
_OPENER = re.compile(
    r"\b(?:because|since|if|when|given|assuming|compared|considering|based on|instead of|rather than|not|unlike|out of"
    r"|averaging|including|excluding|of which|who (?:has|had|is|was|gets|got)|as"
    r"|(?:after|before) (?:he|she|they|it|[A-Z][a-z]+)|(?:after|before|by|from|for) [a-z]+ing"
    r"|so that (?=[^,.;0-9]{0,60}\b(?:will|can|could|would|may|might|reach|be)[a-z]*\b)"
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


def words_left(text: str, start: int) -> list[str]:
    return text[max(0, start - 48) : start].lower().replace("*", " ").replace("(", " ").split()[-4:]


def _level(text: str, match: Match) -> int:
    """Returns how much of an answer this number looks like: -1 best, 0 plain, 1 modifier, 2 label."""
    words = words_left(text, match.start())
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
        if last not in ("of", "out") and _IN_TOTAL.match(text, end):
            return -1
        if (
            text[match.start() - len(words[-1]) - 1].isupper()
            and len(match["body"]) > 1
            and not money
            and _is_product(text, match)
        ):
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
        if head == "of" and words[0] in ("for", "with") and words[-2] in _GATHERING:
            return 1
    if after and (_UNIT_RATE.match(after) or (match["percent"] and _PERCENT_OF.match(after))):
        return 1
    return 0


def _is_product(text: str, match: Match) -> bool:
    """Returns whether the number names a product: "the WidgetMaster 9000"."""
    return _is_count(match) and _PRODUCT.search(text[max(0, match.start() - 40) : match.start()]) is not None


def _is_count(match: Match) -> bool:
    return match.lastgroup == "body" and match["body"].isdigit() and "$" not in match[0]


def number_levels(text: str, matches: list[Match]) -> list[int]:
    levels = [_level(text, match) for match in matches]
    if len(matches) == 1:
        return levels
    for i in range(1, len(matches)):
        if " of" in text and _OUT_OF.fullmatch(text, matches[i - 1].end(), matches[i].start()) and _is_count(matches[i - 1]):
            levels[i - 1], levels[i] = min(levels[i - 1], 0), max(levels[i], 1)
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
        begin, end = matches[i - 1].end(), matches[i].start()
        operation = _OPERATION.fullmatch(text, begin, end) if _OPERATORS.intersection(text[begin:end]) else None
        if operation and (levels[i - 1] != 2 or "-" not in operation[0]):
            levels[i - 1] = levels[i] = OPERAND
    for i in range(1, len(matches)):
        if "," in text[matches[i - 1].end() : matches[i].start()] and _COMPARED.match(text, matches[i].end()):
            levels[i] = max(levels[i], 1)
    return levels
