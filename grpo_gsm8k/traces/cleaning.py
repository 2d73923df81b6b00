r"""Reasoning without what it says about the prompt's instruction, which a model that is trained on it was never given.

A sentence is dropped by the first of these rules that fits, and nothing else is:

- `instruction`: it holds words of the instruction itself ("reason step by step", "final answer within \boxed{}").
- `box`: it speaks of `\boxed`, or of an answer in a box, and calculates nothing: it holds no digit.
- `request`: it says what the user, the prompt or the instructions want of the form (step by step, format, final answer), and
  holds no digit.

A sentence ends at `.`, `!` or `?` before white space, or at the end of its line. Lines that lose nothing stay as they were,
but for white space at their ends; more than one empty line in a row becomes one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_INSTRUCTION = re.compile(
    r"\breason(?:ing)?,? step[- ]by[- ]step\b|\b(?:put|give|present|writ|plac|provid|stat|enclos)(?:e|ing|ting)?\b"
    r"[^.]{0,30}\banswer\b[^.]{0,30}(?:\\boxed|\bbox(?:ed)?\b)",
    re.I,
)
_BOX = re.compile(
    r"\\boxed|\bboxed\b.{0,30}\b(?:answer|format|notation)|\b(?:answer|result)\b.{0,40}\bbox(?:ed)?\b", re.I | re.S
)
_REQUEST = re.compile(
    r"\b(?:the (?:user|prompt|instructions?|system)|I (?:was|am|'m|have been) (?:asked|told|instructed))\b"
    r".{0,80}\b(?:step[- ]by[- ]step|format|final answer)\b",
    re.I | re.S,
)
_DIGIT = re.compile(r"[0-9]")
_EMPTY_LINES = re.compile(r"\n{3,}")
RULES = ("instruction", "box", "request")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A reasoning that was cleaned, and how many of its sentences each rule dropped."""

    text: str
    dropped: Counter[str]


def rule_of(sentence: str) -> str | None:
    """Returns the rule by which a sentence is dropped, or None."""
    if _INSTRUCTION.search(sentence) and not _states_a_result(sentence):
        return "instruction"
    if _DIGIT.search(sentence):
        return None
    if _BOX.search(sentence):
        return "box"
    return "request" if _REQUEST.search(sentence) else None


def _states_a_result(sentence: str) -> bool:
    r"""Whether a sentence has an equation or a filled box (`\boxed{18}`): then it is work, whatever else it says."""
    return re.search(r"=\s*\S*[0-9]|\\boxed\{[^{}]*[0-9]", sentence) is not None


def clean_reasoning(text: str) -> Cleaned:
    """Returns a reasoning without the sentences that only echo the instruction."""
    dropped: Counter[str] = Counter()
    lines = []
    for line in text.strip().split("\n"):
        sentences = _SENTENCE_END.split(line.strip())
        rules = [rule_of(sentence) for sentence in sentences]
        kept = [sentence for sentence, rule in zip(sentences, rules, strict=True) if rule is None]
        dropped.update(rule for rule in rules if rule is not None)
        if len(kept) == len(sentences):
            lines.append(line.rstrip())
        elif kept:
            lines.append(" ".join(kept))
    return Cleaned(_EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip(), dropped)
