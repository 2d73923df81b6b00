"""Graders by name, and where graders that ran side by side disagree. Importing this imports no sympy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from grpo_gsm8k.errors import ConfigError, unknown_name
from grpo_gsm8k.rewards.protocol import Grader
from grpo_gsm8k.rewards.workers import DEFAULT_TIMEOUT_S
from grpo_gsm8k.types import Score

_CLASSES = {
    "gsm8k_strict": ("gsm8k_strict", "Gsm8kStrictGrader"),
    "numeric": ("numeric", "NumericGrader"),
    "math": ("math", "MathGrader"),
    "format": ("format", "FormatGrader"),
    "format_boxed": ("format", "BoxedFormatGrader"),
}
GRADERS: tuple[str, ...] = tuple(_CLASSES)
IN_PROCESSES = frozenset({"math"})  # graded in worker processes, within a time limit; the others take bounded time
JUDGES_OF_ANSWERS = frozenset({"gsm8k_strict", "numeric", "math"})


def make_grader(name: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Grader:
    """Returns a new grader; the caller closes it. `timeout_s` is of one grading, for those in processes of their own (math).

    Raises: ConfigError for a name that is not in `GRADERS`.
    """
    if name not in _CLASSES:
        raise ConfigError(unknown_name("grader", name, GRADERS))
    module, class_name = _CLASSES[name]
    made = getattr(importlib.import_module(f"grpo_gsm8k.rewards.{module}"), class_name)
    grader: Grader = made(timeout_s=timeout_s) if name in IN_PROCESSES else made()
    return grader


def disagree(scores: Mapping[str, Score]) -> bool:
    """Returns whether graders of one completion differ on correct versus not.

    `scores` is by grader name. Graders of format are left out (they judge something else), and so are those that failed
    (`error` is no verdict): see `failed`.
    """
    verdicts = {
        score.status == "correct" for name, score in scores.items() if name in JUDGES_OF_ANSWERS and score.status != "error"
    }
    return len(verdicts) > 1


def failed(scores: Mapping[str, Score]) -> list[str]:
    """Returns the names of the graders that failed on one completion, in order of name."""
    return sorted(name for name, score in scores.items() if score.status == "error")
