"""Strict asynchronous evaluation, the trainer's side: weights go out, results come back tagged with their step.

    with EvalClient.start(spec, run, weights_bytes=...) as client:      # at once; the worker loads its engine meanwhile
        learner.publish_weights(client.publish_dir(step))
        client.submit(step)
        for outcome in client.poll(): ...                                # what is finished by now, in step order

Results equal those of a plain `evaluate` of the same weights, whatever the timing. When `max_pending` evaluations are not
finished, "wait" holds the trainer up until one is, and "skip" leaves the new one out and says so in eval/skipped.jsonl. A
worker that dies, fails or is silent for `hang_timeout_s` fails the run. However a `with` block ends, no process and no
published weights are left.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from grpo_gsm8k.data.jsonl import read_file
from grpo_gsm8k.loops.eval_process import WorkerProcess
from grpo_gsm8k.loops.eval_spec import EvalWorkerSpec
from grpo_gsm8k.runs.directory import RunDirectory, utc_now
from grpo_gsm8k.runs.storage import copy_folder, digest, storage_error
from grpo_gsm8k.runs.weight_folders import WeightFolders, choose_place

log = logging.getLogger("grpo_gsm8k")

LOG = "eval/worker.log"
SKIPPED = "eval/skipped.jsonl"
STARTS = "sys/eval_worker.jsonl"
MAX_PENDING = 2
HANG_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class EvalOutcome:
    """One step's evaluation: the aggregate of eval/step_<n>.json, the ledger's digests by stage, and times (`time/eval_…`)."""

    step: int
    aggregate: Mapping[str, Any]
    stages: Mapping[str, str]
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a step is evaluated (False: skipped, on the record), and how long the trainer waited for a place."""

    accepted: bool
    waited_s: float


