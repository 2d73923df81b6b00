"""Where in a completion its answer stands.

Order: `<answer>` → `\\boxed{}` → `####` → "the answer is X" → the last statement that holds a number. Of several marks of one
kind the last counts. What is left out first: an invented next turn or question, and thinking.

- Thinking: what follows `</think>` is read. Where nothing follows, or a `<think>` is never closed, only a mark or an
  "answer is" statement inside the thinking counts, never just its last number.
- `<answer>` without an end is read to the end of the text. Its content is read by the same rules.
- A check, a note, a breakdown or an aside after the answer is left out, and without a mark a text that was cut off has no
  answer (`rewards.endings`); nor has one that ends by saying that it cannot be solved.
"""

from __future__ import annotations

import re

from grpo_gsm8k.rewards.endings import CHECK, CONCLUSION, DIGIT, is_truncated, split_sentences, without_afterthought
from grpo_gsm8k.rewards.marks import HASH_HEADING, MAX_SEGMENT_CHARS, Reading, boxes, read_box, read_hash, read_segment
from grpo_gsm8k.rewards.numbers import NUMBER, clean
from grpo_gsm8k.rewards.spelled import spelled_number
from grpo_gsm8k.rewards.statements import is_alternative, join_units
from grpo_gsm8k.rewards.touching import is_touched

MAX_PLAIN_CHARS = 40
_TURN_END = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|im_start|end|end_of_text|start_header_id)\|>|</s>|<eos>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>"
)
_NEXT_QUESTION = re.compile(
    r"\n[ \t]{0,8}(?:\*\*|#{1,6}\s?)?(?:Question|QUESTION|Q|Problem|Human|User|Instruction)\s*\d{0,4}\s?(?:\*\*)?:"
)
_MARKED = re.compile(r"####\s*\$?-?[0-9]|\\boxed\{|</answer>|answer(?:\*\*)? ?(?:is|:)", re.I)
_CUE = re.compile(
    r"answers?(?:\*\*|__|\*|[\"}`])*\s*(?:(?:\([^()\n]{0,60}\)|(?:to|for|of|in|here|we|that)\b[^\n.:=?]{0,100}?)\s*)?"
    r"(?:(?P<verb>(?:is|are|was|would be|should be|will be|must be|comes to|equals|becomes)\b|=)"
    r"|(?P<colon>:)|(?P<heading>[*#_]*\s*\n))"
    r"(?P<gap>[\s*_:$`\"]*(?:(?:therefore|thus|then|simply|just|indeed|that|approximately|about|exactly|only|still|also|actually|now)"
    r"\b[\s*_:,]*)*)",
    re.I,
)
_NO_CUE_BEFORE = re.compile(
    r"(?:this|your|our|my|check|verify|to|can|first|part|partial|previous|an|intermediate|above)\W*$", re.I
)
_NO_CUE_AFTER = re.compile(
    r"(?:correct|right|wrong|not|reasonable|incorrect|consistent|verified|confirmed|given|found|obtained|in the)\b", re.I
)
_STRONG_BEFORE = re.compile(r"(?:final\s+|^[\s*#>_]*|\n[\s*#>_]*(?:the\s+)?)$", re.I)
_BULLET = re.compile(r"\s*(?:>\s*)*(?:[-*•+]\s+|\(?[0-9]{1,2}[.)]\s+(?=\S))?(?:#{1,6}\s*)?")
_LIST_ITEM = re.compile(r"\s*(?:[-*•]|[0-9]{1,2}[.)])\s")
_BULLET_ONLY = re.compile(r"\s*[0-9]{1,2}[.)]\s*$")
_REFUSED = re.compile(
    r"\b(?:cannot|can't|can not|unable to|impossible to) (?:be )?(?:solve|determine|answer|calculate|find|give)", re.I
)
_GOES_ON = re.compile(
    r"\**\s*(?:[-+*/=x]\s*[$0-9]|[a-z/ $]{0,20}[=*]|(?:plus|minus|times|divided by|choose|mod) [$0-9])|\s*(?:or|and)\s+\$?[0-9]"
)
_IS_THE_ANSWER = re.compile(
    r"([$€£]?-?[0-9][0-9.,/]*%?(?: [a-z]+)?) is (?:therefore |thus )?(?:the|our|my) (?:final |correct |right )?$"
)


def _from_cue(text: str) -> Reading | None:
    """Returns the answer that the last "answer is X", "Answer: X" or "Final Answer" heading states."""
    at = len(text)
    for _ in range(8):
        at = max(text.rfind("nswer", 1, at) - 1, text.rfind("NSWER", 1, at) - 1)
        if at < 0:
            return None
        cue = _CUE.match(text, at)
        before = text[max(0, at - 20) : at]
        if " is " in before and (named := _IS_THE_ANSWER.search(text[max(0, at - 60) : at])):
            return read_segment(named[1], "answer statement", explicit=True)
        if cue is None or _NO_CUE_BEFORE.search(before) or _NO_CUE_AFTER.match(text, cue.end()):
            continue
        gap_start = cue.start("gap")
        if cue["verb"] and len(text) - gap_start < MAX_PLAIN_CHARS:
            plain = NUMBER.fullmatch(text[gap_start:].lstrip(' \n*_:`"').rstrip(' \n*_.$`"'))
            if plain is not None:
                return Reading(plain, None, plain[0], "answer statement")
        body = text[gap_start:].lstrip(" \n:#_>")[:1500]
        reading, used = _cue_body(body, stated=cue["verb"] is not None)
        if reading is None:
            continue
        if not _STRONG_BEFORE.search(before):
            rest = body[used:]
            later = CONCLUSION.search(rest)
            goes_on = later.end() if later and DIGIT.search(rest, later.end()) else rest.rfind("=")
            if goes_on >= 0 and DIGIT.search(rest, goes_on) and not CHECK.search(rest[:goes_on]):
                return _last_statement(rest) or reading
        return reading
    return None


