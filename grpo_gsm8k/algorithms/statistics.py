"""What an eval's numbers may be trusted for: intervals, pass@k, maj@k, and the difference that could have been seen.

Shapes: P problems, N samples a problem. The headline interval is the bootstrap percentile interval over problems. It is empty
of information where all values are equal (all zeros give [0, 0]), so 0/1 values get Wilson's interval beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from grpo_gsm8k.algorithms.mcnemar_power import MAX_PROBLEMS, exact_mcnemar_power
from grpo_gsm8k.errors import InputError

FloatArray = npt.NDArray[np.float64]

_MAX_MULTINOMIAL_LEVELS = 64
_CHUNK_DRAWS = 1 << 20
_ROUNDING = 1e-12  # of differences and accuracies


def bootstrap_interval(
    values_P: npt.ArrayLike, *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean of `values_P` (one value a problem), resampling problems.

    With several samples a problem, pass each problem's mean over them: the problem is the cluster, as its samples are alike.
    The same values in another order give the same interval when they have at most 64 levels (0/1, or k of N correct).
    Memory stays near 20 MB. Raises: InputError for no values or one that is not finite.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    """
    values = np.asarray(values_P, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"a bootstrap interval needs one finite value a problem, got shape {values.shape}")
    if resamples < 1 or not 0 < level < 1:
        raise InputError(f"a bootstrap needs resamples ≥ 1 and 0 < level < 1, got {resamples} and {level}")
    means = _bootstrap_means(values, np.random.default_rng(seed), resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def accuracy_interval(means_P: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy, from each problem's mean over its samples: the bootstrap over problems.

    Where no sample is correct, or every one, a bootstrap would be empty and say nothing: then it is Wilson's, over problems.
    """
    if set(means_P) in ({0.0}, {1.0}):
        return wilson_interval(round(sum(means_P)), len(means_P))
    return bootstrap_interval(means_P, seed=seed)


def _bootstrap_means(values: FloatArray, rng: np.random.Generator, resamples: int) -> FloatArray:
    """Returns means of `resamples` draws with replacement; counting how often each level is drawn is the same law, sooner."""
    num = values.size
    levels, counts = np.unique(values, return_counts=True)
    if levels.size <= _MAX_MULTINOMIAL_LEVELS:
        drawn = rng.multinomial(num, counts / num, size=resamples)
        return np.asarray(drawn @ levels / num, dtype=np.float64)
    means = np.empty(resamples)
    rows = max(1, _CHUNK_DRAWS // num)
    kind = np.uint16 if num <= 1 << 16 else np.int64
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = values[rng.integers(0, num, size=(stop - start, num), dtype=kind)].mean(axis=1)
    return means


def wilson_interval(num_correct: int, num_problems: int, *, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion; never empty, so it stands at 0 and 1 where a bootstrap does not.

    Only for one 0/1 value a problem. Raises: InputError unless 0 ≤ num_correct ≤ num_problems and num_problems > 0.
    Source: Wilson (1927), JASA 22:209, as in Brown, Cai and DasGupta (2001), Statistical Science 16:101.
    """
    if not 0 <= num_correct <= num_problems or num_problems == 0:
        raise InputError(
            f"a Wilson interval needs 0 ≤ correct ≤ problems and problems > 0, got {num_correct} of {num_problems}"
        )
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, n = num_correct / num_problems, num_problems
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if num_correct == 0 else middle - half), (1.0 if num_correct == num_problems else middle + half)


def pass_at_k(num_correct_P: Sequence[int] | npt.NDArray[np.integer], num_samples: int, k: int) -> FloatArray:
    """Returns each problem's unbiased pass@k, 1 - C(N-c, k) / C(N, k), where c of its N samples are correct; shape [P].

    Computed as 1 - prod_{i=N-c+1..N} (1 - k/i), which neither overflows nor cancels. Its mean is the eval's pass@k.
    Raises: InputError unless 1 ≤ k ≤ num_samples and every count is in 0..num_samples.
    Source: Chen et al. (2021), arXiv:2107.03374, eq. 1 and figure 3.
    """
    counts = np.asarray(num_correct_P, dtype=np.int64)
    _check_k(k, num_samples)
    if counts.ndim != 1 or (counts.size and not (counts.min() >= 0 and counts.max() <= num_samples)):
        raise InputError(f"pass@k needs one count of correct samples a problem, in 0..{num_samples}")
    order = np.arange(num_samples, 0, -1, dtype=np.float64)
    fail = np.concatenate([[1.0], np.cumprod(np.maximum(1 - k / order, 0.0))])
    return np.asarray(1 - fail[counts], dtype=np.float64)


def majority_index(answers: Sequence[str | None], k: int) -> int | None:
    """Returns the index of the first of the first k answers that is the most frequent answer, or None if none was found.

    Answers vote as the strings they are, so they come normalised from the grader; None (unparsed) does not vote. Of equally
    frequent answers, the one that was given first wins.
    """
    _check_k(k, len(answers))
    votes = Counter(answer for answer in answers[:k] if answer is not None)
    if not votes:
        return None
    # Counter keeps insertion order and max() keeps the first of equals, which is the tie rule.
    return answers.index(max(votes, key=votes.__getitem__))


def maj_at_k(answers_PN: Sequence[Sequence[str | None]], values_PN: Sequence[Sequence[float]], k: int) -> FloatArray:
    """Returns each problem's maj@k: the grader's value of the majority answer among its first k samples; shape [P].

    `values_PN` are the grader's values of the samples; a problem without a single answer is 0. Its mean is the eval's maj@k.
    Raises: InputError when k is not in 1..N, or answers and values differ in shape.
    Source: Wang et al. (2023), Self-Consistency, arXiv:2203.11171 (majority vote); the tie rule is `majority_index`'s.
    """
    if len(answers_PN) != len(values_PN) or any(len(a) != len(v) for a, v in zip(answers_PN, values_PN, strict=True)):
        raise InputError("maj@k needs one value for each answer")
    chosen = [majority_index(answers, k) for answers in answers_PN]
    return np.array([0.0 if at is None else values[at] for at, values in zip(chosen, values_PN, strict=True)], dtype=np.float64)


def power_unpaired(accuracy: float, num_problems: int, difference: float, *, alpha: float = 0.05) -> float:
    """Returns the chance that two evals on *different* sets of P problems each show this difference (z-test, two-sided).

    Φ((d √n - z_{1-α/2} √(2 p̄ q̄)) / √(p1 q1 + p2 q2)), where p1 = `accuracy`, p2 is d away from it towards 0.5's side (the
    harder direction), p̄ = (p1 + p2) / 2. It is 0 for a difference that no accuracy has, and where not even all against none
    is shown by Fisher's exact test. One 0/1 value a problem; several samples a problem can only raise it.
    Source: Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (3rd ed., 2003), ch. 4.
    """
    _check_power(accuracy, num_problems, alpha)
    p1 = accuracy
    p2 = p1 + difference if accuracy <= 0.5 else p1 - difference
    if not -_ROUNDING <= p2 <= 1 + _ROUNDING or 2 * math.exp(-_log_choices(num_problems)) >= alpha:
        return 0.0
    p2 = min(1.0, max(0.0, p2))
    mean = (p1 + p2) / 2
    surplus = difference * math.sqrt(num_problems) - _z(alpha) * math.sqrt(2 * mean * (1 - mean))
    return _chance_below(surplus, math.sqrt(p1 * (1 - p1) + p2 * (1 - p2)))


def power_paired(
    accuracy: float,
    num_problems: int,
    difference: float,
    *,
    discordance: float | None = None,
    alpha: float = 0.05,
    exact: bool = True,
) -> float:
    """Returns the chance that two evals on the *same* P problems show this difference (McNemar's test, two-sided).

    ψ, the share of problems on which the two disagree, is `discordance`, else p (1 - p), which is half the disagreement of two
    independent systems; and at least d, since a difference is made of disagreements. Up to 200 problems it is the exact
    test's; beyond, or where not `exact` (several samples: ψ is a mean square, at least d²), Φ((d √n - z_{1-α/2} √ψ) /
    √(ψ - d²)). It is 0 for a difference that no accuracy has (of a given discordance: no discordance).
    Source: Connor (1987), Biometrics 43:207; Duffy (1984), Biometrics 40:1005.
    """
    _check_power(accuracy, num_problems, alpha)
    if discordance is not None and not 0 <= discordance <= 1:
        raise InputError(f"discordance must be in 0..1, got {discordance}")
    most = max(accuracy, 1 - accuracy) if discordance is None else 1.0
    if difference > most + _ROUNDING or 2 * 0.5 ** min(num_problems, 1000) >= alpha:
        return 0.0
    least = difference if exact else difference * difference
    psi = max(accuracy * (1 - accuracy) if discordance is None else discordance, min(least, 1.0))
    if exact and num_problems <= MAX_PROBLEMS:
        return exact_mcnemar_power(num_problems, psi, difference, alpha)
    surplus = difference * math.sqrt(num_problems) - _z(alpha) * math.sqrt(psi)
    return _chance_below(surplus, math.sqrt(max(0.0, psi - difference * difference)))


def minimum_detectable_difference(
    accuracy: float, num_problems: int, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Returns the smallest difference that `power_unpaired` says is shown with this power; None where none is."""
    _check_share(power)
    return smallest_difference(partial(power_unpaired, accuracy, num_problems, alpha=alpha), max(accuracy, 1 - accuracy), power)


def minimum_detectable_difference_paired(
    accuracy: float,
    num_problems: int,
    *,
    discordance: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    exact: bool = True,
) -> float | None:
    """Returns the smallest difference that `power_paired` says is shown with this power; None where none is."""
    _check_share(power)
    chance = partial(power_paired, accuracy, num_problems, discordance=discordance, alpha=alpha, exact=exact)
    return smallest_difference(chance, max(accuracy, 1 - accuracy) if discordance is None else 1.0, power)


def _check_power(accuracy: float, num_problems: int, alpha: float) -> None:
    _check_share(alpha)
    if not 0 <= accuracy <= 1 or num_problems < 1:
        raise InputError(f"power needs an accuracy in 0..1 and a problem, got {accuracy} and {num_problems}")


def _check_share(value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"alpha and power lie between 0 and 1, got {value}")


def _z(alpha: float) -> float:
    return NormalDist().inv_cdf(1 - alpha / 2)


def _chance_below(surplus: float, spread: float) -> float:
    return float(surplus >= 0) if spread == 0 else NormalDist().cdf(surplus / spread)


def _log_choices(num_problems: int) -> float:
    """The log of how many ways there are to split 2 P problems in halves: all against none is one of them."""
    return math.lgamma(2 * num_problems + 1) - 2 * math.lgamma(num_problems + 1)


def smallest_difference(chance: Callable[[float], float], largest: float, power: float) -> float | None:
    """Returns the smallest difference in (0, largest] whose chance is `power`, or None where not even the largest has it."""
    if chance(largest) < power:
        return None
    low, high = 0.0, largest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < power else (low, middle)
    return high


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise InputError(f"k must be in 1..{num_samples} (the samples a problem has), got {k}")
