"""Where in a completion its answer stands.

Order: `<answer>` → `\\boxed{}` → `####` → "the answer is X" → the last statement that holds a number. Of several marks of one
kind the last counts. What is left out first: an invented next turn or question, and thinking.

- Thinking: what follows `</think>` is read. Where nothing follows, or a `<think>` is never closed, only a mark or an
  "answer is" statement inside the thinking counts, never just its last number.
- `<answer>` without an end is read to the end of the text. Its content is read by the same rules.
- `\\boxed{` without an end is read to the end of its line. An empty or placeholder box is passed over. Two boxes joined by
  "and", "or" or a comma are two answers.
- `####` that starts a Markdown heading (`#### Step 3: …`, `#### 3. Add`) is no mark; after a real one, the line's first
  number counts (`#### 7 dozen in 4 weeks` is 7), or the right-hand side of its last `=`.
- A check, a note or an explanation after the answer is left out, unless a new conclusion ("So …") follows it.
- A text that stops in the middle of a calculation (`= 3 +`), or whose last statement is that it cannot be solved, has no answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from grpo_gsm8k.rewards.numbers import MAX_NUMBER_CHARS, NUMBER, clean
from grpo_gsm8k.rewards.statements import choose, is_truncated, only_number, spelled_number

MAX_SEGMENT_CHARS = 2000


class Reading(NamedTuple):
    """What was read: the number's match (or the value of a spelled one), the answer's text, and where it stood."""

    match: re.Match[str] | None
    spelled: int | None
    text: str
    place: str


_TURN_END = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|im_start|end|end_of_text|start_header_id)\|>|</s>|<eos>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>"
)
_NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:\*\*|#{1,6}\s?)?(?:Question|Q|Problem|Human|User|Instruction)\s*\d*\s*(?:\*\*)?:", re.I)
_MARKED = re.compile(r"####\s*\$?-?[0-9]|\\boxed\{|</answer>|answer(?:\*\*)? ?(?:is|:)", re.I)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
_PLACEHOLDER = re.compile(r"[\s.…?_]*|(?:your |final |the )*(?:answer|number|result|value)(?: here)?", re.I)
_BOX_JOIN = re.compile(r"[\s$\\(),.]*(?:and|or|,|\\text\{\s*(?:and|or)\s*\})[\s$\\(),]*")
_HASH_NUMBER = re.compile(
    r"[\s:$*_`\\(\[{=]*(?:(?:the |final |answer|is)[\s:]*)*[$*_`\\(\[{=€£¥₹~]*-?\s?[$€£¥₹]?\s?\.?[0-9]",
    re.I,
)
_HASH_HEADING = re.compile(r"\s*\**\s*[0-9]{1,2}(?:\.\s+|\)\s*|:\s*|\s+[-–]\s+)\**[A-Za-z]")
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
_SENTENCE_START = r"(?:^|\n|[.!?)]\*{0,2}\s{1,4})[\s*#>_(-]{0,12}"
_CONCLUSION = re.compile(
    _SENTENCE_START + r"(?:Therefore|Thus|Hence|So|In conclusion|In total|Consequently|As a result|Overall)\b"
)
_CHECK = re.compile(
    _SENTENCE_START
    + r"(?:(?:now,? )?let(?:'s|’s| me| us)(?: now| quickly)? (?:verify|check|double)|verif(?:ication|y)|check(?:ing)?\b"
    r"|to (?:verify|check|double)|double[- ]check|we can (?:also )?(?:verify|check|confirm)|proof\b|(?:please )?note\b|notice\b"
    r"|i hope|hope this|let me know|remember\b|if you|feel free|would you|confidence\b"
    r"|(?P<why>explanation|reasoning|justification|this is because|because\b|here's (?:why|how)|rationale))",
    re.I,
)
_CHECK_HINTS = (
    "heck erif otice ope ecause xplan easoning ustif roof member ational onfid ere's".split() + ["ote", "f you", "et me", "eel free", "ould you"]
)
_QUESTION_HINTS = ("uestion", "roblem", "\nQ", "uman", "ser:", "nstruction", "\n#", "\n*", "\n ")
_SENTENCE = re.compile(r"(?<=[.!?])(?:\*\*|[\"')\]])*\s+(?=[A-Z\"'*(\\$#✓✅])")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|approx|Rs|No|i\.e|e\.g|a\.m|p\.m|etc)\.$")
_BULLET = re.compile(r"\s*(?:>\s*)*(?:[-*•+]\s+|\(?[0-9]{1,2}[.)]\s+(?=\S))?(?:#{1,6}\s*)?")
_BULLET_ONLY = re.compile(r"\s*[0-9]{1,2}[.)]\s*$")
_REFUSED = re.compile(r"\b(?:cannot|can't|can not|unable to|impossible to) (?:be )?(?:solve|determine|answer|calculate|find|give)", re.I)
_DIGIT = re.compile(r"[0-9０-９]")
_GOES_ON = re.compile(r"\**\s*(?:[-+*/=x]\s*[$0-9]|[a-z/ $]{0,20}[=*])|\s*(?:or|and)\s+\$?[0-9]")
_BRACE = re.compile(r"\\?[{}]")
_BARE_BOXED = re.compile(r"-?\$?[0-9][0-9,.]*")
_HASH_ALTERNATIVE = re.compile(r"[0-9]\s+(?:or|and)\s+\$?[0-9][0-9.,]*\s*$")


def _read(segment: str, place: str, explicit: bool) -> Reading | None:
    """Returns what a segment says, or None where it holds no number at all."""
    if explicit and len(segment) < MAX_NUMBER_CHARS and (match := NUMBER.fullmatch(segment)):
        return Reading(match, None, segment, place)
    text = clean(segment[:MAX_SEGMENT_CHARS]).strip()
    match = only_number(text.strip("* .$")) if explicit else choose(text)
    if match is not None:
        return Reading(match, None, match[0].strip(), place)
    if NUMBER.search(text):
        return Reading(None, None, text[:80], place)
    spelled = spelled_number(text, whole=explicit)
    return Reading(None, spelled[1], spelled[0], place) if spelled else None


def _balanced(text: str, start: int) -> tuple[str, int]:
    """Returns a group's content from just after its opening brace, and where it ends (the line's end if never closed)."""
    close = text.find("}", start)
    if close >= 0 and text.find("{", start, close) < 0:
        return text[start:close], close + 1
    depth = 1
    for brace in _BRACE.finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if not depth:
                return text[start : brace.start()], brace.end()
    line_end = text.find("\n", start)
    end = len(text) if line_end < 0 else line_end
    return text[start:end], end


def _boxes(text: str) -> list[tuple[str, int, int]]:
    """Returns the last two boxes that are not empty, the last first: content, start, end."""
    found: list[tuple[str, int, int]] = []
    starts = list(_BOX.finditer(text, max(0, len(text) - 20_000)))[-8:]
    for opening in reversed(starts):
        at = opening.end()
        if text[at : at + 1] == "{":
            content, end = _balanced(text, at + 1)
        else:
            bare = _BARE_BOXED.match(text, at)
            if bare is None:
                continue
            content, end = bare[0], bare.end()
        if not _PLACEHOLDER.fullmatch(content.strip().removeprefix("\\text{").removesuffix("}")):
            found.append((content, opening.start(), end))
            if len(found) == 2:
                break
    return found


def _from_box(text: str) -> Reading | None:
    boxes = _boxes(text)
    if not boxes:
        return None
    content, start, _ = boxes[0]
    reading = _read(content, "\\boxed{}", explicit=True) or Reading(None, None, content.strip()[:80], "\\boxed{}")
    if len(boxes) == 2 and _BOX_JOIN.fullmatch(text[boxes[1][2] : start]) and boxes[1][0].strip() != content.strip():
        return Reading(None, None, f"{boxes[1][0].strip()} and {content.strip()}"[:80], "\\boxed{}")
    return reading


def _from_hash(text: str) -> Reading | None:
    at = len(text)
    for _ in range(20):
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        line_end = text.find("\n", at)
        line = text[at + 4 : line_end if line_end >= 0 else len(text)][:120]
        if plain := NUMBER.fullmatch(line.strip()):
            return Reading(plain, None, plain[0], "####")
        if _HASH_NUMBER.match(clean(line)) and not _HASH_HEADING.match(line):
            cleaned = clean(line).replace("*", "") if "=" not in line else clean(line)
            match = choose(cleaned) if "=" in cleaned else NUMBER.search(cleaned)
            if "=" not in cleaned and (match is None or _HASH_ALTERNATIVE.search(cleaned)):
                match = only_number(cleaned.strip(" .$"))
            return Reading(match, None, (match[0] if match else cleaned)[:80].strip(), "####")
        at = max(at - 1, 0)
    return None


def _sentences(line: str) -> list[str]:
    parts: list[str] = []
    begin = 0
    for gap in _SENTENCE.finditer(line):
        if not _ABBREVIATION.search(line[max(begin, gap.start() - 8) : gap.start()]):
            parts.append(line[begin : gap.start()] + line[gap.start() : gap.end()].rstrip())
            begin = gap.end()
    parts.append(line[begin:])
    return parts


def _from_cue(text: str) -> Reading | None:
    """Returns the answer that the last "answer is X", "Answer: X" or "Final Answer" heading states."""
    at = len(text)
    for _ in range(8):
        at = max(text.rfind("nswer", 1, at) - 1, text.rfind("NSWER", 1, at) - 1)
        if at < 0:
            return None
        cue = _CUE.match(text, at)
        before = text[max(0, at - 20) : at]
        if cue is None or _NO_CUE_BEFORE.search(before) or _NO_CUE_AFTER.match(text, cue.end()):
            continue
        gap_start = cue.start("gap")
        body = text[gap_start:].lstrip(" \n:#_>")[:1500]
        reading, used = _cue_body(body, stated=cue["verb"] is not None)
        if reading is None:
            continue
        if not _STRONG_BEFORE.search(before):
            rest = body[used:]
            later = _CONCLUSION.search(rest)
            if later and _DIGIT.search(rest, later.end()) and not _CHECK.search(rest[: later.start() + 1]):
                return _last_statement(rest) or reading
        return reading
    return None


def _cue_body(body: str, stated: bool) -> tuple[Reading | None, int]:
    paragraph, _, _ = body.partition("\n\n")
    if not _DIGIT.search(paragraph) and not spelled_number(paragraph[:60], whole=stated):
        rest = body[len(paragraph) :].lstrip()
        if not rest or (paragraph.strip() and not paragraph.rstrip().endswith((":", "\\[", "$$", "**"))):
            return None, 0
        paragraph = rest.partition("\n\n")[0]
    used = body.find(paragraph) + len(paragraph)
    lines = [line for line in paragraph.split("\n") if line.strip()]
    sentences = [s for line in lines for s in _sentences(line)]
    for i, sentence in enumerate(sentences):
        if not _DIGIT.search(sentence):
            reading = _read(sentence, "answer statement", explicit=i == 0 and len(sentence) < 40)
            if reading:
                return reading, used
            continue
        cleaned = clean(sentence).lstrip("* ([")
        spent = body.find(sentence) + len(sentence)
        first = NUMBER.match(cleaned)
        if stated and first and not _GOES_ON.match(cleaned[first.end() :]):
            return Reading(first, None, first[0].strip(), "answer statement"), spent
        if not first and (len(sentences) - i > 2 or "=" in sentence or _CONCLUSION.search(paragraph)):
            return _last_statement(paragraph), used
        if _BULLET_ONLY.match(sentence) and i + 1 < len(sentences):
            continue
        return _read(sentence, "answer statement", explicit=bool(first) and len(cleaned) < 30), spent
    return None, 0


def _without_check(text: str) -> str:
    """Returns `text` up to a closing check, note or explanation, unless a new conclusion follows that."""
    for check in _CHECK.finditer(text):
        head = text[: check.start() + 1]
        if not _DIGIT.search(head) or (check["why"] and len(head) > 200):
            continue
        later = [m.end() for m in _CONCLUSION.finditer(text, check.end())]
        if later and _DIGIT.search(text, later[-1]):
            continue
        return head
    return text


def _last_statement(text: str) -> Reading | None:
    """Returns the answer in the last sentence that holds a number, checks and notes at the end left out."""
    if any(hint in text for hint in _CHECK_HINTS):
        text = _without_check(text)
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
        for sentence in reversed(_sentences(line[bullet.end() if bullet else 0 :][-MAX_SEGMENT_CHARS:])):
            if _REFUSED.search(sentence):
                return None
            if newest or _DIGIT.search(sentence):
                reading = _read(sentence, "last statement", explicit=False)
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
    if ":" in text and any(hint in text for hint in _QUESTION_HINTS):
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
            plain = None if has_mark else _read(content, "<answer>", explicit=True)
            return plain or read_answer(content, depth + 1) or Reading(None, None, content[:80], "<answer>")
    if "\\" in text and ("\\boxed" in text or "\\fbox" in text):
        boxed = _from_box(text)
        if boxed:
            return boxed
    if "####" in text:
        marked = _from_hash(text)
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
    boxes = _boxes(text)
    if boxes:
        return boxes[0][0].strip(), "\\boxed{}"
    if "####" in text:
        line = text.rpartition("####")[2].strip().partition("\n")[0].strip(" *$")
        if line and not _HASH_HEADING.match(line):
            return line, "####"
    return (text, place) if place else None


def closed_box(completion: str) -> str | None:
    """Returns the content of the last `\\boxed{…}` that is closed and not empty, or None."""
    for content, _, end in _boxes(completion):
        if completion[end - 1 : end] == "}" and content.strip():
            return content.strip()
    return None
