"""How every command starts a run: determinism, directory, config, snapshot; or takes an interrupted one up again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from grpo_gsm8k.commands.resume import check_same, read_resumed, read_world
from grpo_gsm8k.config import RunOptions
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.runs.determinism import Toggle, derive_seed, ensure_environment, seed_python
from grpo_gsm8k.runs.directory import RunDirectory, read_status
from grpo_gsm8k.runs.lifecycle import Interrupted, running, signals_ignored
from grpo_gsm8k.runs.record import WORLD
from grpo_gsm8k.runs.redact import scrub_arguments, scrub_values
from grpo_gsm8k.runs.snapshot import torch_cuda, write_snapshot, write_toggles
from grpo_gsm8k.runs.storage import parse_json, read_plain

R = TypeVar("R", bound=RunOptions)

log = logging.getLogger("grpo_gsm8k")

RESUMABLE = ("eval", "sft", "grpo", "expert-iteration")
OWN_SCRIPTS = ("grpo-gsm8k", "cli", "data_prep", "fast_eval_vllm", "pretokenize_r1_pairs", "prep_val_for_vllm")


@dataclass
class Started(Generic[R]):
    """A run under way: its directory, its resolved config, its determinism mode and thread count, and what was toggled."""

    run: RunDirectory
    resolved: Resolved[R]
    mode: str
    num_threads: int
    toggles: list[Toggle]
    resumed: bool
    allow_changes: bool
    resume_step: int | None
    sys: str

    def configure_torch(self) -> None:
        """Seeds and pins torch as the run's mode asks, and records what was got."""
        import torch

        from grpo_gsm8k.runs.determinism import configure_torch

        self.toggles += configure_torch(torch, self.mode, self.resolved.config.seed, self.num_threads)
        write_toggles(self.run, self.toggles, self.sys)
        for toggle in self.toggles:
            if not toggle.held:
                log.warning("determinism: %s is %s, not %s (%s)", toggle.name, toggle.got, toggle.asked, toggle.decided_by)

    def write_sys(self, name: str, value: Any) -> None:
        """Writes a JSON file into the snapshot of this start (a resumed run keeps those of its earlier starts)."""
        self.run.write_json(f"{self.sys}/{name}", value)

    def seed_step(self, step: int) -> None:
        """Makes whatever torch draws in a training step a function of (run seed, step)."""
        import torch

        torch.manual_seed(derive_seed(self.resolved.config.seed, step, "train", 0))


