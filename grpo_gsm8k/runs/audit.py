"""Stored completions as a grader audit needs them, and the labels that people gave: audit/labels.jsonl in the run.

A label is of one completion, known by problem, sample and the digest of gold and completion; so that the evaluations of one run
have labels of their own, and a label does not outlive the text it was given to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError, InputError
from grpo_gsm8k.runs.directory import open_run
from grpo_gsm8k.runs.evaluations import grader_versions
from grpo_gsm8k.runs.reading import reading
from grpo_gsm8k.runs.rollout_files import FOLDER as ROLLOUTS
from grpo_gsm8k.runs.rollout_files import read_rollouts
from grpo_gsm8k.runs.storage import (
    digest,
    is_as_sealed,
    json_line,
    make_folder,
    parse_json,
    read_lines,
    read_plain,
    sealed,
    write_bytes,
)

FOLDER = "audit"
LABELS = "labels.jsonl"
Key = tuple[str, int, str]
TEXTS = ("question", "gold", "completion")  # a sheet to be labelled shows these; they have to be what is stored


@dataclass(frozen=True)
class StoredCompletion:
    """One completion, and the status each grader gave it then (`correct`, `wrong`, `unparsed`, `error`)."""

    problem_id: str
    sample_index: int
    question: str
    gold: str
    completion: str
    statuses: Mapping[str, str]

    @property
    def key(self) -> Key:
        """What a label of it is known by."""
        return self.problem_id, self.sample_index, digest([self.gold, self.completion])


@dataclass(frozen=True)
class Label:
    """Whether a person calls a completion correct; `file`: where in the run it was when the label was given, where known."""

    correct: bool
    file: str | None


@dataclass(frozen=True)
class Stored:
    """The completions of one file, the run it belongs to (None: of no run), and the versions of the graders then."""

    path: Path
    run_path: Path | None
    completions: list[StoredCompletion]
    versions: Mapping[str, str]

    @property
    def file(self) -> str | None:
        """The file's path inside its run."""
        return None if self.run_path is None else self.path.resolve().relative_to(self.run_path).as_posix()


def read_stored(name: str, artifacts: Path) -> Stored:
    """Returns the completions of RUN, RUN@STEP (its last evaluation, or that step's) or of a file of them.

    A file is eval/step_<n>.jsonl, rollouts/step_<n>.jsonl, or any JSONL with problem_id, gold and completion.
    Raises: InputError where there is none; DataError where the file is damaged, cut, or holds something else.
    """
    path = Path(name)
    if not path.is_file():
        path = _evaluation_file(name, artifacts)
    folder = path.resolve().parent.parent
    run = folder if (folder / "status.json").is_file() and path.resolve().parent.name in ("eval", ROLLOUTS) else None
    is_rollouts = run is not None and path.resolve().parent.name == ROLLOUTS
    with reading(*([] if run is None else [run])):
        completions = _of_rollouts(path) if is_rollouts else _of_rows(path)
    keys = [(item.problem_id, item.sample_index) for item in completions]
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: has the same problem_id and sample_index twice; each completion has its own")
    versions = grader_versions(run) if run is not None and not is_rollouts else {}
    return Stored(path, run, completions, versions)


def _evaluation_file(name: str, artifacts: Path) -> Path:
    if name.endswith(".jsonl"):
        raise InputError(f"no file {name}; give a run, RUN@STEP, or a JSONL of problem_id, gold and completion")
    named = re.fullmatch(r"(.+)@(\d+)", name)
    run = open_run(named[1] if named else name, artifacts).path
    steps = [re.fullmatch(r"step_(\d+)", path.stem) for path in run.glob("eval/step_*.jsonl")]
    found = sorted(int(step[1]) for step in steps if step)
    if not found:
        raise InputError(f"{run} has no stored completions (eval/step_<n>.jsonl)")
    step = int(named[2]) if named else found[-1]
    if step not in found:
        raise InputError(
            f"{run} has no evaluation of step {step}; there are {', '.join(map(str, found))} (eval/step_<n>.jsonl)"
        )
    return run / f"eval/step_{step}.jsonl"


