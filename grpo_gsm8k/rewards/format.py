"""`format`: does a completion have the shape that was asked for? Says nothing about whether its answer is right.

- `format` (`r1_zero`): exactly one `</think>`, then nothing but white space, then one `<answer>…</answer>` that is not empty,
  then nothing but white space. The opening `<think>` may be missing (the `r1_zero` prompt ends with it); if it is there it is
  the first thing and the only one.
- `format_boxed`: at least one `\\boxed{…}` that is closed and not empty.

The score is 1 (correct) or 0 (wrong, with what is missing). The gold is not looked at.
"""

from __future__ import annotations

from grpo_gsm8k.rewards.marks import closed_box
from grpo_gsm8k.rewards.protocol import InProcessGrader
from grpo_gsm8k.types import Score


class FormatGrader(InProcessGrader):
    """Checks `<think>…</think> <answer>…</answer>`."""

    name = "format"
    version = "1"

    def grade(self, completion: str, gold: str) -> Score:
        """Returns 1 for the r1_zero shape, 0 with the first thing that is missing otherwise."""
        fault, answer = _r1_zero_fault(completion)
        if fault:
            return Score(0.0, answer, "wrong", fault)
        return Score(1.0, answer, "correct", "<think>…</think> <answer>…</answer>")


class BoxedFormatGrader(InProcessGrader):
    """Checks that there is a closed, non-empty `\\boxed{…}`."""

    name = "format_boxed"
    version = "1"

    def grade(self, completion: str, gold: str) -> Score:
        """Returns 1 where there is a closed, non-empty box, 0 otherwise."""
        content = closed_box(completion)
        if content is None:
            return Score(0.0, None, "wrong", "no closed \\boxed{…} that is not empty")
        return Score(1.0, content[:80], "correct", "\\boxed{…}")


def _r1_zero_fault(completion: str) -> tuple[str, str | None]:
    text = completion.strip()
    text = text.removeprefix("<think>")
    for tag in ("</think>", "<answer>", "</answer>"):
        if text.count(tag) != 1:
            return f"{text.count(tag)} {tag} where 1 is asked for", None
    if "<think>" in text:
        return "a second <think>", None
    thinking, _, rest = text.partition("</think>")
    between, opened, rest = rest.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    if not opened or not closed:
        return "the tags are not in the order </think> <answer> </answer>", None
    if between.strip() or after.strip():
        return "text outside <think> and <answer>", None
    if not answer.strip():
        return "an empty <answer>", None
    if not thinking.strip():
        return "an empty <think>", None
    return "", answer.strip()[:80]
