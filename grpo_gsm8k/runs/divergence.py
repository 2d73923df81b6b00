"""Where two runs of one config part: the first line, by step and stage, in which their ledgers (or what lies beside) differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.checkpoints import is_eval
from grpo_gsm8k.runs.metrics import LEDGER, METRICS
from grpo_gsm8k.runs.record import read_object
from grpo_gsm8k.runs.storage import digest, file_sha256, read_lines

# The order of causes: what stands first decides what stands after it.
STAGES = ("data", "prompt", "tokens", "sampled_tokens", "reward", "rows", "kept", "advantage", "loss", "grad_norm", "weights")
WORDS = {"sampled_tokens": "sampled tokens", "grad_norm": "gradient"}
FREE_PREFIXES = ("time/", "sys/")
FREE_RESULTS = frozenset({"times", "changed", "folder", "outfile"})  # times, and where a data tool put its files
ROW_FIELDS = ("problem_id", "sample_index", "seed", "prompt_token_ids", "token_ids", "logprobs")  # then the others, as written
FOLDERS = ("eval", "rollouts", "expert_data")
MISSING = "not there"

Key = tuple[int, bool]  # step, whether the line is an evaluation's


@dataclass(frozen=True)
class Divergence:
    """The first difference: its file, its step (None where there are no steps), its stage, both values, and where exactly."""

    file: str
    step: int | None
    stage: str
    there: Any
    here: Any
    detail: str | None = None


@dataclass(frozen=True)
class Drift:
    """How far a metric lies apart at most: the step of the largest difference, and both values there."""

    key: str
    step: int
    there: float
    here: float

    @property
    def size(self) -> float:
        """The absolute difference."""
        return abs(self.there - self.here)


@dataclass(frozen=True)
class Verdict:
    """What comparing two runs gave: what was compared, and the first divergence, or None where all of that is identical."""

    compared: tuple[str, ...]
    divergence: Divergence | None


def compare_runs(there: Path, here: Path, upto: int | None = None, *, sparse_weights: bool = False) -> Verdict:
    """Returns where the run `here` parts from the run `there`: ledger, data files, metrics, kept files, result, in this order.

    With `upto` what both have up to that step. Where evaluations may be left out by timing (eval_policy skip) they are compared
    if both runs have them. `sparse_weights`: see `first_in_ledger`. Raises: DataError for a damaged file of either run.
    """
    skips = read_object(there / "config.json").get("values", {}).get("eval_policy") == "skip"
    partial = skips or upto is not None
    ledgers, metrics = ([read_steps(run, name, upto) for run in (there, here)] for name in (LEDGER, METRICS))
    if skips:
        both = ledgers[0].keys() & ledgers[1].keys()
        ledgers = [{key: row for key, row in side.items() if not key[1] or key in both} for side in ledgers]
    data = [read_object(run / "data.json").get("files", []) for run in (there, here)]
    found = (
        first_in_ledger(ledgers[0], ledgers[1], sparse_weights=sparse_weights)
        or first_in_data(data[0], data[1])
        or first_in_metrics(metrics[0], metrics[1], both_only=partial)
        or first_in_files(there, here, both_only=partial, upto=upto)
        or (None if partial else first_in_result(there, here))
    )
    if found is not None and found.file == LEDGER:
        found = replace(found, detail=_place_in_files(there, here, found))
    num_files = len(files_of(there, upto).keys() & files_of(here, upto).keys())
    compared = [f"{len(data[0])} data files", f"{len(ledgers[0])} ledger lines", f"{len(metrics[0])} metrics lines"]
    compared += [f"{num_files} files of evaluations and rollouts"] + ([] if partial else ["result.json"])
    return Verdict(tuple(part for part in compared if not part.startswith("0 ")), found)


def _place_in_files(there: Path, here: Path, found: Divergence) -> str | None:
    """The first differing row that was kept of the step at which two ledgers part, where it was kept."""
    folder = "eval" if found.stage.startswith("eval/") or found.step == 0 else "rollouts"
    ours, theirs = (run / folder / f"step_{found.step}.jsonl" for run in (there, here))
    return first_row(ours, theirs) if ours.exists() and theirs.exists() else None


def read_steps(run: Path, name: str, upto: int | None = None) -> dict[Key, dict[str, Any]]:
    """Returns the lines of a run's ledger or metrics by (step, is evaluation), in step order; none after step `upto`.

    Raises: DataError for a line that is no record of a step, and for two of one step.
    """
    found: dict[Key, dict[str, Any]] = {}
    for number, row in enumerate(_lines(run / name), start=1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f"{run / name}: record {number} is not that of a step; the file was changed or damaged")
        key = (row["step"], is_eval(row))
        if key in found:
            raise DataError(f"{run / name}: step {row['step']} is there twice; the file was changed or damaged")
        if upto is None or key[0] <= upto:
            found[key] = row
    return {key: found[key] for key in sorted(found)}


def first_in_ledger(
    there: Mapping[Key, Mapping[str, Any]], here: Mapping[Key, Mapping[str, Any]], *, sparse_weights: bool = False
) -> Divergence | None:
    """Returns where two ledgers part, or None where they are equal line by line.

    `sparse_weights`: weights are compared at the steps at which both were hashed (large ones are hashed where they are saved).
    """
    for key in sorted(there.keys() | here.keys()):
        step, evaluated = key
        if key not in there or key not in here:
            sides = [MISSING if key not in side else "recorded" for side in (there, here)]
            return Divergence(LEDGER, step, "evaluation" if evaluated else "step", *sides)
        ours, theirs = dict(there[key]), dict(here[key])
        for stage in sorted(ours.keys() | theirs.keys(), key=_cause):
            if sparse_weights and stage == "weights" and not (stage in ours and stage in theirs):
                continue
            if stage not in ours or stage not in theirs or not _same(ours[stage], theirs[stage]):
                return Divergence(LEDGER, step, stage, ours.get(stage, MISSING), theirs.get(stage, MISSING))
    return None


def stage_words(stage: str) -> str:
    """Returns a stage as people call it."""
    name = stage.removeprefix("eval/")
    words = WORDS.get(name, name)
    return f"{words} of the evaluation" if name != stage else words


def agreement(there: Mapping[Key, Mapping[str, Any]], here: Mapping[Key, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Returns, stage by stage, (how many lines agree, how many either run has)."""
    counts: dict[str, tuple[int, int]] = {}
    for key in there.keys() | here.keys():
        ours, theirs = there.get(key, {}), here.get(key, {})
        for stage in (ours.keys() | theirs.keys()) - {"step"}:
            agreed, total = counts.get(stage, (0, 0))
            same = stage in ours and stage in theirs and _same(ours[stage], theirs[stage])
            counts[stage] = (agreed + same, total + 1)
    return {stage: counts[stage] for stage in sorted(counts, key=lambda stage: (stage.startswith("eval/"), _cause(stage)))}


