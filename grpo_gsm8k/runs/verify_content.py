"""A run's numbers against what they are derived from: ledger and aggregates against completions and rollouts."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.rollout_files import read_rollouts, rollout_digests
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.runs.verification import Hashes, Verification, counted

LEDGER, METRICS = "ledger.jsonl", "metrics.jsonl"
ROWS = "rows"  # the ledger's stage of an evaluation that is the sha256 of the file
# Whatever a damaged row may do to what reads it as a whole one.
UNLIKE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error)


def check_lines(found: Verification) -> None:
    """Reads the append-only files; the steps of the ledger are those of the metrics where the run has trained."""
    for name in ("checkpoints.jsonl", "resumed.jsonl", "sys/eval_worker.jsonl", "eval/skipped.jsonl"):
        found.rows(name)
    steps = {name: {_key(row) for row in found.rows(name) or ()} for name in (LEDGER, METRICS)}
    if found.state != "completed" or not all(steps.values()):
        return
    for name, other in ((LEDGER, METRICS), (METRICS, LEDGER)):
        missing = sorted(str(step) for step, _ in steps[other] - steps[name])
        if missing and {kind for _, kind in steps[LEDGER]} == {kind for _, kind in steps[METRICS]}:
            found.wrong(name, f"has no line of step {', '.join(missing[:5])}, and {other} has")


def check_evaluations(found: Verification, hashes: Hashes) -> None:
    """Compares the digests of the ledger, the aggregates and the metrics with what follows from each evaluation's rows."""
    ledger = found.rows(LEDGER) or []
    metrics = found.rows(METRICS) or []
    num_checked = 0
    for step, name in steps_of(found, "eval"):
        rows = found.rows(name)
        if rows is None:
            continue
        try:
            actual = evaluation_digests(rows)
            correct = _accuracies(rows)
        except UNLIKE as error:
            found.wrong(name, f"has a row that is not an evaluation's ({error!r})")
            continue
        recorded = _evaluation_line(ledger, step)
        if recorded is None:
            found.note(f"{name}: {LEDGER} has no line of it")
        else:
            if ROWS in recorded:
                actual[ROWS] = hashes.of(name)
            else:
                found.note(f"{LEDGER} has no digest of whole rows, so the text and the answers in {name} are not checked by it")
            _compare_digests(found, name, step, recorded, actual)
            num_checked += 1
        _check_aggregate(found, step, len(rows), correct)
        line = next((row for row in metrics if row.get("step") == step and "eval/num_problems" in row), {})
        for grader, accuracy in correct.items():
            said = line.get(f"eval/{grader}/accuracy")
            if said is not None and not _equal(said, accuracy):
                found.wrong(METRICS, f"step {step}: accuracy of {grader} is {said}, and {name} gives {accuracy}")
    if num_checked:
        found.checked.append(
            f"{counted(num_checked, 'evaluation', 'evaluations')}: {LEDGER}, aggregate and metrics against their rows"
        )


