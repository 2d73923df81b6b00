"""The second half of a step: scored groups → advantages → one update or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grpo_gsm8k.algorithms.advantages import overlong_penalty, rollout_advantages
from grpo_gsm8k.algorithms.algorithm import Algorithm
from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
from grpo_gsm8k.algorithms.rollout_sequences import build_sequences
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.loops.collect import Group
from grpo_gsm8k.runs.rollout_metrics import has_distinct_rewards, has_failed_grader, is_truncated
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Rollout

OnFirstUpdate = Callable[[Sequence[TokenSequence], PolicyLoss], None]


@dataclass(frozen=True)
class PolicyUpdate:
    """How rollouts become updates.

    `max_tokens` is the most a rollout can sample (the constant denominator, and where the overlong penalty ends).
    `stale`: the rollouts were sampled by older weights than the learner has, whose log-probs are the engine's.
    """

    algorithm: Algorithm
    max_tokens: int
    num_updates: int
    num_minibatches: int
    correction: str
    correction_cap: float
    mask_truncated: bool
    stale: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Updated:
    """What a step's updates came to: metrics, the exact losses and gradient norms, seconds, each rollout's advantage.

    `num_learnable` rollouts were trained and had an advantage other than 0.
    """

    metrics: dict[str, float]
    losses: list[float]
    grad_norms: list[float]
    advantage_s: float
    update_s: float
    advantages: list[float]
    trained: list[bool]
    num_tokens: int
    num_learnable: int


@dataclass(frozen=True, slots=True)
class _Part:
    rollouts: list[Rollout]
    advantages: list[float]
    old: list[tuple[float, ...]] | None
    reference: list[tuple[float, ...]] | None


def group_advantages_of(groups: Sequence[Group], plan: PolicyUpdate) -> list[list[float]]:
    """Returns each rollout's advantage, group by group; penalties for length are part of the reward.

    A group with a failed grader has advantages of 0 and no part in those of the others (a batch's deviation).
    """
    buffer = plan.algorithm.overlong_tokens(plan.max_tokens)

    def reward(rollout: Rollout) -> float:
        penalty = overlong_penalty(rollout.num_sampled, plan.max_tokens, buffer, plan.algorithm.overlong_penalty)
        return rollout.score.value + penalty

    rewards = [[reward(rollout) for rollout in group] for group in groups if not has_failed_grader(group)]
    found: list[list[float]] = []
    if rewards:
        found = rollout_advantages(torch.tensor(rewards, dtype=torch.float64), plan.algorithm).tolist()
    following = iter(found)
    return [[0.0] * len(group) if has_failed_grader(group) else next(following) for group in groups]


def update_policy(
    plan: PolicyUpdate,
    groups: Sequence[Group],
    learner: Learner,
    step: int,
    lr: float,
    guarded: AbstractContextManager[None],
    on_first: OnFirstUpdate | None = None,
) -> Updated:
    """Takes the updates of a step; `on_first` sees the first one's log-probs before the weights change.

    Raises: ProofError; what the learner raises.
    """
    began = time.monotonic()
    advantages = group_advantages_of(groups, plan)
    kept = [index for index, group in enumerate(groups) if _is_compared(plan, group)]
    trained = [
        [index in kept and not (plan.mask_truncated and is_truncated(rollout)) for rollout in group]
        for index, group in enumerate(groups)
    ]
    rollouts = [r for index in kept for r, t in zip(groups[index], trained[index], strict=True) if t]
    values = [a for index in kept for a, t in zip(advantages[index], trained[index], strict=True) if t]
    group_of = [index for index in kept for t in trained[index] if t]
    flat = [value for group in advantages for value in group]
    trained_flat = [flag for group in trained for flag in group]
    advantage_s = time.monotonic() - began
    results: list[tuple[Mapping[str, float], Mapping[str, float], dict[str, float]]] = []
    stale = plan.stale and step > 0  # the first rollouts are sampled by the weights that are trained
    with guarded:
        for number, part in enumerate(_parts(plan, rollouts, values, group_of, learner, step, stale)):
            on_policy = number == 0 and not stale
            done = _update_once(plan, part, learner, lr, on_policy, None if results else on_first)
            if done is not None:
                results.append(done)
    metrics = _mean([{**update, **taken, **diagnostics} for update, taken, diagnostics in results])
    if stale:  # the old log-probs are the engine's: there is no other policy to compare those with
        metrics = {name: value for name, value in metrics.items() if not name.startswith("mismatch/")}
    losses = [update["loss"] for update, _, _ in results]
    norms = [taken["grad_norm"] for _, taken, _ in results]
    num_tokens = int(sum(update["num_trained"] for update, _, _ in results))
    seconds = time.monotonic() - began - advantage_s
    num_learnable = sum(flag and value != 0.0 for flag, value in zip(trained_flat, flat, strict=True))
    return Updated(metrics, losses, norms, advantage_s, seconds, flat, trained_flat, num_tokens, num_learnable)


def _is_compared(plan: PolicyUpdate, group: Group) -> bool:
    """Whether a group is trained on; one in which a grader failed never is."""
    return not has_failed_grader(group) and (plan.algorithm.zero_variance == "keep" or has_distinct_rewards(group))


def _parts(
    plan: PolicyUpdate,
    rollouts: list[Rollout],
    advantages: list[float],
    group_of: list[int],
    learner: Learner,
    step: int,
    stale: bool,
) -> list[_Part]:
    """Returns the minibatches of all passes, of whole groups; several updates need the log-probs from before the first."""
    if not rollouts:
        return []
    algorithm = plan.algorithm
    old: list[tuple[float, ...]] | None = None
    reference: list[tuple[float, ...]] | None = None
    needs_old = stale or plan.num_updates * plan.num_minibatches > 1
    if needs_old or algorithm.kl_beta > 0:
        sequences = build_sequences(rollouts, advantages, algorithm, plan.max_tokens)
        if stale:
            old = [_sampled_logprobs(rollout) for rollout in rollouts]
        elif needs_old:
            old = learner.logprobs(sequences)
        if algorithm.kl_beta > 0:
            reference = learner.logprobs(sequences, reference=True)
    parts = []
    members: dict[int, list[int]] = {}
    for place, group in enumerate(group_of):
        members.setdefault(group, []).append(place)
    for update in range(plan.num_updates):
        order = np.random.Generator(np.random.Philox(key=[plan.seed, step * plan.num_updates + update]))
        shuffled = list(members) if plan.num_minibatches == 1 else order.permutation(list(members)).tolist()
        for chosen in np.array_split(shuffled, plan.num_minibatches):
            places = [place for group in sorted(chosen.tolist()) for place in members[group]]
            if places:
                parts.append(
                    _Part(
                        [rollouts[place] for place in places],
                        [advantages[place] for place in places],
                        None if old is None else [old[place] for place in places],
                        None if reference is None else [reference[place] for place in places],
                    )
                )
    return parts


def _sampled_logprobs(rollout: Rollout) -> tuple[float, ...]:
    return tuple(value for value, sampled in zip(rollout.logprobs, rollout.sampled, strict=True) if sampled)


def _update_once(
    plan: PolicyUpdate, part: _Part, learner: Learner, lr: float, on_policy: bool, on_first: OnFirstUpdate | None
) -> tuple[Mapping[str, float], Mapping[str, float], dict[str, float]] | None:
    """One forward, backward and AdamW step; None where no rollout's gradient is other than zero."""
    algorithm = plan.algorithm
    also = {}
    if not on_policy:
        assert part.old is not None
        also["old_logprob"] = part.old
    if part.reference is not None:
        also["reference_logprob"] = part.reference
    sequences = build_sequences(part.rollouts, part.advantages, algorithm, plan.max_tokens, also=also)
    if algorithm.kl_beta == 0 and algorithm.entropy_coef == 0:
        # The others count in the denominators, which are in the weights; their own gradient is exactly zero.
        sequences = [s for s, advantage in zip(sequences, part.advantages, strict=True) if advantage != 0.0]
    if not sequences:
        return None
    loss = PolicyLoss(algorithm, on_policy=on_policy, correction=plan.correction, cap=plan.correction_cap)
    update = learner.forward_backward(sequences, loss)
    if on_first is not None:
        on_first(sequences, loss)
    return update, learner.optim_step(lr), loss.diagnostics()


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each metric over a step's updates; of what is named a maximum, the largest."""
    found: dict[str, float] = {}
    for name in sorted({name for row in rows for name in row}):
        values = [float(row[name]) for row in rows if name in row]
        found[name] = max(values) if "max" in name.rpartition("/")[2] else sum(values) / len(values)
    return found


def check_learnable(streak: int, patience: int, groups: Sequence[Group]) -> None:
    """Refuses to go on when nothing could be learned from any rollout for `patience` steps. Raises: ProofError."""
    if streak < patience:
        return
    solved = sum(all(rollout.score.status == "correct" for rollout in group) for group in groups)
    missed = sum(all(rollout.score.status != "correct" for rollout in group) for group in groups)
    why = "the task is solved" if solved > missed else "the task is too hard, or its prompt or its limits are wrong"
    raise ProofError(
        f"no rollout had an advantage for {streak} steps, so there is nothing to learn from; of the last {len(groups)} groups "
        f"{solved} were all right and {missed} all wrong: {why}; choose other problems, a larger group_size or temperature"
    )
