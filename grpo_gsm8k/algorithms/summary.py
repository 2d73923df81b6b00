"""From the rows of an evaluation to its numbers: a pure function, so that a reader can compute them again from the JSONL.

The denominator is always all problems: what is truncated, unparsed or not graded counts as not correct, and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_gsm8k.algorithms.statistics import (
    accuracy_interval,
    maj_at_k,
    minimum_detectable_difference,
    minimum_detectable_difference_paired,
    pass_at_k,
    wilson_interval,
)

Row = Mapping[str, Any]
NUM_LENGTH_BINS = 5


def summarise(rows: Sequence[Row], graders: Sequence[str], *, step: int, seed: int) -> dict[str, Any]:
    """Returns what eval/step_<n>.json holds. `rows` are its JSONL rows: P problems times N samples, in problem order.

    `graders` names the graders, the headline first; `seed` seeds the bootstrap over problems.
    """
    num_samples = max(row["sample_index"] for row in rows) + 1
    problems = [rows[start : start + num_samples] for start in range(0, len(rows), num_samples)]
    headline = graders[0]
    per_grader = {name: _grader_summary(problems, name, seed) for name in graders}
    correct_P = _correct(problems, headline)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < num_samples] + [num_samples]
    answers = [[row["scores"][headline]["answer"] for row in samples] for samples in problems]
    values = [[float(row["scores"][headline]["status"] == "correct") for row in samples] for samples in problems]
    accuracy = per_grader[headline]["accuracy"]
    return {
        "step": step,
        "num_problems": len(problems),
        "num_samples": num_samples,
        "primary_grader": headline,
        "accuracy": accuracy,
        "ci95": per_grader[headline]["ci95"],
        "graders": per_grader,
        "pass_at_k": {str(k): float(pass_at_k(correct_P, num_samples, k).mean()) for k in ks} if num_samples > 1 else {},
        "maj_at_k": {str(k): float(maj_at_k(answers, values, k).mean()) for k in ks} if num_samples > 1 else {},
        "truncated": sum(row["stop_reason"] in ("length", "max_tokens") for row in rows),
        "disagreements": sum(bool(row["disagreement"]) for row in rows),
        "mean_prompt_tokens": _mean_known(rows, "num_prompt_tokens"),
        "mean_completion_tokens": _mean_known(rows, "num_completion_tokens"),
        "minimum_detectable_difference": minimum_detectable_difference(accuracy, len(problems)),
        "minimum_detectable_difference_paired": minimum_detectable_difference_paired(accuracy, len(problems)),
        "accuracy_by_question_length": _by_length(problems, headline, seed),
    }


def _mean_known(rows: Sequence[Row], key: str) -> float | None:
    """None where any row does not know (a server that gives no token ids): a mean over some rows would be of other rows."""
    counts = [row[key] for row in rows]
    return None if None in counts else float(np.mean(counts))


def _correct(problems: Sequence[Sequence[Row]], grader: str) -> list[int]:
    return [sum(row["scores"][grader]["status"] == "correct" for row in samples) for samples in problems]


def _grader_summary(problems: Sequence[Sequence[Row]], grader: str, seed: int) -> dict[str, Any]:
    statuses = [row["scores"][grader]["status"] for samples in problems for row in samples]
    num_samples = len(problems[0])
    correct_P = _correct(problems, grader)
    counts = {status: statuses.count(status) for status in ("correct", "wrong", "unparsed", "error")}
    wilson = wilson_interval(sum(correct_P), len(problems)) if num_samples == 1 else None
    means_P = [correct / num_samples for correct in correct_P]
    return {"accuracy": float(np.mean(means_P)), "ci95": accuracy_interval(means_P, seed=seed), "wilson95": wilson, **counts}


def _by_length(problems: Sequence[Sequence[Row]], grader: str, seed: int) -> list[dict[str, Any]]:
    """Accuracy in bins of about equal size by the question's length in characters."""
    ordered = sorted(problems, key=lambda samples: len(samples[0]["question"]))
    bins = []
    for part in np.array_split(np.arange(len(ordered)), min(NUM_LENGTH_BINS, len(ordered))):
        members = [ordered[index] for index in part]
        means = [correct / len(members[0]) for correct in _correct(members, grader)]
        lengths = [len(samples[0]["question"]) for samples in members]
        interval = accuracy_interval(means, seed=seed)
        bins.append(
            {
                "min_chars": min(lengths),
                "max_chars": max(lengths),
                "num_problems": len(members),
                "accuracy": float(np.mean(means)),
                "ci95": interval,
            }
        )
    return bins
