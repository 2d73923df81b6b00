"""A run directory: created atomically, written so that a reader never meets half a file (layout in docs/run-directory.md)."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import grpo_gsm8k
from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.container import image_digest
from grpo_gsm8k.runs.git import read_git
from grpo_gsm8k.runs.redact import scrub, scrub_arguments
from grpo_gsm8k.runs.storage import (
    JsonlAppender,
    make_folder,
    parse_json,
    read_lines,
    read_plain,
    storage_error,
    write_bytes,
    write_json,
)

State = Literal["created", "running", "completed", "failed", "interrupted"]
LOCK = ".lock"
RESERVE = ".reserve"  # room for the last words of a run that filled its disk
RESERVE_BYTES = 64 * 1024


def utc_now() -> str:
    """Returns the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RunDirectory:
    """One run's directory; the only writer of its status, its config and its append-only records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._appenders: dict[str, JsonlAppender] = {}
        self._lock: int | None = None

    @classmethod
    def create(cls, artifacts: Path, command: str, arguments: list[str]) -> RunDirectory:
        """Makes `<artifacts>/runs/<UTCSTAMP>_<gitsha>`; a second run in the same second gets a suffix, never shares one."""
        runs = artifacts / "runs"
        make_folder(runs)
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{read_git().short}"
        number = 1
        while True:
            path = runs / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
            except OSError as error:
                raise storage_error(path, error) from None
        run = cls(path)
        write_bytes(path / RESERVE, b"\0" * RESERVE_BYTES)
        run._write_status({"state": "created", "command": command, "created_at": utc_now(), "starts": []})
        run.write_json(
            "command.json", {**_command_record(command, arguments), "cwd_from_run": os.path.relpath(Path.cwd(), path)}
        )
        return run

    def lock(self) -> None:
        """Makes this process the only writer of the run until it ends, however it ends. Raises: InputError, StorageError."""
        try:
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            start = (read_status(self.path).get("starts") or [{}])[-1]
            raise InputError(f"{self.path} is still running (pid {start.get('pid')} on {start.get('host')})") from None
        except OSError as error:
            raise storage_error(self.path, error) from None

    def start(self) -> None:
        """Marks the run as running in this process; on a resumed run this adds a start."""
        status = read_status(self.path)
        start = {"started_at": utc_now(), **process_identity()}
        starts = [*status.get("starts", []), start]
        kept: dict[str, Any] = {key: status[key] for key in ("command", "created_at") if key in status}
        self._write_status({**kept, "state": "running", "starts": starts})

    def finish(self, state: State, reason: str | None, exit_code: int, manifest_sha256: str | None = None) -> None:
        """Writes the run's last state; works on a full disk too, by giving up the reserve."""
        self.close_files()
        status = read_status(self.path)
        status.pop("died", None)
        ended = {"state": state, "reason": scrub(reason) if reason else None, "exit_code": exit_code, "ended_at": utc_now()}
        if manifest_sha256 is not None:
            ended["manifest_sha256"] = manifest_sha256
        (self.path / RESERVE).unlink(missing_ok=True)
        self._write_status({**status, **ended})
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_json(self, name: str, value: Any) -> None:
        """Writes `name` (a path inside the run) whole."""
        path = self.path / name
        make_folder(path.parent)
        write_json(path, value)

    def append(self, name: str, *values: Mapping[str, Any]) -> None:
        """Appends lines to the JSONL file `name`."""
        if name not in self._appenders:
            make_folder((self.path / name).parent)
            self._appenders[name] = JsonlAppender(self.path / name)
        self._appenders[name].append(*values)

    def read(self, name: str) -> list[Any]:
        """Returns the whole lines of the JSONL file `name`; none where it is not there."""
        return list(read_lines(self.path / name))

    def close_files(self) -> None:
        """Closes every append-only file."""
        for appender in self._appenders.values():
            appender.close()
        self._appenders.clear()

    def close_file(self, name: str) -> None:
        """Closes an append-only file early."""
        if name in self._appenders:
            self._appenders.pop(name).close()

    def _write_status(self, status: Mapping[str, Any]) -> None:
        write_json(self.path / "status.json", status)


