"""`runs power`: how many problems a difference needs, or what difference so many problems can show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click

from grpo_gsm8k.commands.from_config import CONTEXT

MOST_PROBLEMS = 10**9
GRID = 1000

Detectable = Callable[[float, int], float | None]  # (baseline, problems) to the smallest difference seen


@dataclass(frozen=True)
class Question:
    """What is asked of one way of comparing: baseline and effect as shares, None for what is to be found."""

    num_problems: int | None
    baseline: float | None
    effect: float | None


@click.command("power", context_settings=CONTEXT)
@click.option("--n", "num_problems", type=click.IntRange(1, MOST_PROBLEMS), help="Problems that are evaluated.")
@click.option("--baseline", type=click.FloatRange(0, 1), help="Accuracy of the run compared against, 0 to 1.")
@click.option("--effect", type=click.FloatRange(0, 1, min_open=True), help="Difference in accuracy, 0 to 1 (0.03 is 3 points).")
@click.option(
    "--discordance",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of problems on which the runs differ (paired); none: half that of independent runs at this baseline.",
)
@click.option(
    "--power", type=click.FloatRange(0.5, 1, max_open=True), default=0.8, show_default=True, help="Chance of seeing it."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Two-sided level.",
)
def command(
    num_problems: int | None,
    baseline: float | None,
    effect: float | None,
    discordance: float | None,
    power: float,
    alpha: float,
) -> None:
    """Say what --n, --baseline and --effect leave open: one of the three may be left out; given all, the power is said.

    Paired: both runs answer the same problems (McNemar's test). Unpaired: each answers its own. One sample a problem.
    """
    from grpo_gsm8k.algorithms.statistics import minimum_detectable_difference, minimum_detectable_difference_paired
    from grpo_gsm8k.errors import ConfigError

    if any(value is not None and math.isnan(value) for value in (baseline, effect, discordance, power, alpha)):
        raise ConfigError("nan is no number; baseline, effect, discordance, power and alpha are shares, 0 to 1")
    question = Question(num_problems, baseline, effect)
    missing = [name for name, value in (("--n", num_problems), ("--baseline", baseline), ("--effect", effect)) if value is None]
    if len(missing) > 1:
        raise ConfigError(f"{' and '.join(missing)} are not given; only one of --n, --baseline and --effect may be left out")
    if discordance is not None and effect is not None and discordance < effect:
        raise ConfigError(
            f"discordance = {discordance}: allowed is at least the effect ({effect}), which is made of discordance"
        )

    if baseline is not None and effect is not None and effect > max(baseline, 1 - baseline):
        raise ConfigError(
            f"effect = {effect}: no accuracy is that far from the baseline ({baseline}); allowed is 0 to the farther end"
        )

    def paired(power: float) -> Detectable:
        if discordance is None:
            return partial(minimum_detectable_difference_paired, alpha=alpha, power=power)
        correlation = 1 - 2 * discordance  # at accuracy 1/2 the discordance assumed is (1 - correlation) / 2
        return lambda _, n: minimum_detectable_difference_paired(0.5, n, correlation=correlation, alpha=alpha, power=power)

    def unpaired(power: float) -> Detectable:
        return partial(minimum_detectable_difference, alpha=alpha, power=power)

    assumed = f"discordance {discordance:g}" if discordance is not None else "discordance assumed from the baseline"
    click.echo(f"two-sided α {alpha:g}, one sample a problem" + (f", power {power:g}" if missing else ""))
    click.echo(f"  paired, the same problems ({assumed}): {answer(question, paired, power, discordance is not None)}")
    click.echo(f"  unpaired, other problems: {answer(question, unpaired, power, False)}")


def answer(question: Question, by_power: Callable[[float], Detectable], power: float, any_baseline: bool) -> str:
    """Returns what the question leaves open, in words. `any_baseline`: the answer does not depend on the baseline."""
    n, baseline, effect = question.num_problems, question.baseline, question.effect
    if n is None:
        assert baseline is not None and effect is not None
        needed = problems_needed(by_power(power), baseline, effect)
        return "no number of problems shows it" if needed is None else f"{needed:,} problems"
    if effect is None:
        assert baseline is not None
        found = by_power(power)(baseline, n)
        return "no difference would be seen" if found is None else f"a difference of {100 * found:.2f} points"
    if baseline is None:
        return _baselines(by_power(power), n, effect, any_baseline)
    return f"seen with power {achieved_power(by_power, baseline, n, effect):.2f}"


def problems_needed(detectable: Detectable, baseline: float, effect: float) -> int | None:
    """Returns the fewest problems that show the effect; None where a billion do not."""

    def enough(n: int) -> bool:
        found = detectable(baseline, n)
        return found is not None and found <= effect

    if not enough(MOST_PROBLEMS):
        return None
    low, high = 0, MOST_PROBLEMS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def achieved_power(by_power: Callable[[float], Detectable], baseline: float, num_problems: int, effect: float) -> float:
    """Returns the power with which the effect is seen, to 1e-6."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        found = by_power(middle)(baseline, num_problems)
        low, high = (middle, high) if found is not None and found <= effect else (low, middle)
    return low


def _baselines(detectable: Detectable, num_problems: int, effect: float, any_baseline: bool) -> str:
    """Says at which baselines the effect is seen, to a thousandth."""
    seen = []
    for step in range(1 if any_baseline else GRID + 1):
        found = detectable(step / GRID, num_problems)
        seen.append(found is not None and found <= effect)
    if all(seen) or not any(seen):
        return f"{'seen' if all(seen) else 'not seen'} at any baseline"
    edges = [step for step in range(GRID + 1) if seen[step] and not (0 < step < GRID and seen[step - 1] and seen[step + 1])]
    parts = zip(edges[::2], edges[1::2], strict=True)
    return "seen at baselines of " + " and ".join(f"{low / GRID:.3f} to {high / GRID:.3f}" for low, high in parts)
