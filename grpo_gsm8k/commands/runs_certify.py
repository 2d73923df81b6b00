"""`runs certify-resume`: a proof, made on this machine, that a training run may be stopped and resumed without a trace."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

import grpo_gsm8k
from grpo_gsm8k.commands.from_config import CONTEXT
from grpo_gsm8k.commands.resume import read_world
from grpo_gsm8k.commands.runs_again import Again, Restored, last_step, launched, must_be_training, own_code, restore
from grpo_gsm8k.commands.runs_rerun import divergence_text
from grpo_gsm8k.errors import ConfigError, EngineError, InputError, ProofError
from grpo_gsm8k.runs.checkpoints import COMPLETE, FOLDER
from grpo_gsm8k.runs.directory import read_status, utc_now
from grpo_gsm8k.runs.divergence import Divergence, compare_runs, hashes, read_steps
from grpo_gsm8k.runs.git import read_git
from grpo_gsm8k.runs.metrics import LEDGER
from grpo_gsm8k.runs.record import RunRecord, read_object, read_record
from grpo_gsm8k.runs.snapshot import read_system
from grpo_gsm8k.runs.storage import digest, make_folder, write_json


@dataclass(frozen=True)
class Case:
    """One run that was stopped and resumed: where, how far it had come by then, and where it parts from the whole run."""

    at: int
    stopped_after: int
    stopped_by: str
    changed_options: Mapping[str, Any]
    hashes: Mapping[str, str]
    divergence: Divergence | None


@click.command("certify-resume", context_settings=CONTEXT)
@click.argument("run")
@click.option("--at", help="Steps K,… at whose checkpoints runs are stopped; default: half of the steps.")
@click.option("--kill", is_flag=True, help="Stop with SIGKILL, which no process can answer, in place of SIGTERM.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, at: str | None, kill: bool, artifacts_dir: str) -> None:
    """Prove on this machine that RUN's N steps equal K steps, a stop, a resumption and N - K steps.

    RUN's config is run in a temporary folder: once whole, and once for each K, stopped when K's checkpoint is complete and
    resumed from it. Ledger, metrics but for times, weights, evaluations and kept rollouts must be equal to the whole run's.
    The certificate goes into RUN (certificates/). Exit code 0: proved; 1: not, and the first divergence is named.
    """
    record = read_record(run, Path(artifacts_dir))
    must_be_training(record, "certify-resume")
    if record.state != "completed":
        raise InputError(f"{record.path} is {record.state}: certify a run that completed")
    steps = last_step(read_steps(record.path, LEDGER), record)
    points = _points(at, steps)
    stop = signal.SIGKILL if kill else signal.SIGTERM
    folder = Path(tempfile.mkdtemp(prefix="grpo_gsm8k_certify_"))
    click.echo(f"certifying {record.name}: {steps} steps, stopped by {stop.name} at {', '.join(map(str, points))}")
    began = time.monotonic()
    whole = _run_whole(restore(record, folder / "whole"))
    click.echo(f"  whole run: {time.monotonic() - began:.0f} s")
    recorded = compare_runs(record.path, whole).divergence
    cases = []
    for point in points:
        case = _stop_and_resume(restore(record, folder / f"at-{point}"), whole, point, stop)
        cases.append(case)
        told = "identical" if case.divergence is None else divergence_text(case.divergence)[0]
        click.echo(f"  stopped after step {case.stopped_after}, resumed at step {point}: {told}")
    path, certificate = _write(record, steps, whole, cases, recorded)
    click.echo("\n".join(certificate_text(certificate)))
    click.echo(f"certificate  {path}")
    broken = [case for case in cases if case.divergence is not None]
    if broken and broken[0].divergence is not None:
        found = divergence_text(broken[0].divergence)[0]
        raise ProofError(f"resumed at step {broken[0].at} the run is another one: {found}; both are kept in {folder}")
    shutil.rmtree(folder, ignore_errors=True)


def _points(at: str | None, steps: int) -> list[int]:
    if steps < 2:
        raise InputError("a run of one step has no step at which it could be stopped and go on")
    if at is None:
        return [steps // 2]
    points = [int(part) if part.strip().isdigit() else 0 for part in at.split(",")]
    if not all(1 <= point < steps for point in points) or len(set(points)) < len(points):
        raise ConfigError(f"--at is {at!r}: allowed are different steps from 1 to {steps - 1}, separated by commas")
    return sorted(points)


def _run_whole(restored: Restored) -> Path:
    """Returns a copy of the run that nothing stops, as its config says, its saves included."""
    with launched(restored, own_code(), quiet=True) as again:
        again.process.wait()
        return _ended_well(again)


def _stop_and_resume(restored: Restored, whole: Path, at: int, stop: signal.Signals) -> Case:
    """Returns what came of a copy of the run that was stopped at a checkpoint and resumed from it."""
    every = restored.record.values.get("save_every")
    changed: dict[str, Any] = {} if every is not None and at % int(every) == 0 else {"save_every": at}
    if restored.record.values.get("keep_last") is not None:
        changed["keep_last"] = None  # the checkpoint must still be there when the run is resumed
    with launched(restored, own_code(), also=changed, quiet=True) as again:
        while again.path is None or not (again.path / FOLDER / f"step-{at}" / COMPLETE).exists():
            if not again.poll():
                raise EngineError(f"the copy ended before step {at} was saved: {_said(again)}")
        again.process.send_signal(stop)
        again.process.wait()
        path = again.finished_path()
    if read_status(path)["state"] == "completed":
        raise InputError(f"the copy was done before it could be stopped at step {at}; give --at an earlier step")
    ledger = read_steps(path, LEDGER)
    stopped_after = last_step(ledger, restored.record)
    with launched(restored, own_code(), resume=path / FOLDER / f"step-{at}", quiet=True) as again:
        again.process.wait()
    status = read_status(path)
    if status["state"] != "completed":
        raise EngineError(f"the run {path} could not be resumed at step {at}: {status.get('reason')}")
    found = compare_runs(whole, path, sparse_weights="save_every" in changed).divergence
    return Case(at, stopped_after, stop.name, changed, hashes(path), found)


def _ended_well(again: Again) -> Path:
    path = again.finished_path()
    if again.process.returncode != 0:
        raise EngineError(f"the copy ended with exit code {again.process.returncode}: {_said(again)}")
    return path


def _said(again: Again) -> str:
    path = again.path
    return f"{read_status(path).get('reason')}; see {path / 'run.log'}" if path is not None else "it never started"


def _write(
    record: RunRecord, steps: int, whole: Path, cases: list[Case], recorded: Divergence | None
) -> tuple[Path, dict[str, Any]]:
    git = read_git()
    certificate = {
        "certificate": "resume",
        "created_at": utc_now(),
        "run": record.name,
        "command": record.command,
        "config_sha256": digest(dict(record.values)),
        "num_steps": steps,
        "verdict": "identical" if all(case.divergence is None for case in cases) else "divergent",
        "uninterrupted": hashes(whole),
        "cases": [{**asdict(case), "verdict": "identical" if case.divergence is None else "divergent"} for case in cases],
        "recorded_run": "identical" if recorded is None else asdict(recorded),
        "package": grpo_gsm8k.__version__,
        "git": {"sha": git.sha, "dirty": git.dirty},
        "world": read_world(str(record.values["determinism"]), int(record.values["num_threads"])),
        "machine": {key: read_system()[key] for key in ("os", "cpu", "container")},
        "data": {str(name): sha for name, sha in _data(whole).items()},
    }
    folder = record.path / "certificates"
    make_folder(folder)
    stamp = "".join(char for char in str(certificate["created_at"]) if char.isalnum())
    path = folder / f"resume_{stamp}.json"
    write_json(path, certificate)
    return path, certificate


def _data(run: Path) -> dict[str, str]:
    from grpo_gsm8k.runs.divergence import named_files

    return named_files(read_object(run / "data.json").get("files", []))


def certificate_text(certificate: Mapping[str, Any]) -> list[str]:
    """Returns a certificate as a person reads it."""
    world = certificate["world"]
    lines = [
        "─" * 80,
        f"certificate of resumption: {certificate['command']} run {certificate['run']}, {certificate['num_steps']} steps",
        f"  code {world['code']}  torch {world['torch']}  {world['cpu']}  gpu {world['gpu']}  {world['num_threads']} thread(s)",
        f"  {'uninterrupted':<16}" + _hash_line(certificate["uninterrupted"]),
    ]
    for case in certificate["cases"]:
        at, by = case["at"], case["stopped_by"]
        parts = f"{at} + {by} + {certificate['num_steps'] - at}"
        lines.append(f"  {parts:<16}" + _hash_line(case["hashes"]))
        options = ", ".join(f"{key} = {value}" for key, value in case["changed_options"].items())
        lines.append(f"    {case['verdict']}{f' (with {options}, which changes no result)' if options else ''}")
    recorded = certificate["recorded_run"]
    same = "identical" if recorded == "identical" else f"not identical: {recorded['file']} parts at step {recorded['step']}"
    lines.append(f"  the recorded run and the one done now: {same}")
    return [*lines, f"verdict  {certificate['verdict']}", "─" * 80]


def _hash_line(named: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {value[:12]}" for name, value in named.items())
