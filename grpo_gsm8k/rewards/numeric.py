"""`numeric`: does the number that a completion gives as its answer equal the gold?

Where the answer stands: `rewards.extraction`, `rewards.marks` and `rewards.endings`. Which number of a sentence it is:
`rewards.statements` and `rewards.levels`. What equals what: `rewards.numbers`. Each module's docstring states its rules.
"""

from __future__ import annotations

from grpo_gsm8k.rewards.extraction import read_answer
from grpo_gsm8k.rewards.numbers import number_matches, parse_gold
from grpo_gsm8k.rewards.protocol import InProcessGrader
from grpo_gsm8k.types import Score


class NumericGrader(InProcessGrader):
    """Reads `<answer>` → `\\boxed{}` → `####` → "the answer is" → the last statement, and compares exactly."""

    name = "numeric"
    version = "2"

    def grade(self, completion: str, gold: str) -> Score:
        """Returns the score of one completion; `error` only where `gold` itself is no number."""
        target = parse_gold(gold)
        if target is None:
            return Score(0.0, None, "error", f"the gold {gold[:40]!r} is not a number")
        reading = read_answer(completion)
        if reading is None:
            return Score(0.0, None, "unparsed", "no number found")
        if reading.match is not None:
            right = number_matches(reading.match, target)
        else:
            right = reading.spelled is not None and reading.spelled == target.value
        if right:
            return Score(1.0, reading.text, "correct", reading.place)
        return Score(0.0, reading.text, "wrong", reading.place)
