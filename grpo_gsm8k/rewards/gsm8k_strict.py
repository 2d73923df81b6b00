"""`gsm8k_strict`: the `####` convention as GSM8K was published with it.

Only the last `#### x` is read, where x is a plain number (commas and `$` stripped); it must equal the gold exactly.
Source: openai/grade-school-math, `grade_school_math/dataset.py` (which takes the first `####`; a completion that is cut at its
stop string holds one).
"""

from __future__ import annotations

import re

from grpo_gsm8k.rewards.numbers import canonical, parse_gold, plain_number
from grpo_gsm8k.rewards.protocol import InProcessGrader
from grpo_gsm8k.types import Score

_MARK = re.compile(r"####\s*(-?\$?-?[0-9][0-9.,]*)")


class Gsm8kStrictGrader(InProcessGrader):
    """Reads the last `#### x`, nothing else."""

    name = "gsm8k_strict"
    version = "2"

    def grade(self, completion: str, gold: str) -> Score:
        """Returns the score of one completion; `error` only where `gold` itself is no number."""
        target = parse_gold(gold)
        if target is None:
            return Score(0.0, None, "error", f"the gold {gold[:40]!r} is not a number")
        at = completion.rfind("####")
        while at >= 0:
            mark = _MARK.match(completion, at)
            if mark is not None:
                text = mark[1].replace("$", "").replace(",", "").rstrip(".")
                value = plain_number(text)
                right = value is not None and value == target.value
                answer = text if value is None else canonical(value)
                return Score(float(right), answer, "correct" if right else "wrong", "####")
            at = completion.rfind("####", 0, at)
        return Score(0.0, None, "unparsed", "no '#### <number>'")
