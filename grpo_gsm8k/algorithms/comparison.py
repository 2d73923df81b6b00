"""Two evaluations of the same problems, compared problem by problem: a pure function of who solved what.

Shapes: P problems. Pairing takes out how hard each problem is, so the same difference is seen with fewer problems than between
two evaluations of different ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np

from grpo_gsm8k.algorithms.statistics import bootstrap_interval, minimum_detectable_difference_paired
from grpo_gsm8k.errors import DataError, InputError

Solved = Mapping[str, Sequence[bool]]  # problem id: whether each of its samples is correct


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on P problems. All shares are in 0..1; `difference` is B's accuracy minus A's.

    `gained` and `lost` are the problems that B solves more and less often than A (with one sample each: McNemar's discordant
    counts). `discordance` is the mean squared difference of a problem (with one sample each: the share of discordant ones).
    `detectable` is the smallest difference that P problems with this discordance, or as much as that difference takes, would
    show (two-sided α 0.05, power 0.8).
    """

    num_problems: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    ci95: tuple[float, float]
    p: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    discordance: float
    detectable: float | None


def compare_solved(a: Solved, b: Solved, *, seed: int) -> Comparison:
    """Returns the comparison of B against A, paired by problem id; the order of the problems does not matter.

    The interval is the seeded percentile bootstrap of the mean difference over problems. Raises: DataError when the two do not
    hold the same problems, or a problem has no sample.
    """
    if a.keys() != b.keys() or not a:
        raise DataError(
            f"not the same problems: {len(a.keys() - b.keys())} only in the first, {len(b.keys() - a.keys())} only in the"
            f" second, {len(a.keys() & b.keys())} in both; a paired comparison needs the same ones"
        )
    empty = [problem for problem in a if not a[problem] or not b[problem]]
    if empty:
        raise DataError(f"problem {empty[0]} has no sample; every problem needs one")
    ids = sorted(a)
    share_a_P = np.array([sum(a[problem]) / len(a[problem]) for problem in ids])
    share_b_P = np.array([sum(b[problem]) / len(b[problem]) for problem in ids])
    # whole numbers, so that equal shares are equal: a problem's difference times what all numbers of samples divide
    whole = lcm(*{len(samples) for side in (a, b) for samples in side.values()})
    units_P = [whole // len(b[problem]) * sum(b[problem]) - whole // len(a[problem]) * sum(a[problem]) for problem in ids]
    differences_P = np.array(units_P) / whole
    discordance = float((differences_P**2).mean())
    return Comparison(
        num_problems=len(ids),
        accuracy_a=float(share_a_P.mean()),
        accuracy_b=float(share_b_P.mean()),
        difference=float(differences_P.mean()),
        ci95=bootstrap_interval(differences_P, seed=seed),
        p=sign_flip_p(units_P),
        gained=tuple(problem for problem, unit in zip(ids, units_P, strict=True) if unit > 0),
        lost=tuple(problem for problem, unit in zip(ids, units_P, strict=True) if unit < 0),
        discordance=discordance,
        detectable=detectable_difference(discordance, len(ids), exact=whole == 1),
    )


def sign_flip_p(differences_P: Sequence[int]) -> float:
    """Returns the exact two-sided p-value of paired differences (whole units) under "each could as well have the other sign".

    It is the share of all sign patterns whose sum is as far from 0 as the one seen, or further; by convolution, not sampling.
    With differences of -1, 0 and 1 it is McNemar's exact test.
    Source: Fisher, The Design of Experiments (1935), §21; McNemar (1947), Psychometrika 12:153.
    """
    sizes = [abs(unit) for unit in differences_P if unit]
    reach = sum(sizes)
    chance = np.zeros(2 * reach + 1)  # of each sum, from -reach to reach
    chance[reach] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # the ends stay zero until the last sizes reach them
    seen = abs(sum(differences_P))
    tails = chance[reach + seen :].sum() + (chance[: reach - seen + 1].sum() if seen else chance[:reach].sum())
    return min(1.0, float(tails))


def detectable_difference(discordance: float, num_problems: int, *, exact: bool = True) -> float | None:
    """Returns the smallest difference that P problems show at this discordance (two-sided α 0.05, power 0.8), or None.

    A difference that takes more discordance is reckoned with as much as it takes. None where not even a difference of 1 is
    shown. `exact`: one sample a problem, so that the test is McNemar's.
    """
    return minimum_detectable_difference_paired(0.5, num_problems, discordance=discordance, exact=exact)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for being several, in their order: each is to be held against α as it is.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise InputError(f"a p-value lies in 0..1, got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
