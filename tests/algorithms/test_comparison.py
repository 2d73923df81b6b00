"""Paired comparison, against values of scipy 1.x and statsmodels (worked out apart from this code) and by hand."""

from __future__ import annotations

from itertools import product
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.algorithms.comparison import compare_solved, detectable_difference, holm, sign_flip_p
from grpo_gsm8k.errors import DataError, InputError

# gained, lost: statsmodels mcnemar(exact=True), which is scipy binomtest(gained, gained + lost)
MCNEMAR = [
    (10, 2, 0.03857421875),
    (0, 5, 0.0625),
    (7, 7, 1.0),
    (40, 12, 0.0001275387838557407),
    (300, 212, 0.00011638908240451828),
    (1, 0, 1.0),
    (30, 3, 1.4011748135089874e-06),
    (0, 0, 1.0),
]


@pytest.mark.parametrize(("gained", "lost", "p"), MCNEMAR)
def test_with_one_sample_a_problem_the_p_value_is_mcnemars_exact_one(gained: int, lost: int, p: float) -> None:
    assert sign_flip_p([1] * gained + [0] * 20 + [-1] * lost) == pytest.approx(p, rel=1e-9)


def test_with_several_samples_the_p_value_is_scipys_exact_permutation_test() -> None:
    assert sign_flip_p([3, -1, 2, 0, 4, -2, 1, 1, -4, 2, 3, -1]) == pytest.approx(0.404296875, rel=1e-12)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_the_p_value_is_the_share_of_all_sign_patterns_that_are_as_far_from_zero(units: list[int]) -> None:
    sums = [
        abs(sum(sign * unit for sign, unit in zip(signs, units, strict=True))) for signs in product((1, -1), repeat=len(units))
    ]
    assert sign_flip_p(units) == pytest.approx(sum(found >= abs(sum(units)) for found in sums) / len(sums), abs=1e-12)


def test_a_comparison_worked_out_by_hand() -> None:
    """A solves 1-5 of ten, B solves 3-9: two lost, four gained; McNemar 2 * (1 + 6 + 15) / 64."""
    a = {f"p{number}": [number <= 5] for number in range(1, 11)}
    b = {f"p{number}": [3 <= number <= 9] for number in range(10, 0, -1)}
    found = compare_solved(a, b, seed=0)
    assert (found.num_problems, found.accuracy_a, found.accuracy_b) == (10, 0.5, 0.7)
    assert found.difference == pytest.approx(0.2)
    assert found.gained == ("p6", "p7", "p8", "p9")
    assert found.lost == ("p1", "p2")
    assert found.discordance == pytest.approx(0.6)
    assert found.p == pytest.approx(2 * 22 / 64)
    assert found.ci95[0] < 0 < 0.2 < found.ci95[1]
    assert found.ci95 == compare_solved(dict(reversed(a.items())), b, seed=0).ci95


def test_swapping_the_two_turns_the_signs() -> None:
    a = {f"p{number}": [number % 3 == 0] for number in range(60)}
    b = {f"p{number}": [number % 4 != 0] for number in range(60)}
    there, back = compare_solved(a, b, seed=1), compare_solved(b, a, seed=1)
    assert there.difference == -back.difference
    assert (there.gained, there.lost, there.p) == (back.lost, back.gained, back.p)


def test_equal_shares_of_different_numbers_of_samples_are_equal() -> None:
    a = {"x": [True, False, False], "y": [True, True, True]}
    b = {"x": [True, True, False, False, False, False], "y": [True] * 5 + [False]}
    found = compare_solved(a, b, seed=0)
    assert (found.gained, found.lost) == ((), ("y",))
    assert found.difference == pytest.approx(-1 / 12)


def test_the_detectable_difference_solves_connors_equation() -> None:
    """d √n = 1.95996 √ψ + 0.84162 √(ψ - d²), for n = 400 and ψ = 0.2; and it can be no less than the discordance allows."""
    found = detectable_difference(0.2, 400)
    assert found is not None
    assert found * 20 == pytest.approx(1.959963984540054 * sqrt(0.2) + 0.8416212335729143 * sqrt(0.2 - found**2), rel=1e-9)
    assert detectable_difference(0.0, 400) == pytest.approx(detectable_difference(1e-9, 400))
    several = detectable_difference(0.04, 20, exact=False)  # a fifth on every problem is much, by one sample each it is not
    assert several is not None
    assert several * sqrt(20) == pytest.approx(1.959964 * 0.2 + 0.841621 * sqrt(0.04 - several**2), rel=1e-5)
    assert detectable_difference(0.5, 2) is None
    assert detectable_difference(0.5, 5, exact=False) is None  # the smallest p-value of 5 differences is 2 / 32


def test_holm_is_statsmodels_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_other_problems_and_bad_values_are_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="1 only in the first, 2 only in the second, 1 in both"):
        compare_solved({"a": [True], "b": [True]}, {"b": [True], "c": [True], "d": [True]}, seed=0)
    with pytest.raises(DataError, match="not the same problems"):
        compare_solved({}, {}, seed=0)
    with pytest.raises(DataError, match="problem a has no sample"):
        compare_solved({"a": []}, {"a": [True]}, seed=0)
    with pytest.raises(InputError, match=r"0\.\.1"):
        holm([1.5])
