"""How a completion ends: cut off, or with something that stands after its answer and is no part of it.

- Cut off: in the middle of a calculation (`= 3 +`, `the total is 7 * 5`), after a word that nothing can end with ("so the"),
  after a comma, or in an unfinished sentence without a number that follows another ("She has $40. Now we need to find").
- A check, a note or an explanation after the answer, unless a new conclusion ("So …") follows it.
- A breakdown of an answer given before it: a closing Markdown table without a total after a bold number, or a closing list
  without `=` after "**47** pets.", "47 pets in total:" or "Here is the breakdown:".
- A closing aside: a last sentence wholly in parentheses, where a number stands before it.
"""

from __future__ import annotations

import re

from grpo_gsm8k.rewards.spelled import spelled_number

DIGIT = re.compile(r"[0-9０-９]")
_SENTENCE_START = r"(?:^|\n|[.!?)]\*{0,2}\s{1,4})[\s*#>_(-]{0,12}"
CONCLUSION = re.compile(
    _SENTENCE_START + r"(?:Therefore|Thus|Hence|So|In conclusion|In total|Consequently|As a result|Overall)\b"
)
_CONCLUSION_WORDS = ("So", "Therefore", "Thus", "Hence", "In ")
CHECK = re.compile(
    _SENTENCE_START
    + r"(?:(?:now,? )?let(?:'s|’s| me| us)(?: now| quickly)? (?:verify|check|double)|verif(?:ication|y)|check(?:ing)?\b"
    r"|to (?:verify|check|double)|double[- ]check|we can (?:also )?(?:verify|check|confirm)|proof\b"
    r"|(?P<aside>(?:please )?note\b|notice\b|i hope|hope this|let me know|remember\b|if you (?:have|need|want|would|like)"
    r"|feel free|would you|confidence\b)"
    r"|(?P<why>explanation|reasoning|justification|this is because|here's (?:why|how)|rationale))",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.!?])(?:\*\*|[\"')\]])*\s+(?=[A-Z\"'*(\\$#✓✅])")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|approx|Rs|No|i\.e|e\.g|a\.m|p\.m|etc)\.$")


def split_sentences(line: str) -> list[str]:
    parts: list[str] = []
    begin = 0
    for gap in _SENTENCE.finditer(line):
        if not _ABBREVIATION.search(line[max(begin, gap.start() - 8) : gap.start()]):
            parts.append(line[begin : gap.start()] + line[gap.start() : gap.end()].rstrip())
            begin = gap.end()
    parts.append(line[begin:])
    return parts


def _may_hold_check(t: str) -> bool:
    """Returns whether `CHECK` can match; written out because a loop or a regex over the hints takes five times as long."""
    return (
        ("heck" in t or "erif" in t or "ote" in t or "otice" in t or "ope " in t or "et me" in t or "roof" in t)
        or ("ecause" in t or "xplan" in t or "easoning" in t or "ustif" in t or "ational" in t or "ere's" in t or "here’s" in t)
        or ("member" in t or "f you" in t or "eel free" in t or "ould you" in t or "onfid" in t)
    )


def _closing_conclusion(text: str) -> int:
    """Returns where the last line begins if it concludes with a number, before which no check counts; 0 otherwise."""
    start = text.rfind("\n") + 1
    if start and text.startswith(_CONCLUSION_WORDS, start):
        ends = [conclusion.end() for conclusion in CONCLUSION.finditer(text, start - 1)]
        if ends and DIGIT.search(text, ends[-1]):
            return start
    return 0


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _without_check(text: str) -> str:
    """Returns `text` up to a closing check, note or explanation, unless a new conclusion follows that."""
    for check in CHECK.finditer(text):
        head = text[: check.start() + 1]
        if not DIGIT.search(head) or (check["why"] and len(head) > 200):
            continue
        if check["aside"] and DIGIT.search(text, _line_end(text, check.end())):
            continue
        later = [m.end() for m in CONCLUSION.finditer(text, check.end())]
        if later and DIGIT.search(text, later[-1]):
            continue
        return head
    return text


_LINES_SEEN = 60
_TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
_LIST_ITEM = re.compile(r"\s*(?:[-*•+]|[0-9]{1,2}[.)])\s")
_SUMMED = re.compile(
    r"total|\bsum\b|answer|overall|altogether|final|remain|\bleft\b|difference|\bnet\b|profit|result|\bso\b|=", re.I
)
_BOLD_NUMBER = re.compile(r"\*\*(?!\s)(?!(?:Step|Part|Day|Week|Case|Option|[0-9]+[.)]))[^*\n0-9]{0,40}[0-9][^*\n]{0,60}\*\*")
_IN_TOTAL = re.compile(r"[0-9].*\b(?:in (?:total|all)|altogether)(?:\*\*)?:(?:\*\*)?\s*$")
_BREAKDOWN = re.compile(
    r"\b(?:here(?:'s|’s| is| are)\b|breakdown\b|as follows\b|broken down\b|consist(?:s|ing) of\b)[^:]{0,80}:(?:\*\*)?\s*$", re.I
)


