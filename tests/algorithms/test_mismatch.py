"""Statistics of the difference between the trainer's log-probs and the engine's, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grpo_gsm8k.algorithms.mismatch import mismatch
from grpo_gsm8k.errors import ProofError


def test_two_that_agree_differ_by_nothing() -> None:
    found = mismatch([-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5])
    assert found.metrics() == {
        "mismatch/mean_abs": 0.0,
        "mismatch/p99_abs": 0.0,
        "mismatch/max_abs": 0.0,
        "mismatch/kl": 0.0,
        "mismatch/effective_sample_size": 1.0,
    }


def test_the_statistics_are_those_worked_out_by_hand() -> None:
    found = mismatch([-1.0, -2.0, -1.0], [-1.0 - math.log(2), -2.0, -1.0])  # weights 2, 1, 1
    assert found.mean_abs == pytest.approx(math.log(2) / 3)
    assert found.max_abs == pytest.approx(math.log(2))
    assert found.p99_abs == pytest.approx(0.98 * math.log(2))
    assert found.kl == pytest.approx((1 - math.log(2)) / 3)
    assert found.effective_sample_size == pytest.approx(16 / (3 * 6))


def test_the_kl_is_that_of_the_engine_against_the_trainer() -> None:
    rng = np.random.default_rng(0)
    engine, trainer = (rng.dirichlet(np.full(5, 3.0)) for _ in range(2))
    tokens = rng.choice(5, size=200_000, p=engine)
    exact = float((engine * np.log(engine / trainer)).sum())
    assert mismatch(np.log(trainer)[tokens], np.log(engine)[tokens]).kl == pytest.approx(exact, rel=0.02)


def test_one_token_with_all_the_weight_leaves_one_of_n_and_nothing_overflows() -> None:
    found = mismatch([0.0, -900.0, -900.0, -900.0], [-900.0, -900.0, -900.0, -900.0])
    assert found.effective_sample_size == pytest.approx(0.25)
    assert found.max_abs == 900 and found.kl == math.inf


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ProofError, match="shapes"):
        mismatch([-1.0], [-1.0, -2.0])
    with pytest.raises(ProofError, match="shapes"):
        mismatch([], [])
    with pytest.raises(ProofError, match=r"token 1 has the log-probs -2\.0 \(trainer\) and -inf \(engine\)"):
        mismatch([-1.0, -2.0], [-1.0, -math.inf])
