"""GRPO and its relatives: learn from how the rollouts of a problem compare.

    step = problems → rollouts (engine) → scores (environment) → advantages → updates (learner) → weights to the engine
           → ledger, metrics, evaluation, checkpoint

What a step samples is a function of (run seed, step, problem, sample), and the engine's weights are the learner's; so a run
that was killed goes on bit for bit. With overlap, the rollouts of the next step are sampled while this one's update runs, by
the weights before it; those in flight are part of a checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.algorithms.rollout_sequences import plain_sequence
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.loops.collect import Collected, Collector, collected_metrics
from grpo_gsm8k.loops.policy_sync import PolicySync
from grpo_gsm8k.loops.policy_update import OnFirstUpdate, PolicyUpdate, Updated, check_learnable, update_policy
from grpo_gsm8k.loops.rollouts import RolloutSampler
from grpo_gsm8k.loops.training import TrainingRecord
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.metrics import METRICS
from grpo_gsm8k.runs.rollout_files import read_rollouts, rollout_digests, write_rollouts
from grpo_gsm8k.runs.storage import digest, write_json
from grpo_gsm8k.types import Rollout

IN_FLIGHT = "rollouts_in_flight"
ORDER = "problem_order.json"
LEARNABLE = "rollout/learnable"


@dataclass(frozen=True)
class GrpoTask:
    """What is sampled, how it becomes updates, and when it is kept or given up.

    `seed_step` makes what randomness an update has (dropout) a function of the step; `check_ratio` sees the log-probs of
    the first update of each start (of the run, or of its resumption) before any weight has changed. Where that trains on
    rollouts of older weights (overlap, past step 0), `check_rollouts` sees the next step's instead, which the engine has just
    sampled with the learner's own weights; a run resumed at its last step has no such rollouts, and is not checked.
    """

    collector: Collector
    plan: PolicyUpdate
    num_groups: int
    num_steps: int
    learning_rate: Callable[[int], float]
    seed_step: Callable[[int], None]
    check_ratio: OnFirstUpdate
    check_rollouts: Callable[[Sequence[Rollout]], None]
    save_rollouts_every: int
    patience: int


def train(
    task: GrpoTask,
    run: RunDirectory,
    learner: Learner,
    rollouts: RolloutSource,
    sync: PolicySync,
    record: TrainingRecord,
) -> dict[int, dict[str, Any]]:
    """Returns the evaluations by step, having trained to the end. Raises: ProofError; what the parts raise."""
    streak, is_checked = _streak(run), False
    for step in record.steps():
        began = time.monotonic()
        found = rollouts.take(step)
        rollouts.begin(step + 1)
        task.seed_step(step)
        is_kept = step % task.save_rollouts_every == 0 or step + 1 == task.num_steps
        before = learner.logprobs([plain_sequence(rollout) for rollout in found.rollouts]) if is_kept else None
        guarded = record.keeping_failed_batch(step + 1)
        is_stale = task.plan.stale and step > 0
        if is_stale and not is_checked and (ahead := rollouts.ahead()):
            task.check_rollouts(ahead)
            is_checked = True
        check = None if is_checked or is_stale else task.check_ratio
        if check is not None:
            rollouts.wait()  # the check may use the engine
        done = update_policy(task.plan, found.groups, learner, step, task.learning_rate(step), guarded, check)
        is_checked |= bool(done.losses)
        rollouts.wait()
        publish_s = sync.publish(step + 1)
        if is_kept:
            write_rollouts(
                run, step + 1, found.rollouts, advantages=done.advantages, trained=done.trained, learner_logprobs=before
            )
        seconds = time.monotonic() - began
        metrics = _metrics(found, done, task.learning_rate(step), publish_s, seconds)
        record.after_update(step + 1, metrics, _stages(found, done), note=f"reward {metrics['reward/mean']:.3f}")
        streak = 0 if done.num_learnable else streak + 1
        check_learnable(streak, task.patience, found.groups)
    return record.finish()


class RolloutSource:
    """Gives each step its rollouts: sampled when they are asked for or, with `ahead`, while the step before is trained on."""

    def __init__(self, collector: Collector, sampler: RolloutSampler, num_groups: int, num_steps: int, ahead: bool) -> None:
        self._collector, self._sampler = collector, sampler
        self._num_groups, self._num_steps = num_groups, num_steps
        self._pool = ThreadPoolExecutor(1) if ahead else None
        self._next: Future[Collected] | None = None
        self._ready: Collected | None = None

    def take(self, step: int) -> Collected:
        """Returns the rollouts of a step."""
        self.wait()
        found, self._ready = self._ready, None
        return self._collector.collect(self._sampler, self._num_groups, step) if found is None else found

    def begin(self, step: int) -> None:
        """Begins to sample a step with the weights that the engine has now, where that is asked for."""
        if self._pool is not None and step < self._num_steps:
            self._next = self._pool.submit(self._collector.collect, self._sampler, self._num_groups, step)

    def ahead(self) -> list[Rollout]:
        """Returns the rollouts that were begun ahead, once they are there; none where none were."""
        self.wait()
        return [] if self._ready is None else self._ready.rollouts

    def wait(self) -> None:
        """Waits for what is being sampled. Raises: what sampling raised."""
        if self._next is not None:
            self._ready, self._next = self._next.result(), None

    def save(self, path: Path) -> None:
        """Writes the rollouts in flight, and what the order of problems depends on, into a checkpoint."""
        self.wait()
        write_json(path / ORDER, dict(self._collector.order.state()))
        if self._ready is not None:
            folder = RunDirectory(path / IN_FLIGHT)
            for number, group in enumerate(self._ready.groups):
                write_rollouts(folder, number, group)
            counts = {name: getattr(self._ready, name) for name in ("num_tokens", "num_sampled", "num_errors", "num_replaced")}
            write_json(path / IN_FLIGHT / "counts.json", counts)

    def restore(self, path: Path) -> None:
        """Takes up what `save` wrote."""
        self._collector.order.restore(json.loads((path / ORDER).read_bytes()))
        folder = path / IN_FLIGHT
        if folder.is_dir():
            files = sorted((folder / "rollouts").glob("step_*.jsonl"), key=lambda file: int(file.stem.removeprefix("step_")))
            groups = [[kept.rollout for kept in read_rollouts(file)] for file in files]
            self._ready = Collected(groups, **json.loads((folder / "counts.json").read_bytes()))

    def close(self) -> None:
        """Ends the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _streak(run: RunDirectory) -> int:
    """How many of the steps recorded last had nothing to learn from."""
    streak = 0
    for row in run.read(METRICS):
        if LEARNABLE in row:
            streak = 0 if row[LEARNABLE] > 0 else streak + 1
    return streak


def _metrics(found: Collected, done: Updated, lr: float, publish_s: float, seconds: float) -> dict[str, float]:
    names = {"loss": "train/loss", "entropy": "policy/entropy", "grad_norm": "optim/grad_norm"}
    names |= {"grad_norm_clipped": "optim/grad_norm_clipped"}
    shared = {names.get(name, name): value for name, value in done.metrics.items() if "/" in name or name in names}
    return {
        **collected_metrics(found),
        LEARNABLE: done.num_learnable / len(found.rollouts),
        "train/loss": 0.0,
        **shared,
        "train/num_trained": float(done.num_tokens),
        "train/num_updates": float(len(done.losses)),
        "optim/lr": lr,
        "time/sample_s": found.sample_s,
        "time/score_s": found.score_s,
        "time/advantage_s": done.advantage_s,
        "time/update_s": done.update_s,
        "time/publish_s": publish_s,
        "time/step_s": seconds,
        "time/tokens_per_s": found.num_tokens / seconds,
    }


def _stages(found: Collected, done: Updated) -> dict[str, Any]:
    return {
        **rollout_digests(found.rollouts),
        "advantage": digest(done.advantages),
        "loss": done.losses,
        "grad_norm": done.grad_norms,
    }
