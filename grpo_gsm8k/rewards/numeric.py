"""`numeric`: does the number that a completion gives as its answer equal the gold?

Where the answer stands: `rewards.extraction`, `rewards.marks` and `rewards.endings`. Which number of a sentence it is:
`rewards.statements` and `rewards.levels`. What equals what: `rewards.numbers`. Each module's docstring states its rules.
"""

from __future__ import annotations

from grpo_gsm8k.rewards.extraction import read_answer
from grpo_gsm8k.rewards.numbers import canonical, number_matches, number_text, parse_gold
from grpo_gsm8k.rewards.protocol import InProcessGrader
from grpo_gsm8k.types import Score


class NumericGrader(InProcessGrader):
    """Reads `<answer>` → `\\boxed{}` → `####` → "the answer is" → the last statement, and compares exactly.

    `Score.answer` is the value in its one canonical form (`$18`, `18.00` and `18` are `18`; 0.75 and 3/4 are `3/4`;
    `20 percent` is `20%`), so that equal answers are equal votes; where no value was read it is the text, its white space
    normalised.
    """

    name = "numeric"
    version = "3"

    def grade(self, completion: str, gold: str) -> Score:
        """Returns the score of one completion; `error` only where `gold` itself is no number."""
        target = parse_gold(gold)
        if target is None:
            return Score(0.0, None, "error", f"the gold {gold[:40]!r} is not a number")
        reading = read_answer(completion)
        if reading is None:
            return Score(0.0, None, "unparsed", "no number found")
        match = reading.match
        if match is None:
            right = reading.spelled is not None and reading.spelled == target.value
            answer = " ".join(reading.text.split()) if reading.spelled is None else canonical(reading.spelled)
        else:
            right = number_matches(match, target, completion)
            right = right or (reading.also is not None and number_matches(reading.also, target))
            answer = number_text(match) or " ".join(reading.text.split())
        return Score(1.0, answer, "correct", reading.place) if right else Score(0.0, answer, "wrong", reading.place)
