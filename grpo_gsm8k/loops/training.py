"""What every training loop does around its updates: ledger, metrics, evaluation, checkpoints, and exact resumption.

Steps are counted by the updates done: step 0 is the model as it came, and is always evaluated. A loop is

    for step in record.steps():          # 0-based index of the update
        ...                              # forward_backward, optim_step
        record.after_update(step + 1, metrics, stages)
    record.finish()
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.learners.protocol import Learner, NotFiniteError
from grpo_gsm8k.loops.eval_client import EvalClient, EvalOutcome
from grpo_gsm8k.runs.checkpoints import Checkpoint, Checkpoints, cut_back, is_eval, settle
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.metrics import LEDGER, METRICS, MetricsWriter
from grpo_gsm8k.runs.progress import Progress
from grpo_gsm8k.runs.storage import copy_folder, write_json

log = logging.getLogger("grpo_gsm8k")

HASHED_EVERY_STEP_BYTES = 16 * 2**20
PENDING = "pending_eval"
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Schedule:
    """When a training run evaluates and saves; both always happen at the last step, and evaluation at step 0."""

    num_steps: int
    eval_every: int
    save_every: int | None

    def evaluates(self, step: int) -> bool:
        """Returns whether the model is evaluated after `step` updates."""
        return step % self.eval_every == 0 or step == self.num_steps

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint is saved after `step` updates."""
        return step == self.num_steps or (self.save_every is not None and step % self.save_every == 0)


