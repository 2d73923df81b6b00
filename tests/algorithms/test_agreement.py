"""Agreement of graders and their quality against labels, by numbers worked out by hand."""

from __future__ import annotations

import pytest

from grpo_gsm8k.algorithms.agreement import agreements, quality
from grpo_gsm8k.algorithms.statistics import wilson_interval

# Cohen's own kind of table: 20 both yes, 5 only a, 10 only b, 15 neither of 50: agreement 0.7, by chance 0.5, kappa 0.4.
A = [True] * 25 + [False] * 25
B = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15


def test_kappa_is_that_of_a_table_worked_out_by_hand() -> None:
    (pair,) = agreements({"a": A, "b": B})
    assert (pair.both_correct, pair.only_a, pair.only_b, pair.neither) == (20, 5, 10, 15)
    assert pair.share == 0.7
    assert pair.kappa == pytest.approx(0.4)


def test_a_grader_that_failed_has_no_verdict_to_agree_with() -> None:
    (pair,) = agreements({"a": [True, None, False], "b": [True, True, None]})
    assert (pair.both_correct, pair.only_a, pair.only_b, pair.neither, pair.share) == (1, 0, 0, 0, 1.0)
    assert pair.kappa is None  # both say always the same: chance alone agrees fully
    (none,) = agreements({"a": [None], "b": [True]})
    assert none.share is None


def test_every_two_graders_are_compared_once() -> None:
    found = agreements({"a": A, "b": B, "c": A})
    assert [(pair.a, pair.b) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[1].kappa == 1.0


def test_precision_recall_and_f1_are_those_worked_out_by_hand() -> None:
    verdicts = [True, True, True, True, False, False, False, None, True]
    labels = [True, True, True, False, True, True, False, True, False]
    found = quality("g", verdicts, labels)
    assert (found.true_correct, found.false_correct, found.false_wrong, found.true_wrong, found.num_errors) == (3, 2, 2, 1, 1)
    assert found.precision == 3 / 5
    assert found.recall == 3 / 5
    assert found.f1 == 6 / 10
    assert found.precision_ci95 == wilson_interval(3, 5)


def test_a_share_of_nothing_is_none() -> None:
    found = quality("g", [False, False], [False, False])
    assert (found.precision, found.precision_ci95, found.recall, found.recall_ci95, found.f1) == (None, None, None, None, None)
