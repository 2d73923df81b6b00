"""What the report shows of a run that learns from rewards: its curves in groups, where its time goes, what its rounds kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from grpo_gsm8k.runs.report_curves import Curve, series_curve

Series = Mapping[str, Mapping[int, float]]

TITLES = {
    "reward/mean": "Mean reward",
    "reward/std": "Standard deviation of rewards",
    "rollout/mean_tokens": "Sampled tokens a rollout",
    "rollout/turns": "Turns a rollout",
    "rollout/truncated": "Share of rollouts cut by a limit",
    "rollout/errors": "Rollouts that failed",
    "policy/entropy": "Entropy, nats a token",
    "train/loss": "Loss",
    "optim/grad_norm": "Gradient norm before clipping",
    "optim/lr": "Learning rate",
    "policy/clip_low_fraction": "Tokens clipped below",
    "policy/clip_high_fraction": "Tokens clipped above",
    "policy/kl": "KL of the update, old to new (k3)",
    "policy/kl_reference": "KL to the reference",
    "policy/ratio_max": "Largest ratio",
    "groups/distinct_rewards": "Share of groups with different rewards",
    "groups/distinct_answers": "Share of groups with different answers",
    "groups/replaced": "Groups sampled again",
    "mismatch/mean_abs": "Mean |Δ log-prob|",
    "mismatch/p99_abs": "99th percentile of |Δ log-prob|",
    "mismatch/max_abs": "Largest |Δ log-prob|",
    "mismatch/kl": "KL, engine to trainer (k3)",
    "mismatch/effective_sample_size": "Effective sample size, share",
    "time/step_s": "Seconds a step",
    "time/tokens_per_s": "Tokens/s",
}
GROUPS = (
    (
        "Reward",
        ("reward/mean", "rollout/mean_tokens", "policy/entropy", "rollout/truncated", "rollout/turns", "rollout/errors"),
    ),
    ("Groups", ("groups/", "reward/std")),
    ("Reward by part", ("reward/", "env/")),
    ("Update", ("train/loss", "optim/grad_norm", "optim/lr", "policy/")),
    ("Trainer against engine", ("mismatch/",)),
    ("Speed", ("time/tokens_per_s", "time/step_s")),
)
# Of no use as a curve: constants, sums, and what another curve says.
_UNDRAWN = frozenset({"rollout/num", "rollout/max_tokens", "reward/zero_variance_groups", "policy/kl_k1", "policy/ratio_mean"})
_STAGES = ("sample", "score", "advantage", "update", "publish", "eval_wait")
_KEPT = ("ei/sampled", "ei/correct", "ei/kept")
_ONLY_HIGHEST = frozenset({"optim/lr"})


@dataclass(frozen=True)
class CurveGroup:
    """Curves under one heading; series that are the same at every step are not drawn, but named with their value."""

    heading: str
    curves: list[Curve]
    constants: list[tuple[str, float]]


def reward_curves(series: Series, num_steps: int, *, rate: str) -> list[CurveGroup]:
    """Returns the curves of a run that learns from rewards, each series once. `rate` says what tokens/s counts."""
    left = {key for key, values in series.items() if values} - _UNDRAWN
    groups = []
    for heading, wanted in GROUPS:
        curves: list[Curve] = []
        constants: list[tuple[str, float]] = []
        for name in wanted:
            found = sorted(key for key in left if key == name or (name.endswith("/") and key.startswith(name)))
            left -= set(found)
            for key in sorted(found, key=_place):
                title = rate if key == "time/tokens_per_s" else TITLES.get(key, key)
                values = list(series[key].items())
                if _is_constant([value for _, value in values]):
                    constants.append((title, values[-1][1]))
                else:
                    curve = series_curve(title, values, num_steps, lowest=key not in _ONLY_HIGHEST)
                    curves += [] if curve is None else [curve]
        if curves or constants:
            groups.append(CurveGroup(heading, curves, constants))
    return groups


def _is_constant(values: list[float]) -> bool:
    """Whether nothing is to be seen in a plot whose axis begins at zero."""
    return (len(values) > 1 or values == [0.0]) and max(values) - min(values) <= 1e-6 * max(map(abs, values))


def stage_times(series: Series) -> list[dict[str, Any]]:
    """Returns one entry a stage of a step: seconds in all, at the median step, and as a share of all steps' time."""
    whole = series.get("time/step_s", {})
    total = sum(whole.values())
    named = {stage: series.get(f"time/{stage}_s", {}) for stage in _STAGES}
    rows = [_stage(name.replace("_", " "), list(values.values()), total) for name, values in named.items() if values]
    inside = sum(sum(values.values()) for name, values in named.items() if name != "eval_wait")
    if total > inside > 0:  # with overlap, sampling runs beside the update, and the parts add up to more than the whole
        rest = [
            seconds - sum(values.get(step, 0.0) for name, values in named.items() if name != "eval_wait")
            for step, seconds in whole.items()
        ]
        rows.append(_stage("the rest", rest, total))
    return rows if total > 0 else []


def _stage(name: str, seconds: list[float], total: float) -> dict[str, Any]:
    share = sum(seconds) / total if total > 0 else None
    return {"name": name, "total_s": sum(seconds), "median_s": median(seconds), "share": share}


def stop_reasons(series: Series) -> list[dict[str, Any]]:
    """Returns how the rollouts of the first and the last step ended, as shares; a reason that no step had is not there."""
    steps = sorted(series.get("reward/mean", {}))
    if not steps:
        return []
    prefix = "rollout/stop_"
    return [
        {"name": key.removeprefix(prefix), "first": values.get(steps[0], 0.0), "last": values.get(steps[-1], 0.0)}
        for key, values in sorted(series.items())
        if key.startswith(prefix) and values
    ]


def rounds(series: Series) -> dict[str, Any]:
    """Returns the table of an expert iteration: what each round sampled, kept, and left out and why."""
    found = sorted(key for key in series if key.startswith("ei/"))
    names = [key for key in _KEPT if key in found] + [key for key in found if key not in _KEPT]
    steps = sorted({step for key in names for step in series[key]})
    rows = [{"step": step, "values": [series[key].get(step, 0.0) for key in names]} for step in steps]
    return {"names": [key.removeprefix("ei/").replace("_", " ") for key in names], "rows": rows}


def _place(key: str) -> int:
    known = list(TITLES)
    return known.index(key) if key in TITLES else len(known)
