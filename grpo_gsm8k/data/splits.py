"""Which training problems are held out as validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from grpo_gsm8k.data.rows import duplicate_groups, normalised
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.types import Problem

METHOD = "questions ranked by sha256 of '<seed>/<question, case folded, white space single>'; the first eval_n are held out"


def hold_out(problems: Sequence[Problem], eval_n: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Returns (train, val), both in the published order; val has exactly `eval_n` problems.

    The choice depends on the questions and the seed alone: not on the rows' order, nor on any generator's state. A larger
    `eval_n` holds out the same problems and more. Problems that ask the same question stay on the same side.
    Raises: ConfigError when `eval_n` does not leave at least one training problem.
    """
    if not 0 <= eval_n < len(problems):
        raise ConfigError(f"eval_n is {eval_n}; allowed with {len(problems)} training problems: 0 to {len(problems) - 1}")
    ranked = sorted(duplicate_groups(problems), key=lambda group: _rank(problems[group[0]], seed))
    chosen: set[int] = set()
    for group in ranked:
        if len(chosen) + len(group) <= eval_n:
            chosen.update(group)
    if len(chosen) != eval_n:
        raise ConfigError(
            f"eval_n is {eval_n}, and the repeated questions of this data set cannot make up that number; use {len(chosen)}"
        )
    train = [problem for index, problem in enumerate(problems) if index not in chosen]
    val = [problem for index, problem in enumerate(problems) if index in chosen]
    return train, val


def _rank(problem: Problem, seed: int) -> str:
    text = f"{seed}/{normalised(problem.question)}"
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
