"""Checkpoints of a run: whole or not there, found, verified, pruned, and on the record in checkpoints.jsonl.

A checkpoint is `checkpoints/step-<n>/`. Its files are written and fsynced; then COMPLETE is, with the sha256 of each. A folder
without COMPLETE was cut short by whatever killed the run: it is ignored, with a warning that names it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import file_sha256, make_folder, parse_json, read_plain, storage_error, write_bytes, write_json

log = logging.getLogger("grpo_gsm8k")

FOLDER = "checkpoints"
COMPLETE = "COMPLETE"
INDEX = "checkpoints.jsonl"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its step and its folder."""

    step: int
    path: Path


class Checkpoints:
    """Writes and prunes the checkpoints of one run. `keep_last` None keeps all; the newest complete one is never deleted."""

    def __init__(self, run: RunDirectory, keep_last: int | None) -> None:
        self._run = run
        self._keep_last = keep_last

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Gives the body a folder to fill; when it is done the checkpoint becomes complete, and old ones are pruned.

        Raises: StorageError on a full disk; what had been complete stays so, and the half-written folder is removed.
        """
        path = self._run.path / FOLDER / f"step-{step}"
        if path.exists():
            shutil.rmtree(path)
        make_folder(path)
        began = time.monotonic()
        try:
            yield path
            files = {str(file.relative_to(path)): file_sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
            _fsync_tree(path)
            write_json(path / COMPLETE, {"step": step, "files": files})
            _fsync(path)
            _fsync(path.parent)
        except BaseException as error:
            shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                raise storage_error(path, error) from None
            raise
        record = {"step": step, "path": f"{FOLDER}/step-{step}", "state": "kept", "sha256": files}
        self._run.append(INDEX, {**record, "time/save_s": time.monotonic() - began})
        self._prune()

    def _prune(self) -> None:
        if self._keep_last is None:
            return
        for old in complete_checkpoints(self._run.path)[: -self._keep_last]:
            (old.path / COMPLETE).unlink()  # first, so that a deletion that is cut short leaves nothing that looks whole
            shutil.rmtree(old.path)
            self._run.append(INDEX, {"step": old.step, "path": f"{FOLDER}/step-{old.step}", "state": "pruned"})


def complete_checkpoints(run: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints of a run directory, oldest first."""
    return sorted((found for found in step_folders(run) if (found.path / COMPLETE).is_file()), key=lambda found: found.step)


def step_folders(run: Path) -> list[Checkpoint]:
    """Returns every checkpoint folder of a run directory, half-written ones too."""
    folder = run / FOLDER
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    return [Checkpoint(int(match[1]), path) for match, path in named if match and path.is_dir()]


def find_checkpoint(run: Path, upto: int | None = None) -> Checkpoint | None:
    """Returns the newest complete checkpoint whose files are what COMPLETE says, or None; `upto` is the last step allowed.

    One that is half-written, or has other bytes than it was completed with, is left out with a warning that names it.
    """
    for found in sorted(step_folders(run), key=lambda item: item.step, reverse=True):
        if upto is not None and found.step > upto:
            continue
        wrong = what_is_wrong(found.path)
        if wrong is None:
            return found
        log.warning("ignoring the checkpoint %s: %s", found.path, wrong)
    return None


def what_is_wrong(path: Path) -> str | None:
    """Returns in words why a checkpoint folder cannot be used, or None when it is whole."""
    try:
        files = parse_json(read_plain(path / COMPLETE))["files"]
    except FileNotFoundError:
        return "it is half-written (no COMPLETE)"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {COMPLETE} cannot be read"
    for name, sha256 in files.items():
        try:
            if file_sha256(path / name) != sha256:
                return f"{name} changed since it was saved"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def split_resume(name: str) -> tuple[str, int | None]:
    """Returns (the run, the step) of what `--resume` was given: a run, or the folder of one of its checkpoints."""
    path = Path(name)
    match = _NAME.fullmatch(path.name)
    if match is None or path.parent.name != FOLDER:
        return name, None
    if not path.is_dir():
        raise InputError(f"no checkpoint {name}: give a run, or a folder <run>/{FOLDER}/step-<n>")
    wrong = what_is_wrong(path)
    if wrong is not None:
        raise InputError(f"the checkpoint {name} cannot be used: {wrong}")
    return str(path.parent.parent), int(match[1])


def cut_back(run: RunDirectory, name: str, keep: int, kept_evals: frozenset[int] = frozenset()) -> None:
    """Removes from a JSONL of the run what lies after step `keep`; evaluation lines stay for the steps in `kept_evals`."""
    from grpo_gsm8k.runs.storage import json_line

    rows = [row for row in run.read(name) if (row["step"] in kept_evals if is_eval(row) else row["step"] <= keep)]
    run.close_file(name)
    if (run.path / name).exists():
        write_bytes(run.path / name, b"".join(json_line(row) for row in rows))


def is_eval(row: dict[str, object]) -> bool:
    """Returns whether a line of metrics.jsonl or ledger.jsonl is an evaluation's."""
    return any(key.startswith("eval") for key in row)


def settle(run: RunDirectory, name: str) -> None:
    """Puts a JSONL of the run in step order, training before evaluation: evaluations arrive whenever they are done."""
    from grpo_gsm8k.runs.storage import json_line

    rows = sorted(run.read(name), key=lambda row: (row["step"], is_eval(row)))
    run.close_file(name)
    if rows:
        write_bytes(run.path / name, b"".join(json_line(row) for row in rows))


def _fsync_tree(path: Path) -> None:
    for item in path.rglob("*"):
        _fsync(item)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