def _of_rows(path: Path) -> list[StoredCompletion]:
    try:
        content = read_plain(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not content.endswith(b"\n"):
        raise DataError(f"{path}: {'its last line is torn; it was cut short' if content else 'the file is empty'}")
    found = []
    for number, row in enumerate(read_lines(path), start=1):
        try:
            scores = {grader: score["status"] for grader, score in row.get("scores", {}).items()}
            texts = {key: row[key] for key in ("problem_id", "gold", "completion")}
            index, question = row.get("sample_index", 0), row.get("question", "")
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{path}:{number}: is no stored completion; it needs problem_id, gold and completion") from None
        is_whole = isinstance(index, int) and all(
            isinstance(text, str) for text in (*texts.values(), question, *scores.values())
        )
        if not is_whole:
            raise DataError(f"{path}:{number}: problem_id, gold and completion are text, and sample_index is a number")
        found.append(StoredCompletion(**texts, sample_index=index, question=question, statuses=scores))
    _check_count(path, len(found))
    return found


def _check_count(path: Path, num_rows: int) -> None:
    """Raises DataError where the evaluation's aggregate, beside the file, counted other rows."""
    aggregate = path.with_suffix(".json")
    if not re.fullmatch(r"step_\d+", path.stem) or not aggregate.is_file():
        return
    try:
        said = parse_json(read_plain(aggregate))
        expected = said["num_problems"] * said["num_samples"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{aggregate}: not an evaluation's aggregate ({error!r}); it was changed") from None
    if num_rows != expected:
        raise DataError(f"{path}: holds {num_rows} rows of {expected}; it was cut or changed")


def _of_rollouts(path: Path) -> list[StoredCompletion]:
    found = []
    for stored in read_rollouts(path):
        rollout = stored.rollout
        if len(rollout.turns) != 1:
            raise DataError(
                f"{path}: {rollout.problem.id} has {len(rollout.turns)} turns, which its environment scores; graders judge one"
            )
        texts = (rollout.problem.question, rollout.problem.gold, rollout.turns[0].text)
        found.append(StoredCompletion(rollout.problem.id, rollout.sample_index, *texts, statuses={}))
    return found


def read_labels(run_path: Path) -> dict[Key, Label]:
    """Returns the labels that a run keeps. Raises: DataError when the file was damaged or changed."""
    path = run_path / FOLDER / LABELS
    labels = {}
    try:
        for row in read_lines(path):
            if is_as_sealed(row) is False:
                raise DataError(f"{path}: holds a label that is not the one written (its digest differs); it was changed")
            labels[row["problem_id"], row["sample_index"], row["sha256"]] = Label(bool(row["correct"]), row.get("file"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: holds a line that is no label ({error!r}); it was changed") from None
    return labels


def of_changed_texts(labels: Mapping[Key, Label], stored: Stored) -> list[Key]:
    """Returns the labels that were given to this file when it held another gold or completion there; they count no more."""
    there = {item.key for item in stored.completions}
    return [key for key, label in labels.items() if label.file is not None and label.file == stored.file and key not in there]


def given_labels(path: Path, stored: Stored) -> tuple[dict[Key, Label], int]:
    """Returns the labels in a file a person filled in, and how many of its lines have none (`correct` is null).

    A line holds problem_id, sample_index (0 where it is not given) and correct: true, false or null. Question, gold and
    completion, where they are given, have to be what is stored; other keys do not count.
    Raises: DataError with the line of what is no label, of a completion that is not there or is another, and of one labelled
    both ways.
    """
    items = {(item.problem_id, item.sample_index): item for item in stored.completions}
    labels: dict[Key, Label] = {}
    num_empty = 0
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        lines = read_plain(path).split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _label_row(line, f"{path}:{number}")
        named = row["problem_id"], row.get("sample_index", 0)
        said = f"{path}:{number}: {named[0]}, sample {named[1]},"
        item = items.get(named)
        if item is None:
            raise DataError(f"{said} is not among the {len(items)} completions")
        other = [name for name in TEXTS if name in row and row[name] != getattr(item, name)]
        if other:
            raise DataError(f"{said} has another {' and '.join(other)} in {stored.path}; label what that holds (--to-label)")
        if row["correct"] is None:
            num_empty += 1
        elif labels.setdefault(item.key, Label(row["correct"], stored.file)).correct != row["correct"]:
            raise DataError(f"{said} is labelled true and false; say which")
    return labels, num_empty


def _label_row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("problem_id"), str)
        or type(row.get("sample_index", 0)) is not int
        or not ("correct" in row and (row["correct"] is None or isinstance(row["correct"], bool)))
    ):
        raise DataError(
            f"{place}: no label; a line is an object with problem_id, sample_index and correct: true, false or null"
        )
    return row


def keep_labels(run_path: Path, labels: Mapping[Key, Label]) -> Path:
    """Returns the file in which a run keeps its labels, written whole; each line has its place, their number and a digest of
    its own. Raises: StorageError."""
    path = run_path / FOLDER / LABELS
    make_folder(path.parent)
    rows = []
    for index, key in enumerate(sorted(labels)):
        problem, sample, sha256 = key
        row = {"index": index, "num_labels": len(labels), "problem_id": problem, "sample_index": sample}
        rows.append(sealed({**row, "correct": labels[key].correct, "file": labels[key].file, "sha256": sha256}))
    write_bytes(path, b"".join(json_line(row) for row in rows))
    return path
