"""Graders side by side, as the evaluation loop calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from grpo_gsm8k.loops.evaluate import Grade
from grpo_gsm8k.rewards.protocol import Grader
from grpo_gsm8k.rewards.registry import make_grader
from grpo_gsm8k.types import Problem, Score


@dataclass(frozen=True)
class Graders:
    """Graders by name, as the evaluation loop calls them, and their versions for the record."""

    grade: Mapping[str, Grade]
    versions: Mapping[str, str]


@contextmanager
def open_graders(names: Sequence[str]) -> Iterator[Graders]:
    """Opens graders, side by side, and closes them. `gym` is the generating data set's own scorer."""
    grade: dict[str, Grade] = {}
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        for name in names:
            if name == "gym":
                from grpo_gsm8k.rewards.gym import GymScorer

                scorer = GymScorer()
                stack.callback(scorer.close)
                grade[name], versions[name] = scorer.score_batch, scorer.version
                continue
            grader = make_grader(name)
            stack.callback(grader.close)
            grade[name], versions[name] = _by_gold(grader), grader.version
        yield Graders(grade, versions)


def _by_gold(grader: Grader) -> Grade:
    def grade(problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        return grader.grade_batch(texts, [problem.gold for problem in problems])

    return grade
