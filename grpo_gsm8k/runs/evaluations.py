"""One evaluation of a run as a comparison needs it: who solved what, and everything that has to be alike for it to be fair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError, InputError, unknown_name
from grpo_gsm8k.runs.catalog import one_line
from grpo_gsm8k.runs.directory import open_run
from grpo_gsm8k.runs.reading import reading
from grpo_gsm8k.runs.storage import digest, parse_json, read_lines, read_plain

# What one kind of run calls temperature and so on, the other calls eval_temperature (its own temperature being training's).
_SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens")
_DEFAULTS = {"top_p": 1.0, "top_k": 0}
MAX_ERROR_SHARE = 0.01  # of completions that a grader failed on and that count as wrong


@dataclass
class ProblemRecord:
    """One problem of an evaluation: whether each sample is correct, and what a reader needs to see why."""

    question: str
    gold: str
    prompt_sha256: str
    solved: list[bool] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    num_errors: int = 0  # samples that count as wrong because the grader failed on them


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation: its run and step, its problems by id, its grader and that grader's version, how it was sampled."""

    run_path: Path
    step: int
    model: str
    grader: str
    grader_version: str | None
    sampling: Mapping[str, Any]
    problems: Mapping[str, ProblemRecord]

    @property
    def name(self) -> str:
        """What people call it: run@step, on one line whatever the folder is called."""
        return f"{one_line(self.run_path.name)}@{self.step}"

    @property
    def solved(self) -> dict[str, list[bool]]:
        """Whether each sample of each problem is correct, by problem id."""
        return {problem: record.solved for problem, record in self.problems.items()}


def read_evaluation(name: str, artifacts: Path, *, step: int | None = None, grader: str | None = None) -> EvaluationRecord:
    """Returns the evaluation called RUN or RUN@STEP (RUN: a path, a name under runs/, or latest).

    The step is that of RUN@STEP, else `step`, else the last evaluated; the grader `grader`, else the run's headline one.
    Raises: InputError where there is no such evaluation; DataError where its files are damaged or do not fit together.
    """
    named = re.fullmatch(r"(.+)@(\d+)", name)
    number = int(named[2]) if named else step
    run = open_run(named[1] if named else name, artifacts).path
    with reading(run):
        return _read(run, number, grader)


def evaluated_steps(run: Path) -> list[int]:
    """Returns the steps of a run's finished evaluations, in order."""
    found = (re.fullmatch(r"step_(\d+)\.json", path.name, re.ASCII) for path in run.glob("eval/step_*.json"))
    return sorted(int(match[1]) for match in found if match)


def _read(run: Path, number: int | None, grader: str | None) -> EvaluationRecord:
    found = evaluated_steps(run)
    if not found:
        raise InputError(f"{run} has no finished evaluation (eval/step_<n>.json)")
    if number is not None and number not in found:
        raise InputError(
            f"{run} has no evaluation of step {number}; there are {', '.join(map(str, found))} (eval/step_<n>.json)"
        )
    number = found[-1] if number is None else number
    aggregate = _json(run / f"eval/step_{number}.json")
    graders, counts = aggregate.get("graders"), [aggregate.get(key) for key in ("num_problems", "num_samples")]
    values = _json(run / "config.json").get("values")
    for name, fits in (
        (f"eval/step_{number}.json", isinstance(graders, dict) and all(isinstance(count, int) for count in counts)),
        ("config.json", isinstance(values, dict)),
    ):
        if not fits:
            raise DataError(f"{run / name} does not hold what was written; it was changed or damaged")
    assert isinstance(graders, dict) and isinstance(values, dict)
    if grader is not None and grader not in graders:
        raise InputError(f"{run}: {unknown_name('grader', grader, graders)}")
    headline = grader or str(aggregate.get("primary_grader"))
    problems = _read_problems(run / f"eval/step_{number}.jsonl", headline)
    num_rows = sum(len(record.solved) for record in problems.values())
    expected = aggregate["num_problems"] * aggregate["num_samples"]
    if num_rows != expected:
        raise DataError(f"{run}/eval/step_{number}.jsonl holds {num_rows} whole rows of {expected}; it was cut or changed")
    sampling = {**_sampling(values), "num_samples": aggregate["num_samples"]}
    version = grader_versions(run).get(headline)
    return EvaluationRecord(run, number, str(values.get("model_id")), headline, version, sampling, problems)


