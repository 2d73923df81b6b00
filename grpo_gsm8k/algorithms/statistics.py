"""What an eval's numbers may be trusted for: intervals, pass@k, maj@k, and the difference that could have been seen.

Shapes: P problems, N samples a problem. The headline interval is the bootstrap percentile interval over problems. It is empty
of information where all values are equal (all zeros give [0, 0]), so 0/1 values get Wilson's interval beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from grpo_gsm8k.errors import InputError

FloatArray = npt.NDArray[np.float64]

_MAX_MULTINOMIAL_LEVELS = 64
_CHUNK_DRAWS = 1 << 20


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


def minimum_detectable_difference(
    accuracy: float, num_problems: int, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Returns the smallest accuracy difference that two evals on *different* sets of P problems each would show, or None.

    Two-sided test at `alpha`, found with probability `power`: the d > 0 with d √n = z_{1-α/2} √(2 p̄ q̄) + z_power √(p1 q1 +
    p2 q2), where p1 = `accuracy`, p2 is d away from it towards 0.5's side (the harder direction), p̄ = (p1 + p2) / 2. None
    when no difference within [0, 1] would do. One 0/1 value a problem; several samples a problem can only lower it.
    Source: Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (3rd ed., 2003), ch. 4, solved for d.
    """
    z_alpha, z_power = _quantiles(accuracy, num_problems, alpha, power)
    p1, sign = accuracy, 1 if accuracy <= 0.5 else -1

    def surplus(d: float) -> float:
        p2 = p1 + sign * d
        mean = (p1 + p2) / 2
        need = z_alpha * math.sqrt(2 * mean * (1 - mean)) + z_power * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
        return d * math.sqrt(num_problems) - need

    return _first_root(surplus, 1 - p1 if sign > 0 else p1)


def minimum_detectable_difference_paired(
    accuracy: float, num_problems: int, *, correlation: float = 0.5, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Returns the smallest accuracy difference that two evals on the *same* P problems (McNemar's test) would show, or None.

    The d > 0 with d √n = z_{1-α/2} √ψ + z_power √(ψ - d²), where ψ, the share of problems on which the two disagree, is
    assumed to be 2 p (1-p) (1 - `correlation`), and at least d, since a difference is made of disagreements. The default
    correlation 0.5 assumes that half of the disagreement of two independent systems is gone. None when no d ≤ 1 would do.
    Source: Connor (1987), Biometrics 43:207, the sample size for McNemar's test, solved for d.
    """
    z_alpha, z_power = _quantiles(accuracy, num_problems, alpha, power)
    if not -1 <= correlation <= 1:
        raise InputError(f"correlation must be in -1..1, got {correlation}")
    assumed = min(1.0, 2 * accuracy * (1 - accuracy) * (1 - correlation))

    def surplus(d: float) -> float:
        discordance = max(assumed, d)
        return d * math.sqrt(num_problems) - z_alpha * math.sqrt(discordance) - z_power * math.sqrt(discordance - d * d)

    return _first_root(surplus, 1.0)


def _quantiles(accuracy: float, num_problems: int, alpha: float, power: float) -> tuple[float, float]:
    if not 0 <= accuracy <= 1 or num_problems < 1 or not 0 < alpha < 1 or not 0 < power < 1:
        raise InputError(
            "a detectable difference needs an accuracy in 0..1, a problem, and alpha and power between 0 and 1, got"
            f" {accuracy}, {num_problems}, {alpha}, {power}"
        )
    return NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)


def _first_root(surplus: Callable[[float], float], upper: float) -> float | None:
    """Returns where `surplus` turns from negative to positive in (0, upper], or None when it is still negative at `upper`."""
    if surplus(upper) < 0:
        return None
    low, high = 0.0, upper
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) < 0 else (low, middle)
    return high


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise InputError(f"k must be in 1..{num_samples} (the samples a problem has), got {k}")
