"""The explicit marks of an answer: `\\boxed{}` and `####`, and how what they hold is read.

- `\\boxed{` without an end is read to the end of its line. An empty or placeholder box is passed over. Of several the last
  counts, but two joined by "and", "or" or a comma are two answers, which is none.
- `####` that starts a Markdown heading (`#### Step 3: …`, `#### 3. Add`) is no mark; after a real one, the line's first
  number counts (`#### 7 dozen in 4 weeks` is 7), or the right-hand side of its last `=`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from grpo_gsm8k.rewards.numbers import MAX_NUMBER_CHARS, NUMBER, clean
from grpo_gsm8k.rewards.spelled import spelled_number
from grpo_gsm8k.rewards.statements import choose, join_units, only_number

MAX_SEGMENT_CHARS = 2000


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
_PLACEHOLDER = re.compile(r"[\s.…?_]*|(?:your |final |the )*(?:answer|number|result|value)(?: here)?", re.I)
_BOX_JOIN = re.compile(r"[\s$\\(),.]*(?:and|or|,|\\text\{\s*(?:and|or)\s*\})[\s$\\(),]*")
_HASH_NUMBER = re.compile(
    r"[\s:$*_`\\(\[{=]*(?:(?:the |final |answer|is)[\s:]*)*[$*_`\\(\[{=€£¥₹~]*-?\s?[$€£¥₹]?\s?\.?[0-9]", re.I
)
HASH_HEADING = re.compile(r"\s*\**\s*[0-9]{1,2}(?:\.\s+|\)\s*|:\s*|\s+[-–]\s+)\**[A-Za-z]")
_BRACE = re.compile(r"\\?[{}]")
_BARE_BOXED = re.compile(r"-?\$?[0-9][0-9,.]*")
_HASH_ALTERNATIVE = re.compile(r"[0-9]\s+(?:or|and)\s+\$?[0-9][0-9.,]*\s*$")


class Reading(NamedTuple):
    """What was read: the number's match (or the value of a spelled one), the answer's text, and where it stood."""

    match: re.Match[str] | None
    spelled: int | None
    text: str
    place: str


def read_segment(segment: str, place: str, explicit: bool, before: str = "") -> Reading | None:
    """Returns what a segment says, or None where it holds no number at all."""
    if explicit and len(segment) < MAX_NUMBER_CHARS and (match := NUMBER.fullmatch(segment)):
        return Reading(match, None, segment, place)
    text = clean(segment[:MAX_SEGMENT_CHARS]).strip()
    if " " in text:
        text = join_units(text, before)
    match = only_number(text.strip("* .$")) if explicit else choose(text, before)
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


def boxes(text: str) -> list[tuple[str, int, int]]:
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


def read_box(text: str) -> Reading | None:
    found = boxes(text)
    if not found:
        return None
    content, start, _ = found[0]
    reading = read_segment(content, "\\boxed{}", explicit=True) or Reading(None, None, content.strip()[:80], "\\boxed{}")
    if len(found) == 2 and _BOX_JOIN.fullmatch(text[found[1][2] : start]) and found[1][0].strip() != content.strip():
        return Reading(None, None, f"{found[1][0].strip()} and {content.strip()}"[:80], "\\boxed{}")
    return reading


def read_hash(text: str) -> Reading | None:
    at = len(text)
    for _ in range(20):
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        line_end = text.find("\n", at)
        line = text[at + 4 : line_end if line_end >= 0 else len(text)][:120]
        if plain := NUMBER.fullmatch(line.strip()):
            return Reading(plain, None, plain[0], "####")
        if _HASH_NUMBER.match(clean(line)) and not HASH_HEADING.match(line):
            cleaned = clean(line).replace("*", "") if "=" not in line else clean(line)
            match = choose(cleaned) if "=" in cleaned else NUMBER.search(cleaned)
            if "=" not in cleaned and (match is None or _HASH_ALTERNATIVE.search(cleaned)):
                match = only_number(cleaned.strip(" .$"))
            return Reading(match, None, (match[0] if match else cleaned)[:80].strip(), "####")
        at = max(at - 1, 0)
    return None


def closed_box(completion: str) -> str | None:
    """Returns the content of the last `\\boxed{…}` that is closed and not empty, or None."""
    for content, _, end in boxes(completion):
        if completion[end - 1 : end] == "}" and content.strip():
            return content.strip()
    return None