def gpu_at_hand() -> bool:
    """Returns whether this process will see a CUDA GPU, without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return not hidden and torch_cuda() is not None and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None)


@contextmanager
def started(
    command: str, resolved: Resolved[R], *, resume: str | None = None, allow_changes: bool = False
) -> Iterator[Started[R]]:
    """Runs the body as a run of `command`; with `resume` the run called so is taken up again in its own directory."""
    taken_up = None if resume is None else read_resumed(resume, resolved, command, allow_changes)
    config = resolved.config if taken_up is None else taken_up.resolved.config
    mode = config.determinism if config.determinism != "auto" else ("fast" if gpu_at_hand() else "strict")
    tiny = getattr(config, "model_id", None) == "tiny" or (getattr(config, "model_id", None) == "auto" and not gpu_at_hand())
    num_threads = config.num_threads or (1 if tiny else len(os.sched_getaffinity(0)))
    if taken_up is None:
        resolved = _filled(resolved, mode, num_threads)
    toggles = ensure_environment(mode, num_threads, may_restart=_is_process())
    arguments = sys.orig_argv[1:] if _is_process() else []
    run = RunDirectory.create(Path(config.artifacts_dir), command, arguments) if taken_up is None else taken_up.run
    run.lock()
    click.echo(f"run directory: {run.path}", err=True)
    before = read_status(run.path)["state"]
    try:
        with running(run):
            world = read_world(mode, num_threads)
            if taken_up is None:
                write_config(run, resolved)
                run.write_json(WORLD, world)
            else:
                resolved = taken_up.resolved
                taken_up.changes.extend(check_same("world", _world_of(run, world), world, allow_changes))
                record = {"argv": scrub_arguments(arguments), "after": before, "changes": taken_up.changes}
                run.append("resumed.jsonl", record)
                write_config(run, resolved)
            resolved.validate()
            seed_python(config.seed)
            sys_folder = write_snapshot(run, toggles)
            step = None if taken_up is None else taken_up.step
            yield Started(run, resolved, mode, num_threads, toggles, taken_up is not None, allow_changes, step, sys_folder)
    except Interrupted:
        if command in RESUMABLE:
            click.echo(f"to go on: grpo-gsm8k {command} --resume {run.path}", err=True)
        raise
    except Exception as error:
        error.add_note(f"traceback in {run.path / 'run.log'}")
        raise


def _filled(resolved: Resolved[R], mode: str, num_threads: int) -> Resolved[R]:
    """Puts the mode and the thread count that were chosen on the record, so that a resumed run has them too."""
    if resolved.config.determinism == "auto":
        resolved = resolved.filled("determinism", mode, "a GPU is at hand" if mode == "fast" else "no GPU is at hand")
    if resolved.config.num_threads is None:
        resolved = resolved.filled(
            "num_threads", num_threads, "the tiny model is fastest so" if num_threads == 1 else "the cores at hand"
        )
    return resolved


def write_config(run: RunDirectory, resolved: Resolved[Any]) -> None:
    """Writes config.json, without secrets."""
    run.write_json("config.json", scrub_values(resolved.record()))


def is_complete(resume: str | None, resolved: Resolved[R], command: str, allow_changes: bool) -> bool:
    """Returns whether the run to resume is complete, and says so; its report is written where it is missing."""
    if resume is None:
        return False
    run = read_resumed(resume, resolved, command, allow_changes).run
    if read_status(run.path)["state"] != "completed":
        return False
    click.echo(f"nothing to resume: {run.path} is complete (see {run.path / 'result.json'})")
    if not (run.path / "report.html").exists():
        report_on(run)
    return True


def report_on(run: RunDirectory) -> None:
    """Writes the page of a run that has ended, and says where it is."""
    from grpo_gsm8k.runs.report import write_report

    with signals_ignored():
        click.echo(f"report  {write_report(run.path)}")


def record_data(start: Started[R], files: dict[str, Any]) -> None:
    """Writes data.json; on a resumed run the data must be those it began with. Raises: ProofError."""
    here = json.loads(json.dumps(files))
    path = start.run.path / "data.json"
    if start.resumed and path.exists():
        there = parse_json(read_plain(path))
        changes = check_same("data", _by_name(there), _by_name(here), start.allow_changes)
        if changes:
            start.run.append("resumed.jsonl", {"data_changes": changes})
    start.run.write_json("data.json", files)


def _by_name(files: dict[str, Any]) -> dict[str, Any]:
    """One entry a file, by what it is, so that a difference is named; where it lies does not matter."""
    named = {f"{row.get('role') or row.get('dataset')}/{row.get('split')}": row for row in files["files"]}
    return {name: {key: row[key] for key in ("sha256", "rows", "commit") if key in row} for name, row in named.items()}


def _world_of(run: RunDirectory, world: dict[str, str]) -> dict[str, str]:
    """The world that a run began in; a run that was killed before it was written has seen nothing of it."""
    try:
        there: dict[str, str] = parse_json(read_plain(run.path / WORLD))
    except (OSError, ValueError):
        run.write_json(WORLD, world)
        return world
    return there


def _is_process() -> bool:
    """Whether this process was started for the command line, so that it may be replaced by itself."""
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None) or Path(getattr(main, "__file__", "") or "").stem
    return name.startswith("grpo_gsm8k.") or name in OWN_SCRIPTS
