"""What the report shows of a training run besides its last evaluation: curves, evaluations by step, checkpoints, starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from grpo_gsm8k.runs.report_curves import Curve, accuracy_curve, series_curve
from grpo_gsm8k.runs.report_files import RunFiles, flatten
from grpo_gsm8k.runs.report_rewards import CurveGroup, reward_curves, rounds, stage_times, stop_reasons
from grpo_gsm8k.runs.report_rollouts import collect_rollouts

REWARD_COMMANDS = ("grpo", "expert-iteration")
TRAINING_COMMANDS = ("sft", *REWARD_COMMANDS)
NUM_OPEN_ROWS = 30

_LOSS, _LR, _GRAD_NORM, _RATE = "train/loss", "optim/lr", "optim/grad_norm", "time/tokens_per_s"
_SFT = frozenset({_LOSS, _LR, _GRAD_NORM, _RATE})
_REWARD_PREFIXES = ("reward/", "groups/", "rollout/", "env/", "policy/", "mismatch/", "ei/", "time/")
_RATES = {
    "sft": "Trained tokens/s",
    "grpo": "Sampled tokens/s of the whole step",
    "expert-iteration": "Trained tokens/s of the updates",
}


def collect_training(
    files: RunFiles, status: Mapping[str, Any], evals: Mapping[int, Mapping[str, Any]], result: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what the page shows of a training run; `evals` are the aggregates by step."""
    command = str(status.get("command"))
    num_rows, series = read_series(files, by_reward=command in REWARD_COMMANDS)
    num_steps = max([step for values in series.values() for step in values] + [*evals], default=0)
    table = _eval_table(evals)
    return {
        "num_rows": num_rows,
        "num_steps": num_steps,
        "groups": _curve_groups(series, num_steps, command),
        "rewards": _rewards(files, series) if command in REWARD_COMMANDS else None,
        "rate": _RATES[command],
        "accuracy": _accuracy(table, num_steps),
        "evals": table,
        "first": table[0] if table and table[0]["step"] == 0 else None,
        "graders": list(dict.fromkeys(name for entry in table for name in entry["others"])),
        "num_open": NUM_OPEN_ROWS,
        "loss": _last(series.get(_LOSS, {})),
        "reward": _last(series.get("reward/mean", {})),
        "tokens_per_s": median(series[_RATE].values()) if series.get(_RATE) else None,
        "checkpoints": _checkpoints(files),
        "learner": flatten(files.json("sys/learner.json")),
        "weights_sha256": result.get("weights_sha256"),
        "evaluator": _evaluator(files),
        "world": flatten(files.json("sys/world.json")),
        "overlap": files.json("overlap.json").get("num_overlapping") if files.has("overlap.json") else None,
        "starts": _resumed_starts(files, status),
    }


def read_series(files: RunFiles, *, by_reward: bool) -> tuple[int, dict[str, dict[int, float]]]:
    """Returns the number of rows and each series by step; a run that ended early holds them in order of arrival."""
    series: dict[str, dict[int, float]] = {}
    num_rows = 0
    for step, row in files.steps("metrics.jsonl"):
        num_rows += 1
        for name, value in row.items():
            wanted = name in _SFT or (by_reward and name.startswith(_REWARD_PREFIXES))
            if wanted and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, {})[step] = float(value)
    return num_rows, {name: dict(sorted(values.items())) for name, values in series.items()}


def _curve_groups(series: Mapping[str, Mapping[int, float]], num_steps: int, command: str) -> list[CurveGroup]:
    if command in REWARD_COMMANDS:
        return reward_curves(series, num_steps, rate=_RATES[command])
    titles = {_LOSS: "Loss", _GRAD_NORM: "Gradient norm before clipping", _LR: "Learning rate", _RATE: _RATES[command]}
    drawn = (
        series_curve(title, list(series.get(name, {}).items()), num_steps, lowest=name != _LR) for name, title in titles.items()
    )
    curves = [curve for curve in drawn if curve is not None]
    return [CurveGroup("", curves, [])] if curves else []