def _command_record(command: str, arguments: list[str]) -> dict[str, Any]:
    return {
        "command": command,
        "argv": scrub_arguments(arguments),
        "cwd": Path.cwd().name,
        "package": {"name": "grpo-gsm8k", "version": grpo_gsm8k.__version__},
        "image_digest": image_digest()[0],
        "created_at": utc_now(),
    }


def process_identity() -> dict[str, Any]:
    """Returns what tells this process from any other: host, boot, pid and the pid's start time (clock ticks since boot)."""
    return {"host": platform.node(), "boot_id": _boot_id(), "pid": os.getpid(), "pid_start": _start_ticks(os.getpid())}


def _boot_id() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else None


def _start_ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie runs no more


def is_alive(start: Mapping[str, Any]) -> bool | None:
    """Returns whether the process of a start is running; None where that cannot be told (another host, no /proc)."""
    if start.get("host") != platform.node() or start.get("pid_start") is None:
        return None
    return start.get("boot_id") == _boot_id() and _start_ticks(int(start["pid"])) == start["pid_start"]


def read_status(path: Path) -> dict[str, Any]:
    """Returns status.json as written, with `died: true` where it says running and its process is gone.

    Raises: InputError when the folder is no run directory or its status cannot be read.
    """

    file = path / "status.json"
    try:
        status = parse_json(read_plain(file))
    except FileNotFoundError:
        raise InputError(f"{path} is not a run directory: it has no status.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    if not isinstance(status, dict) or "state" not in status:
        raise InputError(f"{file} is not a run's status: it has no state")
    try:
        _check_status(status)
        if status["state"] in ("created", "running") and has_died(path, status):
            status["died"] = True
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file} is not the status that was written ({error}); it was changed or damaged") from None
    return status


def _check_status(status: Mapping[str, Any]) -> None:
    """Raises: TypeError, ValueError where a status is not one of ours."""
    if status["state"] not in get_args(State):
        raise ValueError(f"state is {status['state']!r}")
    starts = status.get("starts", [])
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise TypeError("starts are no list of objects")
    for name in ("created_at", "ended_at"):
        if name in status:
            datetime.fromisoformat(status[name])


def has_died(path: Path, status: Mapping[str, Any]) -> bool:
    """Returns whether a run that did not say how it ended is over: its process is gone or, from elsewhere, its lock is free."""
    starts = status.get("starts", [])
    alive = is_alive(starts[-1]) if starts else _is_young(status)
    return not (is_locked(path) if alive is None else alive)


def is_locked(path: Path) -> bool:
    """Returns whether some process holds the lock of a run directory, on this host or another that shares the file system."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False  # a copy of a run directory may have no lock file
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_young(status: Mapping[str, Any]) -> bool:
    """A run that was created and never started belongs to a process that died between the two, unless it is new."""
    created = datetime.fromisoformat(str(status.get("created_at", "1970-01-01T00:00:00+00:00")))
    return abs(time.time() - created.timestamp()) < 60


def open_run(name: str, artifacts: Path) -> RunDirectory:
    """Returns the run called `name` (see `find_run`). Raises: InputError where there is none, or its status.json is damaged."""
    path = find_run(name, artifacts)
    read_status(path)
    return RunDirectory(path)


def find_run(name: str, artifacts: Path) -> Path:
    """Returns the folder called `name`: a path, or the name of a directory under `<artifacts>/runs`, or "latest".

    Raises: InputError where there is none.
    """
    runs = artifacts / "runs"
    path = Path(name)
    if name == "latest":
        found = sorted(runs.glob("*/status.json"), key=lambda file: (json_created(file), file.parent.name))
        if not found:
            raise InputError(f"no run under {runs}")
        path = found[-1].parent
    elif not path.is_dir() and (runs / name).is_dir():
        path = runs / name
    if not path.is_dir():
        raise InputError(f"no run {name!r}: give the path of a run directory, its name under {runs}, or latest")
    return path


def json_created(file: Path) -> str:
    """Returns when the run of a status file was created, as text that sorts by time; "" where it cannot be read."""
    try:
        return str(read_status(file.parent).get("created_at", ""))
    except InputError:
        return ""