def what_differs(a: EvaluationRecord, b: EvaluationRecord) -> tuple[list[str], list[str]]:
    """Returns (what makes a comparison unfair, what a reader should know), each in words of one line."""
    unfair: list[str] = []
    known: list[str] = []
    only_a, only_b = a.problems.keys() - b.problems.keys(), b.problems.keys() - a.problems.keys()
    common = sorted(a.problems.keys() & b.problems.keys())
    if only_a or only_b:
        examples = ", ".join(sorted(only_a | only_b)[:2])
        unfair.append(
            f"eval set: {len(common)} problems in common, {len(only_a)} only in A, {len(only_b)} only in B ({examples})"
        )
    for what in ("question", "gold"):
        other = [key for key in common if getattr(a.problems[key], what) != getattr(b.problems[key], what)]
        if other:
            unfair.append(f"{what}: {len(other)} problems have another one (the first: {other[0]})")
    if (a.grader, a.grader_version) != (b.grader, b.grader_version):
        said = [f"{side.grader} {side.grader_version or '(version not on record)'}" for side in (a, b)]
        unfair.append(f"grader: {said[0]} in A and {said[1]} in B")
    for name, counts, share in grader_errors(a, b):
        (unfair if share > MAX_ERROR_SHARE else known).append(
            f"grader: {counts} of {name} have a grader error (counted as wrong)"
        )
    for key, value in a.sampling.items():
        if value != b.sampling[key]:
            unfair.append(f"sampling: {key} is {value} in A and {b.sampling[key]} in B")
    prompts = sum(a.problems[key].prompt_sha256 != b.problems[key].prompt_sha256 for key in common)
    if prompts:
        known.append(f"prompt: {prompts} of {len(common)} problems are asked in other tokens (template, shots or tokenizer)")
    return unfair, known


def grader_errors(a: EvaluationRecord, b: EvaluationRecord) -> list[tuple[str, str, float]]:
    """Returns (A or B, "k of n completions", k / n) of each side whose grader failed on k > 0, on the problems in common."""
    found = []
    for side, record in (("A", a), ("B", b)):
        common = [record.problems[key] for key in a.problems.keys() & b.problems.keys()]
        errors, completions = sum(one.num_errors for one in common), sum(len(one.solved) for one in common)
        if errors:
            found.append((side, f"{errors} of {completions} completions", errors / completions))
    return found


def _read_problems(path: Path, grader: str) -> dict[str, ProblemRecord]:
    problems: dict[str, ProblemRecord] = {}
    if not path.exists():
        raise DataError(f"{path} is missing, and the evaluation's aggregate is there; the run directory was changed")
    for row in read_lines(path):
        try:
            status = row["scores"][grader]["status"]
            prompt = digest([row["prompt_token_ids"] or row["prompt"]])
            texts = [row[key] for key in ("problem_id", "question", "gold", "completion")]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a text is none")
            record = problems.setdefault(texts[0], ProblemRecord(texts[1], texts[2], prompt))
            record.solved.append(status == "correct")
            record.num_errors += status == "error"
            record.completions.append(texts[3])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} has a row that is not an evaluation's ({error!r}); it was changed") from None
    return problems


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "eval_" if "eval_temperature" in values else ""
    return {key: values.get(prefix + key, _DEFAULTS.get(key)) for key in _SAMPLING}


def grader_versions(run: Path) -> Mapping[str, str]:
    """Returns the graders' versions as the run recorded them; none where it did not."""
    result = _json(run / "result.json") if (run / "result.json").exists() else {}
    try:
        if "grader_versions" in result:
            return dict(result["grader_versions"])
        ready = [row for row in read_lines(run / "sys/eval_worker.jsonl") if row.get("event") == "ready"]
        return dict(ready[-1].get("engine", {}).get("grader_versions", {})) if ready else {}
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{run}: the graders' versions are not on record as they were written ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_plain(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object; it was changed")
    return value