def evaluation_digests(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the ledger's stages of an evaluation from its rows (as loops/evaluate.py and loops/evaluate_env.py make them)."""
    of_env = bool(rows) and "turns" in rows[0]
    problems = {row["problem_id"]: row for row in rows}
    scores = [list(row["scores"].values()) for row in rows]
    if of_env:
        reward: list[Any] = [[verdict["status"], verdict["value"]] for (verdict,) in scores]
    else:
        reward = [[verdict["status"] for verdict in verdicts] for verdicts in scores]
    return {
        "data": digest([[name, row["question"], row["gold"]] for name, row in problems.items()]),
        "prompt": digest([row["prompt_token_ids"] for row in problems.values()]),
        "sampled_tokens": digest([row["token_ids"] if of_env else row["token_ids"] or row["completion"] for row in rows]),
        "reward": digest(reward),
    }


def check_rollouts(found: Verification) -> None:
    """Compares the digests of the ledger with what follows from the rollouts that were kept; each line has its own hash too."""
    ledger = {row.get("step"): row for row in found.rows(LEDGER) or [] if "loss" in row}
    num_checked = 0
    for step, name in steps_of(found, "rollouts"):
        try:
            stored = read_rollouts(found.path / name)
            actual = rollout_digests([entry.rollout for entry in stored])
            if all(entry.advantage is not None for entry in stored):
                actual["advantage"] = digest([entry.advantage for entry in stored])
        except DataError as error:
            found.wrong(name, str(error).removeprefix(f"{found.path / name}").removeprefix(":").strip())
            continue
        except UNLIKE as error:
            found.wrong(name, f"has a row that is not a rollout's ({error!r})")
            continue
        if step not in ledger:
            found.note(f"{name}: {LEDGER} has no line of it")
            continue
        _compare_digests(found, name, step, ledger[step], actual)
        num_checked += 1
    if num_checked:
        found.checked.append(
            f"{counted(num_checked, 'file', 'files')} of rollouts: {LEDGER} against their tokens, log-probs, scores"
        )


def check_result(found: Verification) -> None:
    """Compares result.json with the last evaluation's aggregate and the ledger's last weights."""
    result = found.object("result.json")
    if result is None:
        if found.state == "completed":
            found.wrong("result.json", "is missing or damaged, and the run completed")
        return
    aggregate = result.get("eval", result)
    if isinstance(aggregate, dict) and "accuracy" in aggregate:
        name = f"eval/step_{aggregate.get('step')}.json"
        there = found.object(name) or {}
        for key in ("num_problems", "accuracy", "ci95", "graders"):
            if there and aggregate.get(key) != there.get(key):
                found.wrong("result.json", f"{key} is {_short(aggregate.get(key))}, and {name} has {_short(there.get(key))}")
        found.checked.append(f"result.json against {name}")
    if found.state == "failed":
        found.note("the run failed and has a result.json: it failed after its result, or one of the two was changed")
    weights = [row["weights"] for row in found.rows(LEDGER) or [] if "weights" in row]
    said = result.get("weights_sha256")
    if said is not None and weights and weights[-1] != said:
        found.wrong("result.json", f"weights_sha256 is not that of the last line of {LEDGER}")


def steps_of(found: Verification, folder: str) -> Iterator[tuple[int, str]]:
    """Yields (step, path inside the run) of the JSONL files of a folder that belong to a step, in order."""
    try:
        names = [path.name for path in (found.path / folder).iterdir()] if (found.path / folder).exists() else []
    except OSError as error:
        found.wrong(folder, f"cannot be read ({error.strerror or error})")
        return
    for step, name in sorted((int(match[1]), match[0]) for match in map(_STEP.fullmatch, names) if match):
        yield step, f"{folder}/{name}"


_STEP = re.compile(r"step_([0-9]{1,12})\.jsonl")


def _evaluation_line(ledger: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any] | None:
    """The ledger's stages of an evaluation: in a training run `eval/…`, else as they are."""
    of_step = [row for row in ledger if row.get("step") == step]
    for row in of_step:
        if "eval/data" in row:
            return {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}
    return next((row for row in of_step if "data" in row and "loss" not in row), None)


def _compare_digests(found: Verification, name: str, step: int, recorded: Mapping[str, Any], actual: Mapping[str, str]) -> None:
    for stage, value in actual.items():
        if stage not in recorded:
            found.wrong(LEDGER, f"step {step}: has no digest of {stage}")
        elif recorded[stage] != value:
            what = f"{stage} gives {value[:12]}…, and {LEDGER} has {str(recorded[stage])[:12]}… for step {step}"
            found.wrong(name, what)


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    counts: dict[str, int] = {}
    for row in rows:
        for grader, verdict in row["scores"].items():
            counts[grader] = counts.get(grader, 0) + (verdict["status"] == "correct")
    return {grader: count / len(rows) for grader, count in counts.items()}


def _check_aggregate(found: Verification, step: int, num_rows: int, correct: Mapping[str, float]) -> None:
    name = f"eval/step_{step}.json"
    aggregate = found.object(name)
    if aggregate is None:
        if not (found.path / name).exists():
            found.wrong(name, "is missing, and its rows are there")
        return
    num_problems, num_samples = aggregate.get("num_problems"), aggregate.get("num_samples")
    if isinstance(num_problems, int) and isinstance(num_samples, int) and num_problems * num_samples != num_rows:
        found.wrong(f"eval/step_{step}.jsonl", f"has {num_rows} rows, and {name} counts {num_problems * num_samples}")
    headline = correct.get(str(aggregate.get("primary_grader")))
    if headline is not None and not _equal(aggregate.get("accuracy"), headline):
        found.wrong(name, f"accuracy is {_short(aggregate.get('accuracy'))}, and the rows give {headline}")
    graders = aggregate.get("graders")
    for grader, accuracy in correct.items():
        said = graders.get(grader) if isinstance(graders, dict) else None
        given = said.get("accuracy") if isinstance(said, dict) else None
        if not _equal(given, accuracy):
            found.wrong(name, f"accuracy of {grader} is {_short(given)}, and the rows give {accuracy}")


def _equal(said: Any, accuracy: float) -> bool:
    return isinstance(said, int | float) and 0 <= said <= 1 and math.isclose(said, accuracy, abs_tol=1e-9)


def _key(row: Mapping[str, Any]) -> tuple[str, bool]:
    return str(row.get("step")), any(key.startswith("eval") for key in row)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