class EvalClient:
    """Owns the worker process and the published weights. Every method is for the trainer's main thread."""

    def __init__(
        self,
        spec: EvalWorkerSpec,
        run: RunDirectory,
        folders: WeightFolders,
        *,
        max_pending: int,
        when_full: Literal["wait", "skip"],
        hang_timeout_s: float,
    ) -> None:
        """Starts the worker; see `start`, which also finds a place for the weights."""
        self._run, self._folders = run, folders
        self._max_pending, self._when_full = max_pending, when_full
        self._ready: dict[str, Any] | None = None
        self._ready_noted = False
        self._pending: dict[int, Path] = {}
        self._arrived: deque[EvalOutcome] = deque()
        self._admitted: dict[int, Admission] = {}
        sha256 = digest(read_file(Path(spec.eval_set_path)))
        told = {"spec": spec.to_json(), "eval_set_sha256": sha256, "hang_timeout_s": hang_timeout_s}
        place = {"weights_in": "ram" if folders.place.in_ram else "run directory", "why": folders.place.why}
        queue = {"max_pending": max_pending, "when_full": when_full}
        run.append(STARTS, {"event": "started", "at": utc_now(), **place, **queue, **told})
        self._worker = WorkerProcess(
            run.path / LOG,
            spec.worker_environment(os.environ),
            lock_fd=folders.lock_fd,
            hang_timeout_s=hang_timeout_s,
            on_message=self._take,
        )
        self._changed = self._worker.changed
        self._worker.send({**told, "parent": os.getpid(), "folder": str(folders.path)})

    @classmethod
    def start(
        cls,
        spec: EvalWorkerSpec,
        run: RunDirectory,
        *,
        weights_bytes: int,
        max_pending: int = MAX_PENDING,
        when_full: Literal["wait", "skip"] = "wait",
        hang_timeout_s: float = HANG_TIMEOUT_S,
    ) -> EvalClient:
        """Returns at once a client whose worker is starting; `weights_bytes` is the size of one published model.

        Raises: DataError when the eval set cannot be read; EngineError when the process cannot be started; StorageError.
        """
        # Besides those that are pending, one is being written, one waits to be polled, and one may be another reader's.
        place = choose_place(run.path, weights_bytes, max_pending + 3)
        log.info("evaluation worker: weights are published in %s (%s)", "RAM" if place.in_ram else place.base, place.why)
        folders = WeightFolders(place)
        try:
            return cls(spec, run, folders, max_pending=max_pending, when_full=when_full, hang_timeout_s=hang_timeout_s)
        except BaseException:
            folders.close()
            raise

    def __enter__(self) -> EvalClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def folders(self) -> WeightFolders:
        """The folders that weights are published in; they are gone when trainer and worker are, however those ended."""
        return self._folders

    @property
    def worker_pid(self) -> int:
        """The worker's process id."""
        return self._worker.pid

    def wait_ready(self) -> Mapping[str, Any]:
        """Waits until the worker's engine is loaded, and returns what it got. Raises: EngineError."""
        with self._changed:
            while self._ready is None:
                self._worker.check()
                self._changed.wait()
            self._note_ready()
            engine: Mapping[str, Any] = self._ready["engine"]
            return engine

    def admit(self, step: int, *, must_run: bool = False) -> Admission:
        """Finds a place for `step` as the policy says; before the weights are published, so that none are written in vain.

        `must_run` waits also where the policy is "skip". Raises: EngineError.
        """
        began = time.monotonic()
        with self._changed:
            self._worker.check()
            if self._when_full == "skip" and not must_run and self._is_full():
                return self._skip(step)
            while self._is_full():
                self._changed.wait()
                self._worker.check()
        self._admitted[step] = Admission(True, time.monotonic() - began)
        return self._admitted[step]

    def publish_dir(self, step: int) -> Path:
        """Returns the empty folder that the weights of `step` are to be written to. Raises: StorageError."""
        return self._folders.make(step)

    def submit(self, step: int, *, must_run: bool = False) -> Admission:
        """Hands over the weights in `publish_dir(step)`, which are complete; admits the step where `admit` has not.

        Raises: EngineError; ValueError when the step does not come after those that are pending.
        """
        admission = self._admitted.pop(step, None) or self.admit(step, must_run=must_run)
        self._admitted.pop(step, None)
        if admission.accepted:
            self._enqueue(step)
        else:
            self._folders.remove(step)
        return admission

    def restore(self, step: int, weights: Path) -> None:
        """Evaluates `step`, which was pending when the run was interrupted, on weights that a checkpoint kept."""
        try:
            copy_folder(weights, self._folders.make(step))
        except OSError as error:
            raise storage_error(self._folders.path, error) from None
        self._enqueue(step)

    def poll(self) -> list[EvalOutcome]:
        """Returns what has finished since the last call, in step order; never waits. Raises: EngineError."""
        with self._changed:
            self._note_ready()
            if not self._arrived:
                self._worker.check()
            outcomes = list(self._arrived)
            self._arrived.clear()
            for outcome in outcomes:
                del self._pending[outcome.step]
        for outcome in outcomes:
            self._folders.remove(outcome.step)
        return outcomes

    def drain(self) -> list[EvalOutcome]:
        """Waits for everything submitted, and returns what has finished since the last call. Raises: EngineError."""
        with self._changed:
            while len(self._arrived) < len(self._pending):
                self._worker.check()
                self._changed.wait()
        return self.poll()

    def pending(self) -> dict[int, Path]:
        """Returns the steps whose outcome nobody has taken yet, each with its weights, which stay until it is taken."""
        return dict(self._pending)

    def close(self) -> None:
        """Ends the worker and what it started, and removes the published weights; safe to call twice."""
        try:
            self._worker.close()
        finally:
            self._folders.close()

    def _enqueue(self, step: int) -> None:
        if self._pending and step <= max(self._pending):
            raise ValueError(f"step {step} is submitted after step {max(self._pending)}")
        with self._changed:
            self._pending[step] = self._folders.path / f"step-{step}"
        self._worker.send({"step": step, "weights": str(self._pending[step])})

    def _is_full(self) -> bool:
        return len(self._pending) - len(self._arrived) >= self._max_pending

    def _skip(self, step: int) -> Admission:
        pending = sorted(self._pending)
        why = f"{self._max_pending} evaluations were not finished"
        self._run.append(SKIPPED, {"step": step, "why": why, "pending": pending})
        log.warning("the evaluation of step %d is skipped: those of steps %s are not finished", step, pending)
        return Admission(False, 0.0)

    def _note_ready(self) -> None:
        """Records what the engine got; in the trainer's thread, since the run directory has one writer."""
        if self._ready is not None and not self._ready_noted:
            self._ready_noted = True
            self._run.append(STARTS, {"event": "ready", "at": utc_now(), **self._ready})

    def _take(self, kind: str, message: dict[str, Any]) -> None:
        """Takes a message of the worker; called by the listening thread with the lock held."""
        if kind == "ready":
            self._ready = message
        elif kind == "done":
            self._arrived.append(EvalOutcome(**message))
