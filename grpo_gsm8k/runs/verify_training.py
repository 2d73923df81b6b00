"""A training run's metrics against what they are made from: the ledger's exact losses and norms, and the rollouts kept."""

from __future__ import annotations

import math
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.rollout_files import read_rollouts
from grpo_gsm8k.runs.rollout_metrics import in_groups, rollout_metrics
from grpo_gsm8k.runs.verification import Verification, counted
from grpo_gsm8k.runs.verify_content import LEDGER, METRICS, UNLIKE, steps_of

SAME = {"loss": "train/loss", "grad_norm": "optim/grad_norm"}


def check_training_metrics(found: Verification) -> None:
    """Compares loss and gradient norm of each step with the ledger's, of which they are the mean over the step's updates."""
    ledger = {row.get("step"): row for row in found.rows(LEDGER) or [] if "loss" in row}
    num_checked = 0
    for row in _training_rows(found):
        recorded = ledger.get(row.get("step"), {})
        for stage, key in SAME.items():
            expected = 0.0 if recorded.get(stage) == [] and stage == "loss" else _mean(recorded.get(stage))
            if expected is None:
                continue
            num_checked += stage == "loss"
            if not _equal(row.get(key), expected):
                said = f"is {row[key]}" if key in row else "is not there"
                found.wrong(METRICS, f"step {row['step']}: {key} {said}, and {LEDGER} gives {expected}")
    if num_checked:
        found.checked.append(f"{counted(num_checked, 'step', 'steps')}: loss and gradient norm in {METRICS} against {LEDGER}")


def check_rollout_metrics(found: Verification) -> None:
    """Compares what the metrics say of rewards, groups and lengths with the rollouts, at the steps whose rollouts were kept."""
    config = found.object("config.json") or {}
    size = config["values"].get("group_size") if isinstance(config.get("values"), dict) else None
    if not isinstance(size, int) or size < 1:
        return
    metrics = {row.get("step"): row for row in _training_rows(found)}
    num_checked = 0
    for step, name in steps_of(found, "rollouts"):
        try:
            rollouts = [stored.rollout for stored in read_rollouts(found.path / name)]
            expected = rollout_metrics(in_groups(rollouts, size))
        except (DataError, *UNLIKE):
            continue  # the ledger's check has said what is wrong with the file
        row = metrics.get(step, {})
        num_checked += bool(row)
        for key in expected.keys() & row.keys():
            if not _equal(row[key], expected[key]):
                found.wrong(METRICS, f"step {step}: {key} is {row[key]}, and {name} gives {expected[key]}")
    if num_checked:
        found.checked.append(f"{counted(num_checked, 'step', 'steps')}: rewards and lengths in {METRICS} against rollouts")


def _training_rows(found: Verification) -> list[dict[str, Any]]:
    return [row for row in found.rows(METRICS) or [] if "step" in row and not any(key.startswith("eval/") for key in row)]


def _mean(values: Any) -> float | None:
    """The mean over a step's updates; None where the ledger has no numbers (of no update, or a digest of them)."""
    listed = values if isinstance(values, list) else [values]
    if not listed or not all(isinstance(value, int | float) for value in listed):
        return None
    return float(sum(listed) / len(listed))


def _equal(said: Any, expected: float) -> bool:
    return isinstance(said, int | float) and math.isclose(said, expected, rel_tol=1e-12, abs_tol=1e-12)
