"""metrics.jsonl, the truth about a run's numbers, and its sinks (W&B); ledger.jsonl, the digests that prove them."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from grpo_gsm8k.errors import EnvironmentFailure, ProofError
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.redact import scrub, scrub_values
from grpo_gsm8k.runs.storage import digest

log = logging.getLogger("grpo_gsm8k")

METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"


class MetricsWriter:
    """Appends one object a step to metrics.jsonl, then hands it to W&B (keys like `eval/numeric/accuracy`)."""

    def __init__(self, run: RunDirectory, tracker: WandbTracker | None) -> None:
        self._run = run
        self._tracker = tracker

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Records the metrics of a step. Raises: ProofError for a NaN or infinite value, which no metric may be."""
        bad = [key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise ProofError(f"step {step}: {', '.join(bad)} is not a finite number")
        self._run.append(METRICS, {"step": step, **metrics})
        if self._tracker is not None:
            self._tracker.log(step, metrics)

    def close(self) -> None:
        """Ends the sinks."""
        if self._tracker is not None:
            self._tracker.close()


def write_ledger(run: RunDirectory, step: int, stages: Mapping[str, Any]) -> None:
    """Appends a step's digests: each stage's value is replaced by its sha256 (stages in the order in which they happen)."""
    run.append(LEDGER, {"step": step, **{stage: digest(value) for stage, value in stages.items()}})


class WandbTracker:
    """Weights & Biases as a sink; offline unless asked otherwise, its files inside the run directory."""

    def __init__(self, run: RunDirectory, *, mode: str, project: str, name: str | None, config: Mapping[str, Any]) -> None:
        started = time.monotonic()
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        try:
            self._session = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=project,
                name=scrub(name or run.path.name),
                dir=str(run.path),
                config=scrub_values(config),
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False),
            )
        except (wandb.Error, OSError) as error:
            raise EnvironmentFailure(
                f"W&B ({mode}) did not start: {' '.join(str(error).split())}; use --wandb offline"
            ) from None
        log.info("W&B %s, project %s (%.1f s)", mode, project, time.monotonic() - started)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Sends the metrics of a step."""
        self._session.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the W&B run."""
        self._session.finish()
