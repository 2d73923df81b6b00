"""One run in full: provenance, config with origins, files with sizes, and what a reader should be warned of."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.catalog import RunEntry, read_entry
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.manifest import MANIFEST, walk
from grpo_gsm8k.runs.storage import parse_json, read_plain
from grpo_gsm8k.runs.verification import Verification


@dataclass(frozen=True)
class RunDescription:
    """What `runs show` shows. `config` is (key, value, where it came from); `files` is (path or folder/, bytes, how many)."""

    entry: RunEntry
    status: dict[str, Any]
    command: dict[str, Any]
    config: list[tuple[str, Any, str]]
    git: dict[str, Any]
    world: dict[str, Any]
    packages: dict[str, Any]
    system: dict[str, Any]
    data: list[dict[str, Any]]
    not_held: list[dict[str, Any]]
    num_resumed: int
    files: list[tuple[str, int, int]]
    warnings: list[str]


def describe_run(path: Path) -> RunDescription:
    """Returns the description of a run. Raises: InputError where the folder is no run, or its status.json is damaged."""
    status = read_status(path)
    entry = read_entry(path)
    found = Verification(path, entry.state)  # reads what can be read, and keeps what could not
    config = found.object("config.json") or {}
    values, sources = _dict(config.get("values")), _dict(config.get("sources"))
    data = (found.object("data.json") or {}).get("files")
    git = found.object("sys/git.json") or {}
    not_held = [toggle for toggle in _toggles(found) if toggle.get("held") is False]
    resumed = found.rows("resumed.jsonl") or []
    files = _files(found)
    return RunDescription(
        entry=entry,
        status=status,
        command=found.object("command.json") or {},
        config=[(key, value, str(sources.get(key, "not on record"))) for key, value in values.items()],
        git=git,
        world=found.object("sys/world.json") or {},
        packages=_dict((found.object("sys/versions.json") or {}).get("stack")),
        system=found.object("sys/system.json") or {},
        data=[row for row in data if isinstance(row, dict)] if isinstance(data, list) else [],
        not_held=not_held,
        num_resumed=max(0, len(status.get("starts", [])) - 1),
        files=files,
        warnings=_warnings(entry, found, git, not_held, resumed, status, [name for name, _, _ in files]),
    )


def _warnings(
    entry: RunEntry,
    found: Verification,
    git: dict[str, Any],
    not_held: list[dict[str, Any]],
    resumed: list[dict[str, Any]],
    status: dict[str, Any],
    names: list[str],
) -> list[str]:
    said = [f"{problem.file} {problem.what}" for problem in found.problems]
    said += [note for note in entry.notes if note.split(" ")[0] not in {problem.file for problem in found.problems}]
    if entry.state == "died":
        said.append("the process is gone and left no last word (killed, or the machine went down)")
    elif entry.state in ("failed", "interrupted"):
        said.append(f"{entry.state}: {status.get('reason')}")
    elif entry.state == "completed" and not (found.path / MANIFEST).exists():
        said.append(f"there is no {MANIFEST}, so files cannot be checked against what they were")
    if git.get("dirty"):
        said.append("the code had uncommitted changes (sys/dirty.diff)")
    for name in _list(git.get("left_out")):
        said.append(f"the code had an untracked file that is not on record: {name}")
    for toggle in not_held:
        said.append(f"determinism: {toggle.get('name')} was {toggle.get('got')}, not {toggle.get('asked')}")
    for row in resumed:
        changes = [*_list(row.get("changes")), *_list(row.get("data_changes"))]
        said += [f"resumed with a change, as allowed: {change}" for change in changes]
    said += [f"{name} is unfinished" for name in names if name.endswith(".partial.jsonl")]
    return said


def _files(found: Verification) -> list[tuple[str, int, int]]:
    """Returns (path, bytes, 1) of each file; what lies two folders deep is summed up by folder."""
    sums: dict[str, tuple[int, int]] = {}
    try:
        for name, status in walk(found.path):
            parts = name.split("/")
            key = name if len(parts) < 3 else f"{parts[0]}/{parts[1]}/"
            size, num = sums.get(key, (0, 0))
            sums[key] = (size + (status.st_size if stat.S_ISREG(status.st_mode) else 0), num + 1)
    except OSError as error:
        found.wrong(str(error.filename or "."), f"cannot be read ({error.strerror or error})")
    return [(name, size, num) for name, (size, num) in sorted(sums.items(), key=lambda item: _by_number(item[0]))]


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key by which step_2 comes before step_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _toggles(found: Verification) -> list[dict[str, Any]]:
    toggles: list[dict[str, Any]] = []
    for file in [found.path / "sys/determinism.json", *sorted(found.path.glob("sys/start-*/determinism.json"))]:
        name = str(file.relative_to(found.path))
        try:
            rows = parse_json(read_plain(file))
            toggles += [dict(row) for row in rows]
        except FileNotFoundError:
            continue
        except OSError as error:
            found.wrong(name, f"cannot be read ({error.strerror or error})")
        except (ValueError, TypeError):
            found.wrong(name, "is not the JSON that was written")
    for row in found.rows("sys/eval_worker.jsonl") or []:
        held = row.get("determinism")
        for toggle in held if isinstance(held, list) else []:
            if isinstance(toggle, dict):
                toggles.append({**toggle, "held": toggle.get("asked") == toggle.get("got")})
    return toggles


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
