"""How far graders agree with each other, and how good each is against labels that a person gave.

A verdict is True (correct), False (not correct, or nothing that could be read), or None: the grader failed (no verdict).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from grpo_gsm8k.algorithms.statistics import wilson_interval

Verdict = bool | None


@dataclass(frozen=True)
class Agreement:
    """Two graders over the completions on which both have a verdict; `kappa` is None where chance alone would agree fully."""

    a: str
    b: str
    both_correct: int
    only_a: int
    only_b: int
    neither: int
    share: float | None
    kappa: float | None


@dataclass(frozen=True)
class Quality:
    """A grader against labels; a share of nothing is None, as is its interval. Intervals are Wilson's, 95 %."""

    grader: str
    true_correct: int
    false_correct: int
    false_wrong: int
    true_wrong: int
    num_errors: int
    precision: float | None
    precision_ci95: tuple[float, float] | None
    recall: float | None
    recall_ci95: tuple[float, float] | None
    f1: float | None


def agreements(verdicts: Mapping[str, Sequence[Verdict]]) -> list[Agreement]:
    """Returns the agreement of every two graders; `verdicts` holds one a completion, in the same order for all.

    Source (kappa): Cohen (1960), A coefficient of agreement for nominal scales.
    """
    return [_agreement(a, b, verdicts[a], verdicts[b]) for a, b in combinations(verdicts, 2)]


def _agreement(a: str, b: str, verdicts_a: Sequence[Verdict], verdicts_b: Sequence[Verdict]) -> Agreement:
    seen = Counter(pair for pair in zip(verdicts_a, verdicts_b, strict=True) if None not in pair)
    both, only_a, only_b, neither = (seen[pair] for pair in ((True, True), (True, False), (False, True), (False, False)))
    num = both + only_a + only_b + neither
    if num == 0:
        return Agreement(a, b, 0, 0, 0, 0, None, None)
    share = (both + neither) / num
    chance = ((both + only_a) * (both + only_b) + (neither + only_a) * (neither + only_b)) / num**2
    kappa = None if chance == 1 else (share - chance) / (1 - chance)
    return Agreement(a, b, both, only_a, only_b, neither, share, kappa)


def quality(grader: str, verdicts: Sequence[Verdict], labels: Sequence[bool]) -> Quality:
    """Returns a grader's precision, recall and F1 against labels (True: correct), one a verdict.

    Precision: of what the grader calls correct, how much is. Recall: of what is correct, how much it calls so.
    """
    seen = Counter(zip(verdicts, labels, strict=True))
    true_correct, false_correct, false_wrong = seen[True, True], seen[True, False], seen[False, True]
    precision, precision_ci95 = _share(true_correct, true_correct + false_correct)
    recall, recall_ci95 = _share(true_correct, true_correct + false_wrong)
    either = 2 * true_correct + false_correct + false_wrong
    return Quality(
        grader=grader,
        true_correct=true_correct,
        false_correct=false_correct,
        false_wrong=false_wrong,
        true_wrong=seen[False, False],
        num_errors=seen[None, True] + seen[None, False],
        precision=precision,
        precision_ci95=precision_ci95,
        recall=recall,
        recall_ci95=recall_ci95,
        f1=2 * true_correct / either if either else None,
    )


def _share(num: int, total: int) -> tuple[float | None, tuple[float, float] | None]:
    return (num / total, wilson_interval(num, total)) if total else (None, None)