def first_in_metrics(
    there: Mapping[Key, Mapping[str, Any]], here: Mapping[Key, Mapping[str, Any]], *, both_only: bool = False
) -> Divergence | None:
    """Returns the first metric that differs, but for those of time; with `both_only` in the lines that both runs have."""
    keys = there.keys() & here.keys() if both_only else there.keys() | here.keys()
    for key in sorted(keys):
        ours, theirs = _bound(there.get(key, {})), _bound(here.get(key, {}))
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in ours or name not in theirs or not _same(ours[name], theirs[name]):
                return Divergence(METRICS, key[0], name, ours.get(name, MISSING), theirs.get(name, MISSING))
    return None


def drifts(there: Mapping[Key, Mapping[str, Any]], here: Mapping[Key, Mapping[str, Any]]) -> list[Drift]:
    """Returns, metric by metric, the largest difference between two runs, but for times; nothing for metrics that agree."""
    largest: dict[str, Drift] = {}
    for key in sorted(there.keys() & here.keys()):
        ours, theirs = _bound(there[key]), _bound(here[key])
        for name in ours.keys() & theirs.keys() - {"step"}:
            if isinstance(ours[name], (int, float)) and isinstance(theirs[name], (int, float)):
                found = Drift(name, key[0], float(ours[name]), float(theirs[name]))
                if found.size > (largest[name].size if name in largest else 0.0):
                    largest[name] = found
    return [largest[name] for name in sorted(largest, key=lambda name: (name.startswith("eval/"), name))]