class TrainingRecord:
    """Keeps the record of a training run, and takes it up again where a checkpoint left it."""

    def __init__(
        self,
        run: RunDirectory,
        learner: Learner,
        evaluator: EvalClient,
        checkpoints: Checkpoints,
        metrics: MetricsWriter,
        schedule: Schedule,
        *,
        weights_bytes: int,
        save_extras: Callable[[Path], None],
        identity: Mapping[str, str],
        summarise: Callable[[Mapping[str, Any]], Mapping[str, float]],
    ) -> None:
        """`save_extras` writes what else belongs into a checkpoint (tokenizer, RNG); `identity` is recorded in it (hashes of
        config and data); `summarise` turns an evaluation's aggregate into flat metrics."""
        self._run, self._learner, self._evaluator = run, learner, evaluator
        self._checkpoints, self._metrics, self._schedule = checkpoints, metrics, schedule
        self._save_extras, self._identity, self._summarise = save_extras, identity, summarise
        self._hash_always = weights_bytes <= HASHED_EVERY_STEP_BYTES
        self._first_step = 0
        self._resumed = False
        self._evals: dict[int, dict[str, Any]] = {}

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Takes the run up at a checkpoint, or at its beginning where there is none: state, records, pending evaluations."""
        step = checkpoint.step if checkpoint is not None else 0
        self._resumed = True
        self._first_step = step
        pending = {}
        if checkpoint is not None:
            self._learner.load_state(checkpoint.path)
            folder = checkpoint.path / PENDING
            pending = {int(path.name.removeprefix("step-")): path for path in (folder.iterdir() if folder.is_dir() else ())}
        logged = {row["step"] for row in self._run.read(METRICS) if is_eval(row) and row["step"] <= step}
        kept = frozenset(logged if checkpoint is not None else logged & {0})
        for name in (METRICS, LEDGER):
            cut_back(self._run, name, step, kept)
        for path in (self._run.path / "eval").glob("step_*"):
            if int(path.name.split(".")[0].removeprefix("step_")) not in kept:
                path.unlink()
        for number in kept:
            self._evals[number] = json.loads((self._run.path / f"eval/step_{number}.json").read_bytes())
        for number, weights in sorted(pending.items()):
            if number not in kept:
                self._evaluator.restore(number, weights)
        if checkpoint is None and 0 not in kept:
            self._resumed = False
        for path in (self._run.path / "rollouts").glob("step_*"):
            if int(path.name.split(".")[0].removeprefix("step_")) > step:
                path.unlink()
        done = f"evaluations of steps {', '.join(map(str, sorted(kept)))} are" if kept else "no evaluation is"
        log.info("resumed at step %d; %s done", step, done)

    def steps(self) -> Iterator[int]:
        """Yields the index of each update that is left; evaluates step 0 first."""
        if not self._resumed and self._first_step == 0:
            self._evaluate(0)
        with Progress("training", self._schedule.num_steps, done=self._first_step, unit="steps") as self._progress:
            yield from range(self._first_step, self._schedule.num_steps)

    @contextmanager
    def keeping_failed_batch(self, step: int) -> Iterator[None]:
        """Writes failed_batch.json, the sequences in which a loss or gradient was not finite, when the body raises so."""
        try:
            yield
        except NotFiniteError as error:
            failed = {"step": step, "reason": str(error), "sequence_ids": list(error.sequence_ids)}
            self._run.write_json("failed_batch.json", failed)
            raise

    def after_update(self, step: int, metrics: Mapping[str, float], stages: Mapping[str, Any], note: str = "") -> None:
        """Records the step: `stages` are the ledger's digests and exact values, in the order in which they happen; `note` is
        for the console."""
        waited = self._evaluate(step) if self._schedule.evaluates(step) else 0.0
        weights = {"weights": self._learner.weights_digest()} if self._hashes_weights(step) else {}
        self._run.append(LEDGER, {"step": step, **stages, **weights})
        self._metrics.log(step, {**metrics, "time/eval_wait_s": waited})
        self._take(self._evaluator.poll())
        if self._schedule.saves(step):  # last, so that a checkpoint never knows of a step that the records do not
            self._save(step, weights)
        last = max(self._evals, default=None)
        shown = "" if last is None else f"  eval@{last} {self._evals[last]['accuracy']:.3f}"
        told = f"{note}  " if note else ""
        rate = metrics["time/tokens_per_s"]
        self._progress.update(note=f"{told}loss {metrics['train/loss']:.4f}  {rate:,.0f} tok/s{shown}")

    def _hashes_weights(self, step: int) -> bool:
        """Small weights are hashed at every step, large ones where they are read anyway: a hash must not cost an update."""
        return self._hash_always or self._schedule.evaluates(step) or self._schedule.saves(step)

    def finish(self) -> dict[int, dict[str, Any]]:
        """Waits for the evaluations that are left, puts the records in order, and returns the evaluations by step."""
        self._take(self._evaluator.drain())
        self._metrics.close()
        for name in (METRICS, LEDGER):
            settle(self._run, name)
        return dict(sorted(self._evals.items()))

    def _evaluate(self, step: int) -> float:
        """Publishes the weights and hands them to the evaluator; returns the seconds that training waited for a place."""
        admission = self._evaluator.admit(step, must_run=step in (0, self._schedule.num_steps))
        if admission.accepted:
            self._learner.publish_weights(self._evaluator.publish_dir(step))
            self._evaluator.submit(step)
        return admission.waited_s

    def _take(self, outcomes: list[EvalOutcome]) -> None:
        for outcome in outcomes:
            self._evals[outcome.step] = dict(outcome.aggregate)
            self._metrics.log(outcome.step, {**self._summarise(outcome.aggregate), **outcome.times})
            self._metrics.log_rows(outcome.step, self._run.read(f"eval/step_{outcome.step}.jsonl"))
            self._run.append(LEDGER, {"step": outcome.step, **{f"eval/{key}": value for key, value in outcome.stages.items()}})

    def _save(self, step: int, weights: Mapping[str, str]) -> None:
        with self._checkpoints.writing(step) as path:
            self._learner.save_state(path)
            self._save_extras(path)
            pending = {number: folder for number, folder in self._evaluator.pending().items() if number <= step}
            for number, folder in pending.items():
                copy_folder(folder, path / PENDING / f"step-{number}")
            write_json(path / STATE, {"step": step, "pending_eval": sorted(pending), **weights, **self._identity})
