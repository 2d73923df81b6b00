"""How often McNemar's exact test shows a difference: by summing over all outcomes, which few problems ask for."""

from __future__ import annotations

from functools import lru_cache
from math import lgamma, log

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_PROBLEMS = 200  # beyond, the normal approximation is near and sums over all outcomes are slow


def exact_mcnemar_power(num_problems: int, discordance: float, difference: float, alpha: float) -> float:
    """Returns the chance that McNemar's exact two-sided test gives p < alpha on P ≤ MAX_PROBLEMS problems.

    The two evaluations disagree on a problem with chance `discordance` ≥ `difference`, and (discordance + difference) / 2 of
    it is a gain. Source: Duffy (1984), Biometrics 40:1005 (the unconditional power of the exact test).
    """
    if discordance == 0:
        return 0.0
    share_gained = min(1.0, (1 + difference / discordance) / 2)
    num_discordant = np.arange(num_problems + 1)
    chance_M = _binomial(np.full(num_problems + 1, num_problems), num_discordant, discordance)
    fewest_M = _critical_counts(alpha)[: num_problems + 1]
    reachable = np.flatnonzero((fewest_M >= 0) & (chance_M > 1e-15))
    if not reachable.size:
        return 0.0
    many, fewest = num_discordant[reachable, None], fewest_M[reachable, None]
    counts = np.arange(int(fewest.max()) + 1)[None, :]
    inside = counts <= fewest
    tails = _binomial(many, counts, share_gained) + _binomial(many, counts, 1 - share_gained)
    return float(chance_M[reachable] @ np.where(inside, tails, 0.0).sum(axis=1))


@lru_cache(maxsize=8)
def _critical_counts(alpha: float) -> IntArray:
    """Returns, by number of discordant problems M, the largest count on the smaller side that is shown; -1 where none is."""
    counts = np.arange(MAX_PROBLEMS + 1)
    tails = np.cumsum(_binomial(counts[:, None], counts[None, :], 0.5), axis=1)
    shown = (2 * tails < alpha) & (2 * counts[None, :] < counts[:, None])
    return np.asarray(shown.sum(axis=1) - 1, dtype=np.int64)


def _binomial(num: IntArray, count: IntArray, chance: float) -> FloatArray:
    """Returns the chance of `count` of `num`, 0 where count > num."""
    if chance in (0.0, 1.0):
        return np.asarray(count == (num if chance else 0 * num), dtype=np.float64)
    few = np.minimum(count, num)
    logs = _LOG_FACTORIAL[num] - _LOG_FACTORIAL[few] - _LOG_FACTORIAL[num - few] + few * log(chance)
    return np.where(count <= num, np.exp(logs + (num - few) * log(1 - chance)), 0.0)


_LOG_FACTORIAL = np.array([lgamma(number + 1) for number in range(MAX_PROBLEMS + 1)])