def first_in_files(there: Path, here: Path, *, both_only: bool, upto: int | None = None) -> Divergence | None:
    """Returns the first file of evaluations, kept rollouts and kept examples whose bytes differ, and its first differing row.

    With `both_only` (a run that was stopped early) only files that both runs have are compared.
    """
    ours, theirs = files_of(there, upto), files_of(here, upto)
    for name in sorted(ours.keys() & theirs.keys() if both_only else ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            detail = first_row(there / name, here / name) if name in ours and name in theirs else None
            return Divergence(name, _step_of(name), "bytes", ours.get(name, MISSING), theirs.get(name, MISSING), detail)
    return None


def first_in_result(there: Path, here: Path) -> Divergence | None:
    """Returns the first key in which two result.json differ, but for times and places."""
    ours, theirs = (_bound_result(run) for run in (there, here))
    for key in sorted(ours.keys() | theirs.keys()):
        if not _same(ours.get(key), theirs.get(key)):
            return Divergence("result.json", None, key, ours.get(key, MISSING), theirs.get(key, MISSING))
    return None


def first_in_data(there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> Divergence | None:
    """Returns the first file of data.json (model, data, template) that is not the same one; where it lies does not matter."""
    ours, theirs = named_files(there), named_files(here)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            return Divergence("data.json", None, name, ours.get(name, MISSING), theirs.get(name, MISSING))
    return None


def named_files(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns what identifies each row of data.json (a sha256, or a commit) by what it is: a role, or data set and split."""
    named: dict[str, str] = {}
    for row in rows:
        parts = [str(row[key]) for key in ("role", "dataset", "split") if row.get(key)]
        name = " ".join(parts) or Path(str(row.get("path") or row.get("name"))).name
        while name in named:
            name += " (another)"
        named[name] = str(row.get("sha256") or row.get("commit"))
    return named


def files_of(run: Path, upto: int | None = None) -> dict[str, str]:
    """Returns the sha256 of each file of evaluations, kept rollouts and kept examples, none after step `upto`."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((run / folder).glob("*_*.json*")):
            name = f"{folder}/{path.name}"
            step = _step_of(name)
            if step is not None and ".partial" not in name and (upto is None or step <= upto):
                found[name] = _sha256(path)
    return found


def first_row(there: Path, here: Path) -> str | None:
    """Returns in words the first row, field and place in which two JSONL files differ; None where they are no JSONL."""
    if there.suffix != ".jsonl":
        return None
    ours, theirs = list(_lines(there)), list(_lines(here))
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False), start=1):
        if a == b:
            continue
        if not isinstance(a, dict) or not isinstance(b, dict):
            return f"row {number}"
        field = next(key for key in [*ROW_FIELDS, *a, *b] if a.get(key) != b.get(key))
        who = f"row {number}, {a.get('problem_id')}, sample {a.get('sample_index')}: {field}"
        x, y = a.get(field), b.get(field)
        if isinstance(x, list) and isinstance(y, list):
            place = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
            shown = [repr(side[place]) if place < len(side) else "the end" for side in (x, y)]
            return f"{who} differ from number {place} on: {shown[0]} and {shown[1]}"
        return f"{who} is {_short(x)} and {_short(y)}"
    return None if len(ours) == len(theirs) else f"{len(ours)} rows and {len(theirs)}"


def hashes(run: Path) -> dict[str, str]:
    """Returns what names a finished run's results: hashes of ledger, metrics, kept files, result, and its last weights.

    Times are left out, and so are the weights of single steps, which not every run hashes at the same ones.
    """
    ledger = read_steps(run, LEDGER).values()
    result = _bound_result(run)
    named = {
        "ledger": digest([{key: value for key, value in row.items() if key != "weights"} for row in ledger]),
        "metrics": digest([_bound(row) for row in read_steps(run, METRICS).values()]),
        "files": digest(files_of(run)),
        "result": digest(result),
    }
    return named | ({"weights": str(result["weights_sha256"])} if "weights_sha256" in result else {})


def _cause(stage: str) -> tuple[int, str]:
    name = stage.removeprefix("eval/")
    return (STAGES.index(name) if name in STAGES else len(STAGES), stage)


def _same(there: Any, here: Any) -> bool:
    return type(there) is type(here) and bool(there == here)


def _bound(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(FREE_PREFIXES)}


def _bound_result(run: Path) -> dict[str, Any]:
    return {key: value for key, value in _bound(read_object(run / "result.json")).items() if key not in FREE_RESULTS}


def _step_of(name: str) -> int | None:
    digits = Path(name).name.split(".")[0].rpartition("_")[2]
    return int(digits) if digits.isdigit() else None


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> list[Any]:
    try:
        return list(read_lines(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
