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
EXACT_PROBLEMS = 200  # so many are tried one by one: an exact test's power does not only rise with each more

Power = Callable[[float, int, float], float]  # of (baseline, problems, effect)


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
    from grpo_gsm8k.algorithms.statistics import power_paired, power_unpaired
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

    paired = partial(power_paired, discordance=discordance, alpha=alpha)
    unpaired = partial(power_unpaired, alpha=alpha)
    assumed = f"discordance {discordance:g}" if discordance is not None else "discordance assumed from the baseline"
    click.echo(f"two-sided α {alpha:g}, one sample a problem" + (f", power {power:g}" if missing else ""))
    click.echo(f"  paired, the same problems ({assumed}): {answer(question, paired, power, discordance is not None)}")
    click.echo(f"  unpaired, other problems: {answer(question, unpaired, power, False)}")


def answer(question: Question, power_of: Power, wanted: float, any_baseline: bool) -> str:
    """Returns what the question leaves open, in words. `any_baseline`: the answer does not depend on the baseline."""
    from grpo_gsm8k.algorithms.statistics import smallest_difference

    n, baseline, effect = question.num_problems, question.baseline, question.effect
    if n is None:
        assert baseline is not None and effect is not None
        needed = problems_needed(power_of, baseline, effect, wanted)
        return "no number of problems shows it" if needed is None else f"{needed:,} problems"
    if effect is None:
        assert baseline is not None
        largest = 1.0 if any_baseline else max(baseline, 1 - baseline)
        found = smallest_difference(partial(power_of, baseline, n), largest, wanted)
        return "none can be shown with so few" if found is None else f"a difference of {100 * found:.2f} points"
    if baseline is None:
        return _baselines(power_of, n, effect, wanted, any_baseline)
    chance = power_of(baseline, n, effect)
    return f"seen with power {chance:.2f}" if chance > 0 else "cannot be shown with so few"


def problems_needed(power_of: Power, baseline: float, effect: float, wanted: float) -> int | None:
    """Returns the fewest problems that show the effect; None where a billion do not."""

    def enough(n: int) -> bool:
        return power_of(baseline, n, effect) >= wanted

    few = next((n for n in range(1, EXACT_PROBLEMS + 1) if enough(n)), None)
    if few is not None or not enough(MOST_PROBLEMS):
        return few
    low, high = EXACT_PROBLEMS, MOST_PROBLEMS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _baselines(power_of: Power, num_problems: int, effect: float, wanted: float, any_baseline: bool) -> str:
    """Says at which baselines the effect is seen, to a thousandth."""
    seen = [power_of(step / GRID, num_problems, effect) >= wanted for step in range(1 if any_baseline else GRID + 1)]
    if all(seen) or not any(seen):
        return f"{'seen' if all(seen) else 'not seen'} at any baseline"
    edges = [step for step in range(GRID + 1) if seen[step] and not (0 < step < GRID and seen[step - 1] and seen[step + 1])]
    parts = zip(edges[::2], edges[1::2], strict=True)
    return "seen at baselines of " + " and ".join(f"{low / GRID:.3f} to {high / GRID:.3f}" for low, high in parts)
