"""The explicit marks of an answer: `\\boxed{}` and `####`, and how what they hold is read.

- `\\boxed{` without an end is read to the end of its line. An empty or placeholder box is passed over. Of several the last
  counts, but two joined by "and", "or" or a comma are two answers, which is none.
- `####` that starts a Markdown heading (`#### Step 3: …`, `#### 3. Add`) is no mark; after a real one, the line's first
  number counts (`#### 7 dozen in 4 weeks` is 7), or the right-hand side of its last `=`. A last line that starts otherwise
  (`#### Janet makes $18`) is read as a statement.
- A number that is only a piece of what stands there (`18x`, `18 + 2`, `18!`) is no answer: `rewards.touching`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from grpo_gsm8k.rewards.numbers import MAX_NUMBER_CHARS, NUMBER, clean
from grpo_gsm8k.rewards.spelled import spelled_number
from grpo_gsm8k.rewards.statements import choose, is_alternative, join_units, only_number
from grpo_gsm8k.rewards.touching import is_touched

MAX_SEGMENT_CHARS = 2000
MARKS = frozenset({"\\boxed{}", "####", "<answer>"})

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
_PLACEHOLDER = re.compile(r"[\s.…?_]*|(?:your |final |the )*(?:answer|number|result|value)(?: here)?", re.I)
_BOX_JOIN = re.compile(r"[\s$\\(),.]*(?:and|or|,|\\text\{\s*(?:and|or)\s*\})[\s$\\(),]*")
_HASH_NUMBER = re.compile(
    r"[\s:$*_`\\(\[{=]*(?:(?:the |final |answer|is)[\s:]*)*[$*_`\\(\[{=€£¥₹~]*-?\s?[$€£¥₹]?\s?\.?[0-9]", re.I
)
HASH_HEADING = re.compile(r"\s*\**\s*[0-9]{1,2}(?:\.\s+|\)\s*|:\s*|\s+[-–]\s+)\**[A-Za-z]")
_BRACE = re.compile(r"\\?[{}]")
_BARE_BOXED = re.compile(r"-?\$?[0-9][0-9,.]*")


class Reading(NamedTuple):
    """What was read: the number's match (or the value of a spelled one), the answer's text, and where it stood.

    `also` is the same amount in its larger unit, where the answer is a compound ("2 hours and 30 minutes": 150 and 150/60).
    """

    match: re.Match[str] | None
    spelled: int | None
    text: str
    place: str
    also: re.Match[str] | None = None


def read_segment(segment: str, place: str, explicit: bool, before: str = "") -> Reading | None:
    """Returns what a segment says, or None where it holds no number at all."""
    if explicit and len(segment) < MAX_NUMBER_CHARS and (match := NUMBER.fullmatch(segment)):
        return Reading(match, None, segment, place)
    text = clean(segment[:MAX_SEGMENT_CHARS]).strip()
    also = None
    if " " in text and (joined := join_units(text, before)) != text:
        also = _chosen(join_units(text, as_fraction=True), explicit, before)
        text = joined
    match = _chosen(text, explicit, before)
    if match is not None and is_touched(match.string, match.start(), match.end(), in_mark=place in MARKS):
        return Reading(None, None, text, place)
    if match is not None:
        return Reading(match, None, match[0].strip(), place, also)
    if NUMBER.search(text):
        return Reading(None, None, text, place)
    spelled = spelled_number(text, whole=explicit)
    return Reading(None, spelled[1], spelled[0], place) if spelled else None


def _chosen(text: str, explicit: bool, before: str) -> re.Match[str] | None:
    return only_number(text.strip("* .$")) if explicit else choose(text, before)


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
    reading = read_segment(content, "\\boxed{}", explicit=True, before=text[:start]) or Reading(
        None, None, content.strip(), "\\boxed{}"
    )
    if len(found) == 2 and _BOX_JOIN.fullmatch(text[found[1][2] : start]) and found[1][0].strip() != content.strip():
        return Reading(None, None, f"{found[1][0].strip()} and {content.strip()}", "\\boxed{}")
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
        cleaned = clean(line)
        if _HASH_NUMBER.match(cleaned) and not HASH_HEADING.match(line):
            return _hash_line(cleaned.replace("**", "").strip(), before=text[:at])
        is_last = line_end < 0 or not text[line_end:].strip()
        if (
            is_last
            and not HASH_HEADING.match(line)
            and (reading := read_segment(line, "####", explicit=False, before=text[:at]))
        ):
            return reading
        at = max(at - 1, 0)
    return None


def _hash_line(line: str, before: str) -> Reading:
    also = None
    if (joined := join_units(line, before)) != line:
        also = NUMBER.search(join_units(line, as_fraction=True))
        line = joined
    if "=" in line:
        match = choose(line)
    else:
        match = NUMBER.search(line)
        if match is None or is_alternative(line, match):
            match = only_number(line.strip(" .$"))
    if match is None or is_touched(match.string, match.start(), match.end(), in_mark=True):
        return Reading(None, None, line, "####")
    return Reading(match, None, match[0].strip(), "####", also)


def closed_box(completion: str) -> str | None:
    """Returns the content of the last `\\boxed{…}` that is closed and not empty, or None."""
    for content, _, end in boxes(completion):
        if completion[end - 1 : end] == "}" and content.strip():
            return content.strip()
    return None
