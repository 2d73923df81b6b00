"""A recorded run done again: its config restored from its directory, its inputs found, its process started and watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.config import (
    DataPrepConfig,
    EvalConfig,
    PretokenizeConfig,
    RenderEvalConfig,
    RenderPairsConfig,
    RunOptions,
    SftConfig,
)
from grpo_gsm8k.config_rl import ExpertIterationConfig, GrpoConfig
from grpo_gsm8k.engines.loading import TINY
from grpo_gsm8k.errors import ConfigError, DataError, EngineError, InputError
from grpo_gsm8k.options import options
from grpo_gsm8k.prompts import list_templates
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.git import PACKAGE
from grpo_gsm8k.runs.record import RunRecord
from grpo_gsm8k.runs.redact import REDACTED
from grpo_gsm8k.runs.storage import file_sha256, make_folder, storage_error, write_json

CONFIGS: dict[str, type[RunOptions]] = {
    "eval": EvalConfig,
    "sft": SftConfig,
    "expert-iteration": ExpertIterationConfig,
    "grpo": GrpoConfig,
    "data prep": DataPrepConfig,
    "data pretokenize": PretokenizeConfig,
    "data render-eval": RenderEvalConfig,
    "data render-pairs": RenderPairsConfig,
}
ASKS = {"traces generate": "its server would answer otherwise"}
TRAINING = ("sft", "expert-iteration", "grpo")
INPUTS = ("eval_path", "data_path", "eval_set_path", "infile", "shots_path", "env_path", "source", "adapter")
ONLY_EVALUATES = "grpo_gsm8k.fast_eval_vllm"  # `eval` that prepares no data
POLL_S = 0.02


@dataclass(frozen=True)
class Restored:
    """What starts a run again: its command, the options that are given, the folder they are relative to, and its inputs' names.

    `notes` say in words what is not as it was, none of which changes a result.
    """

    record: RunRecord
    given: Mapping[str, Any]
    cwd: Path
    notes: tuple[str, ...]


def restore(record: RunRecord, artifacts: Path, *, other_code: bool = False) -> Restored:
    """Returns what starts a run again, its directories and outputs under `artifacts`.

    `other_code`: the run's own commit will read the options, and knows their defaults.
    Raises: ConfigError for a command that cannot be done again, options of another version, a secret that is not on record;
    InputError for an input that is not there.
    """
    if record.command not in CONFIGS:
        why = f" ({ASKS[record.command]})" if record.command in ASKS else ""
        allowed = ", ".join(CONFIGS)
        raise ConfigError(f"{record.path} is a run of {record.command!r}, which cannot be done again{why}; allowed: {allowed}")
    given = _given(record, other_code)
    hidden = [key for key, value in given.items() if REDACTED in json.dumps(value)]
    if hidden:
        raise ConfigError(f"{record.path}: {', '.join(hidden)} held a secret, which is on no record; run the command by hand")
    cwd = record.cwd or Path.cwd()
    for key in (*INPUTS, *_local_files(record)):
        if given.get(key) is not None and not (cwd / str(given[key])).exists():
            raise InputError(
                f"{key} of {record.name} is {given[key]}, which is not in {cwd}; run this from the folder that has it"
            )
    given |= {"artifacts_dir": str(artifacts.resolve()), "run_name": f"again_{record.name}"}
    notes = [f"relative paths are taken from {'the folder it was started in' if record.cwd else 'here'}"]
    if "wandb" in record.values:
        given["wandb"] = "disabled"
        notes.append("W&B is off: metrics.jsonl has all it was told")
    given |= _places(record, given, cwd, artifacts.resolve())
    return Restored(record, given, cwd, tuple(notes))


def _local_files(record: RunRecord) -> Iterator[str]:
    """The options that named a folder or file of their own: a model that came from no hub, a template that does not ship."""
    for row in record.files:
        key = {"model": "model_id", "template": "template"}.get(str(row.get("role")))
        if key is not None and row.get("commit") is None and record.values.get(key) not in (TINY, *list_templates()):
            yield key


def _given(record: RunRecord, other_code: bool) -> dict[str, Any]:
    """The options to give: all but those that are at their default, since some choices are made by who set an option."""
    chosen = {key: value for key, value in record.values.items() if record.sources.get(key) != "default"}
    if other_code:
        return chosen
    defaults = {opt.key: opt.default for opt in options(CONFIGS[record.command])}
    if set(record.values) != set(defaults):
        differ = ", ".join(sorted(set(record.values) ^ set(defaults)))
        raise ConfigError(f"{record.path} has other options than this version ({differ}); use --at-commit, or its version")
    here = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    return chosen | {key: value for key, value in record.values.items() if value != here[key]}


def _places(record: RunRecord, given: Mapping[str, Any], cwd: Path, artifacts: Path) -> dict[str, Any]:
    """Where a data tool writes anew, or where prepared data are taken from, at the commit that was recorded."""
    if record.command.startswith("data "):
        fresh = _fresh(artifacts / "reruns", record.name)
        if record.command == "data prep":
            return {"out_dir": str(fresh / "data"), "snapshot_dir": None, **_pinned(record, given)}
        if record.command == "data pretokenize":
            return {"out_dir": str(fresh / "shards")}
        return {"outfile": str(fresh / "out.jsonl")}
    prepared = [row for row in record.files if row.get("dataset") and row.get("split") and row.get("path")]
    if not prepared:
        return {}
    whole = all(_has(cwd / str(row["path"]), str(row["sha256"])) for row in prepared)
    if whole:
        return {"out_dir": str((cwd / str(prepared[0]["path"])).resolve().parent)}
    fresh = _fresh(artifacts / "reruns", record.name)
    return {"out_dir": str(fresh / "data"), "snapshot_dir": None, **_pinned(record, given)}


def _pinned(record: RunRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """The commit that the data were of, so that a branch that went on cannot matter."""
    commits = {row["commit"] for row in record.files if row.get("split") and row.get("commit")}
    return {"revision": commits.pop()} if len(commits) == 1 and given.get("source") is None else {}


def _has(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _fresh(folder: Path, name: str) -> Path:
    make_folder(folder)
    try:
        return Path(tempfile.mkdtemp(prefix=f"{name}_", dir=folder))
    except OSError as error:
        raise storage_error(folder, error) from None


class Again:
    """A run under way in a process of its own; `before` are the runs that were there when it began."""

    def __init__(self, process: subprocess.Popen[bytes], runs: Path, before: frozenset[Path]) -> None:
        self.process = process
        self._runs, self._before = runs, before
        self._path: Path | None = None

    @property
    def path(self) -> Path | None:
        """The directory that the process made, or None as long as it has made none."""
        if self._path is None:
            for folder in _runs_in(self._runs) - self._before:
                starts = read_status(folder).get("starts") if (folder / "status.json").exists() else None
                if starts and starts[-1].get("pid") == self.process.pid:
                    self._path = folder
        return self._path

    def finished_path(self) -> Path:
        """Returns the directory of the run that has ended. Raises: EngineError when it never had one."""
        if self.path is None:
            raise EngineError(f"the run did not start (exit code {self.process.returncode}); what it said stands above")
        return self.path

    def poll(self, wait_s: float = POLL_S) -> bool:
        """Returns whether the process still runs, after a short wait."""
        time.sleep(wait_s)
        return self.process.poll() is None


@contextmanager
def launched(
    restored: Restored, code: Path, *, resume: Path | None = None, also: Mapping[str, Any] | None = None, quiet: bool = False
) -> Iterator[Again]:
    """Gives the body the restored run as a process of its own, ended with the body; `code` is the folder the package lies in.

    With `resume` (a run or one of its checkpoints) that run is taken up. `also` are options that replace restored ones.
    """
    given = {**restored.given, **(also or {})}
    runs = Path(given["artifacts_dir"]) / "runs"
    module = ONLY_EVALUATES if ONLY_EVALUATES in restored.record.argv else "grpo_gsm8k.cli"
    words = [] if module == ONLY_EVALUATES else restored.record.command.split()
    with tempfile.TemporaryDirectory(prefix="grpo_gsm8k_") as folder:
        config = Path(folder) / "config.json"
        write_json(config, given)
        options = ["--config", str(config)] if resume is None else ["--resume", str(resume.resolve())]
        paths = [str(code), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
        before = _runs_in(runs)
        sys.stdout.flush()
        out = subprocess.DEVNULL if quiet else None
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words, *options],
            cwd=restored.cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        try:
            yield Again(process, runs, before)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()


def _runs_in(folder: Path) -> frozenset[Path]:
    return frozenset(folder.iterdir()) if folder.is_dir() else frozenset()


def own_code() -> Path:
    """Returns the folder that the running package lies in."""
    return PACKAGE.parent


def must_be_training(record: RunRecord, what: str) -> None:
    """Raises: ConfigError where a run has no steps."""
    if record.command not in TRAINING:
        trained = ", ".join(TRAINING)
        raise ConfigError(f"{what} is for training runs ({trained}), and {record.name} is a run of {record.command!r}")


def last_step(ledger: Mapping[tuple[int, bool], Any], record: RunRecord) -> int:
    """Returns the last training step that a ledger holds. Raises: DataError when it holds none."""
    steps = [step for step, evaluated in ledger if not evaluated]
    if not steps:
        raise DataError(f"{record.path} recorded no step: there is nothing to compare with")
    return max(steps)
