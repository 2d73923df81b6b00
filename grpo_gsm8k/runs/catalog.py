"""What a table of runs says of each: read from few small files, and what cannot be read is said instead of guessed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.storage import open_plain, parse_json

TAIL_BYTES = 64 * 1024  # a line of metrics.jsonl is shorter than this
CLOCK_SLACK_S = 120.0


@dataclass(frozen=True)
class Headline:
    """A run's last evaluation: accuracy of its headline grader with the 95 % interval."""

    step: int
    grader: str
    accuracy: float
    low: float
    high: float
    num_problems: int


@dataclass(frozen=True)
class RunEntry:
    """One run as the table shows it; what is not on record is None. `notes` say what is wrong with its directory."""

    path: Path
    created_at: str
    command: str | None
    state: str
    model: str | None = None
    num_steps: int | None = None
    headline: Headline | None = None
    commit: str | None = None
    dirty: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return self.path.name


def one_line(text: str) -> str:
    """Returns text on one line that any terminal can take: what is not printable is escaped as in a string's literal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def list_runs(artifacts: Path, limit: int | None) -> tuple[list[RunEntry], int]:
    """Returns (the newest runs, at most `limit`; how many there are). Raises: InputError where there is no folder of runs."""
    folder = artifacts / "runs"
    try:
        paths = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        raise InputError(f"no run under {folder}; give --artifacts-dir the folder under which runs/ lies") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    found = sorted(((_created(path), path.name, path) for path in paths), reverse=True)
    return [read_entry(path) for _, _, path in found[:limit]], len(found)


def read_entry(path: Path) -> RunEntry:
    """Returns what the table shows of a run directory; never raises for what is in it."""
    try:
        status = read_status(path)
    except InputError as error:
        return RunEntry(path, "", None, "damaged", notes=[str(error)])
    notes = clock_notes(status)
    values = _object(path, "config.json", notes).get("values")
    git = _object(path, "sys/git.json", notes)
    result = _object(path, "result.json", notes)
    sha, dirty = git.get("sha"), git.get("dirty")
    return RunEntry(
        path=path,
        created_at=str(status.get("created_at", "")),
        command=_text(status.get("command")),
        state="died" if status.get("died") else str(status["state"]),
        model=_text(values.get("model_id")) if isinstance(values, dict) else None,
        num_steps=_last_step(path, result, notes),
        headline=_headline(path, result, notes),
        commit=sha[:7] if isinstance(sha, str) else None,
        dirty=dirty if isinstance(dirty, bool) else None,
        notes=notes,
    )


def clock_notes(status: Mapping[str, Any]) -> list[str]:
    """Returns what is odd about the times of a status: in the future, or in another order than they happened in."""
    starts = status.get("starts", [])
    times = [("created_at", status.get("created_at"))]
    times += [(f"starts[{number}].started_at", start.get("started_at")) for number, start in enumerate(starts)]
    times += [("ended_at", status.get("ended_at"))]
    notes, before = [], ("", -math.inf)
    for name, text in times:
        if text is None:
            continue
        try:
            moment = datetime.fromisoformat(text).timestamp()
        except (TypeError, ValueError, OverflowError):
            notes.append(f"status.json: {name} is no time")
            continue
        if moment > time.time() + CLOCK_SLACK_S:
            notes.append(f"status.json: {name} {text} lies in the future; a clock was moved")
        if moment < before[1]:
            notes.append(f"status.json: {name} {text} lies before {before[0]}; a clock was moved")
        before = (name, moment)
    return notes


def headline_of(aggregate: Mapping[str, Any]) -> Headline | None:
    """Returns the headline of an evaluation's aggregate, or None where it holds none."""
    low, high = aggregate["ci95"] if _is_pair(aggregate.get("ci95")) else (None, None)
    values = [aggregate.get("accuracy"), low, high]
    step, num = aggregate.get("step", 0), aggregate.get("num_problems")
    if not all(_is_number(value) for value in values) or not isinstance(step, int) or not isinstance(num, int):
        return None
    accuracy, low, high = (float(value) for value in values)  # type: ignore[arg-type]
    return Headline(step, str(aggregate.get("primary_grader")), accuracy, low, high, num)


def _headline(path: Path, result: Mapping[str, Any], notes: list[str]) -> Headline | None:
    aggregate = result.get("eval", result)
    if isinstance(aggregate, dict) and (found := headline_of(aggregate)) is not None:
        return found
    try:
        names = [name for name in os.listdir(path / "eval") if name.startswith("step_") and name.endswith(".json")]  # noqa: PTH208
    except OSError:
        return None
    steps = [int(number) for name in names if (number := name[5:-5]).isascii() and number.isdigit()]
    return headline_of(_object(path, f"eval/step_{max(steps)}.json", notes)) if steps else None


def _last_step(path: Path, result: Mapping[str, Any], notes: list[str]) -> int | None:
    """Returns the number of the last step on record: of the result, else of the last whole lines of metrics.jsonl."""
    if isinstance(result.get("steps"), int):
        return int(result["steps"])
    try:
        with open_plain(path / "metrics.jsonl") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read: {error.strerror or error}")
        return None
    steps = []
    for line in lines[-2:]:  # an evaluation's line may come after later steps'
        try:
            steps.append(int(parse_json(line)["step"]))
        except (ValueError, LookupError, TypeError, OverflowError):
            notes.append("metrics.jsonl: its last lines are not the JSON that was written")
            return None
    return max(steps, default=None)


def _object(path: Path, name: str, notes: list[str]) -> dict[str, Any]:
    """Returns the JSON object of a file, {} where it is missing, and {} with a note where it is damaged."""
    try:
        with open_plain(path / name) as file:
            value = parse_json(file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.append(f"{name} cannot be read: {error.strerror or error}")
        return {}
    except ValueError:
        notes.append(f"{name} is not the JSON that was written")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{name} does not hold a JSON object")
        return {}
    return value


def _created(path: Path) -> str:
    """When a run was created, as text that sorts by time; what its name says where its status cannot be read."""
    try:
        with open_plain(path / "status.json") as file:
            return str(parse_json(file.read())["created_at"])
    except (OSError, ValueError, LookupError, TypeError):
        name = path.name
        return f"{name[:4]}-{name[4:6]}-{name[6:8]}T{name[9:11]}:{name[11:13]}:{name[13:15]}"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
