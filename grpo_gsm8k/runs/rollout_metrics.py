"""What a step's rollouts say about rewards, groups and lengths: training records it, `runs verify` works it out again."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from grpo_gsm8k.types import Rollout


def rollout_metrics(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Returns the metrics of a step that follow from its rollouts alone, group by group."""
    rollouts = [rollout for group in groups for rollout in group]
    rewards = [rollout.score.value for rollout in rollouts]
    lengths = [rollout.num_sampled for rollout in rollouts]
    distinct = sum(has_distinct_rewards(group) for group in groups)
    answers = sum(len({rollout.score.answer for rollout in group}) > 1 for group in groups)
    metrics = {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "reward/zero_variance_groups": float(len(groups) - distinct),
        "groups/distinct_rewards": distinct / len(groups),
        "groups/distinct_answers": answers / len(groups),
        "rollout/num": float(len(rollouts)),
        "rollout/mean_tokens": statistics.fmean(lengths),
        "rollout/max_tokens": float(max(lengths)),
        "rollout/turns": statistics.fmean(len(rollout.turns) for rollout in rollouts),
        "rollout/truncated": sum(is_truncated(rollout) for rollout in rollouts) / len(rollouts),
    }
    for reason, count in Counter(rollout.stop_reason for rollout in rollouts).items():
        metrics[f"rollout/stop_{reason}"] = count / len(rollouts)
    return metrics | _by_source(rollouts) | _own_metrics(rollouts)


def in_groups(rollouts: Sequence[Rollout], group_size: int) -> list[list[Rollout]]:
    """Returns a step's rollouts, group after group; a problem drawn again has further samples, and they are another group."""
    return [list(group) for _, group in groupby(rollouts, key=lambda each: (each.problem.id, each.sample_index // group_size))]


def has_failed_grader(group: Sequence[Rollout]) -> bool:
    """Returns whether a rollout of the group has no reward, for a failed grader gives none: not a 0 to compare others by."""
    return any(rollout.score.status == "error" for rollout in group)


def has_distinct_rewards(group: Sequence[Rollout]) -> bool:
    """Returns whether a group's rewards, all known, differ; where they do not, nothing is better than anything else."""
    return not has_failed_grader(group) and len({rollout.score.value for rollout in group}) > 1


def is_truncated(rollout: Rollout) -> bool:
    """Returns whether a limit, not the model or the environment, ended the rollout."""
    return rollout.stop_reason in ("length", "max_turns", "max_tokens")


def _by_source(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The mean reward by what a mixture's problems were made by, where there is more than one."""
    found: dict[str, list[float]] = {}
    for rollout in rollouts:
        source = rollout.problem.meta.get("gym", {}).get("dataset", "")
        found.setdefault(source, []).append(rollout.score.value)
    return {f"reward/{name}/mean": statistics.fmean(values) for name, values in found.items()} if len(found) > 1 else {}


def _own_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    names = sorted({name for rollout in rollouts for name in rollout.metrics})
    values: Mapping[str, list[float]] = {
        name: [rollout.metrics[name] for rollout in rollouts if name in rollout.metrics] for name in names
    }
    return {f"env/{name}": statistics.fmean(given) for name, given in values.items()}