def _rewards(files: RunFiles, series: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    masks = files.json("config.json").get("values", {}).get("mask_truncated", False)
    return {
        "stages": stage_times(series),
        "stops": stop_reasons(series),
        "rounds": rounds(series),
        "rollouts": collect_rollouts(files, mask_truncated=bool(masks)),
    }


def _accuracy(table: list[dict[str, Any]], num_steps: int) -> Curve | None:
    measured = [entry for entry in table if entry["accuracy"] is not None and entry["ci95"]]
    values = [(entry["step"], entry["accuracy"], *entry["ci95"]) for entry in measured]
    return accuracy_curve(f"Accuracy, {table[-1]['grader']} grader", values, num_steps) if table else None


def _eval_table(evals: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one entry an evaluation in step order; the change is against step 0, by the same (headline) grader."""
    table: list[dict[str, Any]] = []
    for step, aggregate in sorted(evals.items()):
        primary, scores = aggregate.get("primary_grader"), aggregate.get("graders", {})
        own = scores.get(primary, {})
        base = table[0]["accuracy"] if table and table[0]["step"] == 0 else None
        at = own.get("accuracy")
        table.append(
            {
                "step": step,
                "grader": primary,
                "accuracy": at,
                "ci95": own.get("ci95"),
                "change": None if base is None or at is None else at - base,
                "others": {name: score.get("accuracy") for name, score in scores.items() if name != primary},
                "unparsed": own.get("unparsed"),
                "truncated": aggregate.get("truncated"),
                "mean_tokens": aggregate.get("mean_completion_tokens"),
            }
        )
    return table


def _checkpoints(files: RunFiles) -> list[dict[str, Any]]:
    """Returns one entry a checkpoint in step order: the index's last word on each, and whether it is really there."""
    found: dict[int, dict[str, Any]] = {}
    for step, row in files.steps("checkpoints.jsonl") if files.has("checkpoints.jsonl") else ():
        entry = found.setdefault(step, {"step": step, "weights": [], "save_s": None})
        entry["state"] = row.get("state")
        if row.get("state") == "kept":
            entry["weights"] = [(name, sha) for name, sha in row.get("sha256", {}).items() if _holds_weights(Path(name))]
            entry["save_s"] = row.get("time/save_s")
            if not files.has(f"{row.get('path')}/COMPLETE"):
                entry["state"] = "kept, and not in the run directory now"
    return [entry for _, entry in sorted(found.items())]


def _holds_weights(path: Path) -> bool:
    """Whether a file of a checkpoint holds the model's weights, rather than the optimiser's state or a pending evaluation's."""
    return path.suffix == ".safetensors" and path.stem != "optimizer" and path.parts[0] not in ("pending_eval", "trainer")


def _evaluator(files: RunFiles) -> list[tuple[str, Any]]:
    """Returns what the evaluation worker got, as of the last time that it was ready."""
    ready = [row for row in files.rows(files.run_dir / "sys/eval_worker.jsonl") if row.get("event") == "ready"]
    return flatten(ready[-1].get("engine", {})) if ready else []


def _resumed_starts(files: RunFiles, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one entry a resumed start: how the one before had ended, and all that had changed since the run began."""
    starts: list[dict[str, Any]] = []
    for row in files.rows(files.run_dir / "resumed.jsonl") if files.has("resumed.jsonl") else ():
        if "data_changes" not in row:
            starts.append({"after": row.get("after"), "argv": row.get("argv") or [], "changes": list(row.get("changes", []))})
        elif starts:
            starts[-1]["changes"] += [f"data: {change}" for change in row["data_changes"]]
    times = [start.get("started_at") for start in status.get("starts") or []]
    for number, start in enumerate(starts, start=1):
        start["started_at"] = times[number] if number < len(times) else None
    return starts


def _last(values: Mapping[int, float]) -> float | None:
    return list(values.values())[-1] if values else None