def _cue_body(body: str, stated: bool) -> tuple[Reading | None, int]:
    paragraph, _, _ = body.partition("\n\n")
    if not DIGIT.search(paragraph) and not spelled_number(paragraph[:60], whole=stated):
        rest = body[len(paragraph) :].lstrip()
        if not rest or (paragraph.strip() and not paragraph.rstrip().endswith((":", "\\[", "$$", "**"))):
            return None, 0
        paragraph = rest.partition("\n\n")[0]
    used = body.find(paragraph) + len(paragraph)
    lines = [line for line in paragraph.split("\n") if line.strip()]
    if len(lines) > 1 and _LIST_ITEM.match(lines[0]) and _LIST_ITEM.match(lines[1]):
        return _last_statement(body), len(body)
    sentences = [s for line in lines for s in split_sentences(line)]
    for i, sentence in enumerate(sentences):
        if not DIGIT.search(sentence):
            reading = read_segment(sentence, "answer statement", explicit=i == 0 and len(sentence) < 40)
            if reading:
                return reading, used
            continue
        cleaned = clean(sentence).lstrip("* ([")
        spent = body.find(sentence) + len(sentence)
        first = NUMBER.match(cleaned)
        if (
            stated
            and first
            and not _GOES_ON.match(cleaned[first.end() :])
            and not is_touched(cleaned, first.start(), first.end(), in_mark=False)
            and not is_alternative(cleaned, first)
            and join_units(cleaned) == cleaned
        ):
            return Reading(first, None, first[0].strip(), "answer statement"), spent
        if not first and (len(sentences) - i > 2 or "=" in sentence or CONCLUSION.search(paragraph)):
            return _last_statement(paragraph), used
        if _BULLET_ONLY.match(sentence) and i + 1 < len(sentences):
            continue
        return read_segment(sentence, "answer statement", explicit=bool(first) and len(cleaned) < 30), spent
    return None, 0


def _last_statement(text: str) -> Reading | None:
    """Returns the answer in the last sentence that holds a number, checks and notes at the end left out."""
    text = without_afterthought(text)
    end = len(text)
    newest = True
    for _ in range(60):
        if end <= 0:
            return None
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end]
        end = start - 1
        if not line.strip():
            continue
        bullet = _BULLET.match(line)
        sentences = split_sentences(line[bullet.end() if bullet else 0 :][-MAX_SEGMENT_CHARS:])
        for sentence in reversed(sentences):
            if ("can" in sentence or "nable" in sentence or "imposs" in sentence) and _REFUSED.search(sentence):
                return None
            if newest or DIGIT.search(sentence):
                before = text[: text.rfind(sentence, 0, start + len(line))]
                reading = read_segment(sentence, "last statement", explicit=False, before=before)
                if reading:
                    return reading
            newest = False
    return None


def _visible(text: str) -> tuple[str, bool]:
    """Returns the part of a completion that can hold its answer, and whether that part is only thinking."""
    if "<" in text:
        end = _TURN_END.search(text)
        if end and text[: end.start()].strip():
            text = text[: end.start()]
        if "</think>" in text:
            shown = text.rpartition("</think>")[2]
            return (shown, False) if shown.strip() else (text, True)
        if "<think>" in text and "<answer>" not in text:
            return text, True
    return text, False


def _without_next_question(text: str) -> str:
    if "Q" in text or "Problem" in text or "Human" in text or "User" in text or "Instruction" in text:
        for question in _NEXT_QUESTION.finditer(text):
            if _MARKED.search(text, 0, question.start()):
                return text[: question.start()]
    return text


def read_answer(completion: str, depth: int = 0) -> Reading | None:
    """Returns the answer of a completion by the order in this module's docstring, or None where there is none."""
    text, thinking = _visible(completion)
    text = _without_next_question(text)
    opened = text.rfind("<answer>")
    if opened >= 0 and depth < 2:
        content = text[opened + 8 :].partition("</answer>")[0].strip()
        if content:
            has_mark = "\\boxed" in content or "####" in content or len(content) > 80
            plain = None if has_mark else read_segment(content, "<answer>", explicit=True, before=text[:opened])
            return plain or read_answer(content, depth + 1) or Reading(None, None, content, "<answer>")
    if "\\" in text and ("\\boxed" in text or "\\fbox" in text):
        boxed = read_box(text)
        if boxed:
            return boxed
    if "####" in text:
        marked = read_hash(text)
        if marked:
            return marked
    cued = _from_cue(text)
    if cued or thinking or is_truncated(text):
        return cued
    return _last_statement(text[-6000:])


def marked_answer(completion: str) -> tuple[str, str] | None:
    """Returns the text of an explicit answer (`<answer>`, `\\boxed{}`, `####`) and its kind, or None where there is no mark.

    The text is as written, LaTeX and all: what the `math` grader compares.
    """
    text, _ = _visible(completion)
    text = _without_next_question(text)
    opened = text.rfind("<answer>")
    place = ""
    if opened >= 0:
        content = text[opened + 8 :].partition("</answer>")[0].strip()
        text, place = (content, "<answer>") if content else (text, "")
    found = boxes(text)
    if found:
        return found[0][0].strip(), "\\boxed{}"
    if "####" in text:
        line = text.rpartition("####")[2].strip().partition("\n")[0].strip(" *$")
        if line and not HASH_HEADING.match(line):
            return line, "####"
    return (text, place) if place else None
