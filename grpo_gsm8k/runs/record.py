"""What a run directory says about the run it holds: enough to do it again, read with every damage said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.directory import open_run, read_status
from grpo_gsm8k.runs.storage import parse_json, read_plain

WORLD = "sys/world.json"


@dataclass(frozen=True)
class RunRecord:
    """A run as it was recorded; `files` are the rows of data.json, `cwd` is where it was started, where that still exists."""

    path: Path
    command: str
    argv: tuple[str, ...]
    cwd: Path | None
    state: str
    reason: str | None
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    world: Mapping[str, str]
    git: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return self.path.name


def read_record(name: str, artifacts: Path) -> RunRecord:
    """Returns the record of the run called `name` (see `open_run`). Raises: InputError; DataError where a file is damaged."""
    path = open_run(name, artifacts).path.resolve()
    status = read_status(path)
    command = read_object(path / "command.json")
    config = read_object(path / "config.json")
    data = read_object(path / "data.json") if (path / "data.json").exists() else {}
    values, sources = config.get("values"), config.get("sources")
    if not isinstance(values, dict) or not isinstance(sources, dict) or not isinstance(command.get("command"), str):
        raise DataError(f"{path}: config.json and command.json do not say what was run; they were changed or damaged")
    files = data.get("files", [])
    if not isinstance(files, list) or not all(isinstance(row, dict) for row in files):
        raise DataError(f"{path / 'data.json'}: not the record of data files that was written")
    return RunRecord(
        path=path,
        command=command["command"],
        argv=tuple(str(part) for part in command.get("argv", [])),
        cwd=_cwd(path, command),
        state="died" if status.get("died") else str(status["state"]),
        reason=status.get("reason"),
        values=values,
        sources=sources,
        world=read_object(path / WORLD),
        git=read_object(path / "sys/git.json"),
        files=tuple(files),
    )


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file of a run. Raises: DataError when it is missing, unreadable or no object."""
    try:
        value = parse_json(read_plain(path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the run ended before it was written, or it was removed") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{path}: not the JSON that was written; the file was changed or damaged") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not the JSON object that was written; the file was changed or damaged")
    return value


def _cwd(path: Path, command: Mapping[str, Any]) -> Path | None:
    """The recorded way from the run to the folder it was started in; None where it leads to no folder of that name."""
    way = command.get("cwd_from_run")
    found = (path / way).resolve() if isinstance(way, str) else None
    return found if found is not None and found.is_dir() and found.name == command.get("cwd") else None
