"""Intervals, pass@k, maj@k and detectable differences, against values worked out by hand."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.algorithms.comparison import sign_flip_p
from grpo_gsm8k.algorithms.statistics import (
    accuracy_interval,
    bootstrap_interval,
    maj_at_k,
    majority_index,
    minimum_detectable_difference,
    minimum_detectable_difference_paired,
    pass_at_k,
    power_paired,
    power_unpaired,
    wilson_interval,
)
from grpo_gsm8k.errors import InputError


def test_the_bootstrap_of_50_in_100_is_the_binomials_quantiles() -> None:
    """Resampling 100 values of which half are 1 is Binomial(100, 1/2), whose 2.5 and 97.5 % quantiles are 40 and 60."""
    assert bootstrap_interval([1.0] * 50 + [0.0] * 50, seed=0) == pytest.approx((0.40, 0.60), abs=1e-12)


@pytest.mark.parametrize("num_levels", [3, 500])
def test_the_bootstrap_agrees_with_plain_resampling_by_hand(num_levels: int) -> None:
    rng = np.random.default_rng(5)
    values = rng.permutation(np.resize(np.linspace(0, 1, num_levels), 500))
    means = [rng.choice(values, size=500).mean() for _ in range(4000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, seed=1) == pytest.approx(tuple(expected), abs=0.004)


def test_the_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval((rng.random(300) < 0.7).astype(float), seed=trial, resamples=1000)
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_same_seed_gives_the_same_interval_in_any_order() -> None:
    values = (np.arange(200) % 3 == 0).astype(float)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values[::-1], seed=3)
    assert len({bootstrap_interval(values, seed=seed, resamples=50) for seed in range(10)}) > 1


def test_copies_of_samples_do_not_narrow_the_interval_when_the_problem_is_the_cluster() -> None:
    one = (np.arange(100) % 4 == 0).astype(float)
    eight = np.repeat(one[:, None], 8, axis=1)
    assert bootstrap_interval(eight.mean(axis=1), seed=0) == bootstrap_interval(one, seed=0)


def test_all_zeros_give_an_empty_bootstrap_and_a_wilson_interval_that_is_not() -> None:
    assert bootstrap_interval([0.0] * 10, seed=0) == (0.0, 0.0)
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 10) == pytest.approx((0.0, z2 / (10 + z2)), abs=1e-12)
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1.0), abs=1e-12)


def test_an_accuracy_of_none_or_all_has_wilsons_interval_and_any_other_the_bootstraps() -> None:
    assert accuracy_interval([0.0] * 10, seed=0) == wilson_interval(0, 10)
    assert accuracy_interval([1.0] * 10, seed=0) == wilson_interval(10, 10)
    for means in ([0.0] * 9 + [0.5], [0.0, 1.0] * 5):
        assert accuracy_interval(means, seed=3) == bootstrap_interval(means, seed=3)


def test_wilson_of_5_in_10_is_the_textbooks() -> None:
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)


@pytest.mark.parametrize("distinct", [False, True])
def test_ten_thousand_problems_and_resamples_take_under_two_seconds_and_bounded_memory(distinct: bool) -> None:
    values = np.random.default_rng(0).random(10_000)
    values = values if distinct else (values < 0.7).astype(float)
    bootstrap_interval(values[:10], seed=0)
    started = time.process_time()
    bootstrap_interval(values, seed=0)
    assert time.process_time() - started < 2.0
    tracemalloc.start()
    bootstrap_interval(values, seed=0, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize("values", [[], [0.0, math.nan], [[0.0, 1.0]]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="one finite value a problem"):
        bootstrap_interval(values, seed=0)


def test_pass_at_k_by_hand() -> None:
    """5 samples, 2 correct: pass@2 = 1 - C(3,2)/C(5,2) = 0.7; pass@3 = 1 - 1/10; with 4 drawn one is always correct."""
    assert [float(pass_at_k([2], 5, k)[0]) for k in (1, 2, 3, 4, 5)] == pytest.approx([0.4, 0.7, 0.9, 1.0, 1.0])
    assert pass_at_k([0, 5], 5, 3).tolist() == [0.0, 1.0]


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_one_minus_the_ratio_of_binomials(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert pass_at_k([c], n, k)[0] == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_pass_at_k_is_stable_where_binomials_overflow() -> None:
    assert pass_at_k([1], 10_000, 100)[0] == pytest.approx(0.01, rel=1e-10)


@pytest.mark.parametrize(("counts", "n", "k"), [([1], 4, 5), ([1], 4, 0), ([5], 4, 1), ([-1], 4, 1)])
def test_pass_at_k_refuses_what_cannot_be(counts: list[int], n: int, k: int) -> None:
    with pytest.raises(InputError):
        pass_at_k(counts, n, k)


def test_the_majority_is_the_most_frequent_answer_and_of_equals_the_first_given() -> None:
    assert majority_index(["7", "9", "9", "7", "7"], 3) == 1
    assert majority_index(["7", "9", "9", "7", "7"], 5) == 0
    assert majority_index(["9", "7", "7", "9"], 4) == 0
    assert majority_index([None, None, "3"], 3) == 2
    assert majority_index([None, None, "3"], 2) is None


def test_maj_at_k_scores_the_majority_and_counts_no_answer_as_wrong() -> None:
    answers = [["7", "9", "9"], [None, None, None], ["1", "2", "2"]]
    values = [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert maj_at_k(answers, values, 3).tolist() == [1.0, 0.0, 0.0]
    assert maj_at_k(answers, values, 1).tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(InputError, match="k must be in"):
        maj_at_k(answers, values, 4)
    with pytest.raises(InputError, match="one value for each"):
        maj_at_k(answers, values[:2], 1)


def test_the_detectable_difference_inverts_the_textbook_sample_size() -> None:
    """0.5 against 0.6 takes (1.95996 √(2·.55·.45) + .84162 √(.25+.24))² / .1² = 387.3 a side."""
    assert minimum_detectable_difference(0.5, 387) == pytest.approx(0.1, abs=1e-4)
    assert minimum_detectable_difference(0.6, 387) == pytest.approx(0.1, abs=1e-4)


def test_the_paired_detectable_difference_by_hand() -> None:
    """p = .5 and correlation .5: ψ = .25; d = .05 takes (1.95996·.5 + .84162 √(.25-.0025))² / .05² = 782.5 problems."""
    assert minimum_detectable_difference_paired(0.5, 782) == pytest.approx(0.05, abs=2e-5)


def test_an_accuracy_of_zero_still_has_a_detectable_difference() -> None:
    """There every disagreement is a gain, ψ = d, and 6 are shown: P(Binomial(100, 0.0776) ≥ 6) = 0.8; by Connor
    √(1000 d) = 1.95996 + .84162 √(1-d), d = 0.00783."""
    found = minimum_detectable_difference_paired(0.0, 100)
    assert found is not None
    assert 1 - sum(math.comb(100, k) * found**k * (1 - found) ** (100 - k) for k in range(6)) == pytest.approx(0.8, abs=1e-9)
    assert minimum_detectable_difference_paired(0.0, 1000) == pytest.approx(0.007831, abs=1e-5)
    assert 0.05 < (minimum_detectable_difference(0.0, 100) or 0) < 0.1
    assert minimum_detectable_difference(0.0, 100) == pytest.approx(minimum_detectable_difference(1.0, 100))


def test_a_difference_of_that_size_is_found_four_times_in_five() -> None:
    n = 400
    delta = minimum_detectable_difference(0.5, n)
    assert delta is not None
    rng = np.random.default_rng(0)
    a, b = rng.binomial(n, 0.5, 20_000) / n, rng.binomial(n, 0.5 + delta, 20_000) / n
    pooled = (a + b) / 2
    found = np.abs(a - b) / np.sqrt(2 * pooled * (1 - pooled) / n) > 1.959964
    assert found.mean() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize(
    ("num_problems", "discordance", "difference"), [(8, 0.9, 0.8), (20, 0.5, 0.35), (60, 0.2, 0.2), (200, 0.21, 0.09)]
)
def test_with_few_problems_the_power_is_how_often_the_exact_test_rejects(
    num_problems: int, discordance: float, difference: float
) -> None:
    chances = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    drawn = np.random.default_rng(0).multinomial(num_problems, np.maximum(chances, 0), size=20_000)[:, :2]
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    rejects = np.array([sign_flip_p([1] * int(gained) + [-1] * int(lost)) < 0.05 for gained, lost in pairs])
    found = power_paired(0.5, num_problems, difference, discordance=discordance)
    assert found == pytest.approx(counts[rejects].sum() / 20_000, abs=0.01)


def test_five_problems_never_show_a_difference_and_no_difference_is_larger_than_accuracies_allow() -> None:
    """Five gains have the p-value 2 / 32; six, 2 / 64, and of six problems at .1 all are gains with chance .9 ** 6."""
    assert power_paired(0.1, 5, 0.9) == 0
    assert minimum_detectable_difference_paired(0.5, 5) is None
    assert power_paired(0.1, 6, 0.9) == pytest.approx(0.9**6)
    assert power_paired(0.5, 1000, 0.51) == power_unpaired(0.5, 1000, 0.51) == 0
    assert power_unpaired(0.0, 3, 1.0) == 0  # three of three against none: Fisher's p is 2 / 20
    assert power_unpaired(0.0, 4, 1.0) == 1


def test_too_few_problems_detect_nothing() -> None:
    assert minimum_detectable_difference(0.5, 1) is None
    assert minimum_detectable_difference_paired(0.5, 1) is None
    with pytest.raises(InputError):
        minimum_detectable_difference(1.2, 10)
