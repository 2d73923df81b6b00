"""How every command starts a run: determinism, directory, config, snapshot; or takes an interrupted one up again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from grpo_gsm8k.config import RunOptions
from grpo_gsm8k.errors import ConfigError, InputError
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.runs.determinism import Toggle, ensure_environment, seed_python
from grpo_gsm8k.runs.directory import RunDirectory, claim, open_run, read_status
from grpo_gsm8k.runs.lifecycle import running
from grpo_gsm8k.runs.redact import scrub_arguments
from grpo_gsm8k.runs.snapshot import torch_cuda, write_snapshot, write_toggles

R = TypeVar("R", bound=RunOptions)


@dataclass
class Started(Generic[R]):
    """A run under way: its directory, its resolved config, its determinism mode and thread count, and what was toggled."""

    run: RunDirectory
    resolved: Resolved[R]
    mode: str
    num_threads: int
    toggles: list[Toggle]
    resumed: bool

    def configure_torch(self) -> None:
        """Seeds and pins torch as the run's mode asks, and records what was got."""
        import torch

        from grpo_gsm8k.runs.determinism import configure_torch

        self.toggles += configure_torch(torch, self.mode, self.resolved.config.seed, self.num_threads)
        write_toggles(self.run, self.toggles)


def gpu_at_hand() -> bool:
    """Returns whether this process will see a CUDA GPU, without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return not hidden and torch_cuda() is not None and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None)


def read_resumed(name: str, given: Resolved[R], command: str) -> tuple[RunDirectory, Resolved[R]]:
    """Returns the run to resume and its own config. Raises: ConfigError when a flag given now says otherwise."""
    run = open_run(name, Path(given.config.artifacts_dir))
    try:
        record = json.loads((run.path / "config.json").read_bytes())
        kind = json.loads((run.path / "command.json").read_bytes())["command"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{run.path} stopped before its config was written and cannot be resumed: {error}") from None
    if kind != command:
        raise ConfigError(f"{run.path} is a run of {kind!r}, not of {command!r}")
    names = {spec.name for spec in fields(given.config)}
    values: dict[str, Any] = {}
    for key, value in record["values"].items():
        values[key] = tuple(value) if isinstance(value, list) else value
    if set(values) != names:
        raise ConfigError(f"{run.path} has other options than this version: {', '.join(sorted(set(values) ^ names))}")
    asked = {key for key, source in given.sources.items() if source != "default"} - {"artifacts_dir"}
    differ = [key for key in sorted(asked) if getattr(given.config, key) != values[key]]
    if differ:
        shown = ", ".join(f"{key} is {values[key]!r} there and {getattr(given.config, key)!r} here" for key in differ)
        raise ConfigError(f"--resume goes on with the run's own options, but {shown}; leave them out or start a new run")
    return run, Resolved(type(given.config)(**values), record["sources"])


@contextmanager
def started(command: str, resolved: Resolved[R], *, resume: str | None = None) -> Iterator[Started[R]]:
    """Runs the body as a run of `command`; with `resume` the run called so is taken up again in its own directory."""
    run = None
    if resume is not None:
        run, resolved = read_resumed(resume, resolved, command)
        claim(run)
    config = resolved.config
    mode = config.determinism if config.determinism != "auto" else ("fast" if gpu_at_hand() else "strict")
    tiny = getattr(config, "model_id", None) == "tiny" or (getattr(config, "model_id", None) == "auto" and not gpu_at_hand())
    num_threads = config.num_threads or (1 if tiny else len(os.sched_getaffinity(0)))
    toggles = ensure_environment(mode, num_threads, may_restart=_is_process())
    arguments = sys.orig_argv[1:] if _is_process() else []
    if run is None:
        run = RunDirectory.create(Path(config.artifacts_dir), command, arguments)
    click.echo(f"run directory: {run.path}", err=True)
    again = resume is not None
    before = read_status(run.path)["state"]
    try:
        with running(run):
            if again:
                run.append("resumed.jsonl", {"argv": scrub_arguments(arguments), "after": before})
            else:
                run.write_json("config.json", resolved.record())
            seed_python(config.seed)
            write_snapshot(run, toggles)
            yield Started(run, resolved, mode, num_threads, toggles, again)
    except Exception as error:
        error.add_note(f"traceback in {run.path / 'run.log'}")
        raise


def _is_process() -> bool:
    """Whether this process was started for the command line, so that it may be replaced by itself."""
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None) or Path(getattr(main, "__file__", "") or "").stem
    return name.startswith("grpo_gsm8k.") or name in ("grpo-gsm8k", "cli", "data_prep", "fast_eval_vllm")