def _without_breakdown(text: str) -> str:
    """Returns `text` without a closing table or list that only breaks down an answer given before it."""
    lines = text.rstrip().rsplit("\n", _LINES_SEEN)
    end = len(lines)
    if _TABLE_ROW.match(lines[-1]):
        while end > 1 and _TABLE_ROW.match(lines[end - 1]):
            end -= 1
        first_cells = [line.split("|")[1] for line in lines[end + 1 :]]
        if end == len(lines) - 1 or any(_SUMMED.search(cell) for cell in first_cells):
            return text
    elif _LIST_ITEM.match(lines[-1]):
        while end > 1 and (not lines[end - 1].strip() or _LIST_ITEM.match(lines[end - 1])):
            end -= 1
        if end >= len(lines) - 1 or _SUMMED.search(lines[-1]):
            return text
    else:
        return text
    is_table = _TABLE_ROW.match(lines[-1]) is not None
    stated = [line for line in lines[1 if len(lines) > _LINES_SEEN else 0 : end] if line.strip()][-2:]
    if not stated:
        return text
    is_bold = any(_BOLD_NUMBER.search(line) for line in stated)
    is_opened = _BREAKDOWN.search(stated[-1][-300:]) is not None and DIGIT.search("".join(stated)) is not None
    if not is_bold and any("=" in line for line in lines[end:]):
        return text
    if is_opened or _IN_TOTAL.search(stated[-1][-300:]) or (is_table and is_bold):
        return "\n".join(lines[:end])
    return text


def _without_aside(text: str) -> str:
    """Returns `text` without a last sentence wholly in parentheses, where a number stands before it."""
    inside = text.rstrip().rstrip("*_.!")
    if not inside.endswith(")") or inside.endswith("\\)"):
        return text
    depth = 0
    for at in range(len(inside) - 1, max(-1, len(inside) - 400), -1):
        depth += (inside[at] == ")") - (inside[at] == "(")
        if not depth:
            before = text[:at].rstrip(" *_")
            own_line = before.endswith("\n") and inside[at + 1 : at + 3].isalpha()
            return before if (own_line or before.endswith((".", "!", "?", "✓", "✅"))) and DIGIT.search(before) else text
    return text


def without_afterthought(text: str) -> str:
    """Returns `text` without what stands after its answer and is no part of it (this module's docstring)."""
    if _may_hold_check(text[_closing_conclusion(text) :]):
        text = _without_check(text)
    last = text.rstrip()[-4:]
    if ")" in last:
        text = _without_aside(text)
    return _without_breakdown(text)


_CUT_OFF = re.compile(
    r"(?:[-+/=(×÷−:]|\s\*|[0-9] ?x|\\(?:times|cdot|div|frac|text|approx)\{?)$"
    r"|[0-9)%][a-z ]{0,12}(?:\s[-−/]\s|\s?(?:[+*×÷]|\\times|\\cdot|\\div)\s?|\sx\s)[$(]{0,2}[0-9](?:[0-9.,]*[0-9])?%?$"
    r"|(?<![\w'])(?:a|(?i:the|an|so|and|or|of|is|are|was|were|be|to|by|for|with|from|which|that|we|he|she|they|if|then|as|per|his|their"
    r"|its|your|because|therefore|thus|hence|multiply|add|subtract|divide|calculate|find|let's|plus|minus|equals|gives|giving|makes|making|leaving|than|but|now))$"
)
_STEP_HEADING = re.compile(r"[\s#*>_-]*Step\s+[0-9]{1,2}\b[^0-9]*$", re.I)


def is_truncated(text: str) -> bool:
    """Returns whether `text` stops in the middle: of a calculation, of a sentence, or after the heading of a step."""
    text = text.rstrip()
    tail = text[-80:]
    last = text[-1:]
    line_start = text.rfind("\n") + 1
    if text.startswith(("#", "*", ">", "-", "S", "s", " "), line_start) and _STEP_HEADING.match(text, line_start):
        return True
    if "\\" in text and (text.rfind("\\[") > text.rfind("\\]") or text.rfind("\\(") > text.rfind("\\)")):
        return True
    if last in ".!?":
        return False
    if _CUT_OFF.search(tail) or (last in "*_" and _CUT_OFF.search(tail.rstrip("*_$ "))):
        return True
    if last == "*" and text.count("**", line_start) % 2:
        return True
    if last == "," and "=" not in tail[-40:]:
        return True
    if tail.endswith(" $") and text.count("$", line_start) % 2:
        return True
    if not last.isalnum() and last not in "'’":
        return False
    line = text[line_start:][-400:]
    sentence = split_sentences(line)[-1]
    if (then := sentence.rfind(", so ")) >= 0 and not DIGIT.search(sentence, then):
        return spelled_number(sentence[then:], whole=False) is None
    if DIGIT.search(sentence) or not DIGIT.search(text) or spelled_number(sentence, whole=False):
        return False
    if len(sentence) < len(line):
        return True
    words = sentence.strip(" *->•0123456789.)")
    return line.startswith("#") or (words[:1].isupper() and " " in words and not CHECK.match(line))
