"""metrics.jsonl, the truth about a run's numbers, and its sinks (W&B, TensorBoard); ledger.jsonl, the digests that prove it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from grpo_gsm8k.config import TrackerOptions
from grpo_gsm8k.errors import EnvironmentFailure, ProofError
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.redact import scrub, scrub_values
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.runs.tensorboard import FOLDER, TensorboardTracker

log = logging.getLogger("grpo_gsm8k")

METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"
TABLE_ROWS = 20


class Tracker(Protocol):
    """A sink of metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the metrics of a step, after metrics.jsonl has them."""

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes some rows of an evaluation."""

    def close(self) -> None:
        """Ends the sink."""


class MetricsWriter:
    """Appends one object a step to metrics.jsonl, then hands it to the trackers (keys like `eval/numeric/accuracy`)."""

    def __init__(self, run: RunDirectory, trackers: Sequence[Tracker]) -> None:
        self._run = run
        self._trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Records the metrics of a step. Raises: ProofError for a NaN or infinite value, which no metric may be."""
        bad = [key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise ProofError(f"step {step}: {', '.join(bad)} is not a finite number")
        self._run.append(METRICS, {"step": step, **metrics})
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def log_rows(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows some rows of an evaluation to the trackers; eval/step_<n>.jsonl has them all."""
        for tracker in self._trackers:
            tracker.log_table(step, rows[:: max(1, len(rows) // TABLE_ROWS)][:TABLE_ROWS])

    def close(self) -> None:
        """Ends the sinks."""
        for tracker in self._trackers:
            tracker.close()


def open_trackers(run: RunDirectory, options: TrackerOptions, *, name: str | None, config: Mapping[str, Any]) -> list[Tracker]:
    """Returns the sinks that the options ask for; `config` is what W&B shows as the run's. Raises: EnvironmentFailure."""
    trackers: list[Tracker] = []
    if options.tensorboard:
        trackers.append(TensorboardTracker(run.path / METRICS, run.path / FOLDER))
    if options.wandb != "disabled":
        name = name or run.path.name
        trackers.append(WandbTracker(run.path, mode=options.wandb, project=options.wandb_project, name=name, config=config))
    return trackers


def write_ledger(run: RunDirectory, step: int, stages: Mapping[str, Any]) -> None:
    """Appends a step's digests: each stage's value is replaced by its sha256 (stages in the order in which they happen)."""
    run.append(LEDGER, {"step": step, **{stage: digest(value) for stage, value in stages.items()}})


class WandbTracker:
    """Weights & Biases as a sink; its files go into `folder`/wandb. Without `run_id` W&B makes one up."""

    def __init__(
        self, folder: Path, *, mode: str, project: str, name: str, config: Mapping[str, Any], run_id: str | None = None
    ) -> None:
        started = time.monotonic()
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        try:
            self._session = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=project,
                id=run_id,
                name=scrub(name),
                dir=str(folder),
                config=scrub_values(config),
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False),
            )
        except (wandb.Error, OSError) as error:
            raise EnvironmentFailure(
                f"W&B ({mode}) did not start: {' '.join(str(error).split())}; use --wandb offline"
            ) from None
        self._session.define_metric("*", step_metric="step")  # evaluations arrive after later steps' metrics
        log.info("W&B %s, project %s (%.1f s)", mode, project, time.monotonic() - started)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Sends the metrics of a step."""
        self._session.log({**metrics, "step": step})

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends trajectories with their gold answers and verdicts."""
        import wandb

        table = wandb.Table(columns=["step", "problem", "question", "completion", "gold", "verdicts"])
        for row in rows:
            verdicts = ", ".join(f"{name} {score['status']}" for name, score in row["scores"].items())
            table.add_data(step, row["problem_id"], row["question"], row["completion"], row["gold"], verdicts)
        self._session.log({f"eval/trajectories_step_{step}": table})

    def close(self) -> None:
        """Ends the W&B run."""
        self._session.finish()
