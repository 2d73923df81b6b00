"""`runs certify-resume`: a proof, made on this machine, that a run may be stopped and resumed without a trace."""

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
from grpo_gsm8k.commands.runs_again import TRAINING, Again, Restored, last_step, launched, own_code, restore
from grpo_gsm8k.commands.runs_rerun import divergence_text
from grpo_gsm8k.errors import ConfigError, EngineError, InputError, ProofError
from grpo_gsm8k.runs.checkpoints import COMPLETE, FOLDER
from grpo_gsm8k.runs.directory import read_status, utc_now
from grpo_gsm8k.runs.divergence import Divergence, compare_runs, hashes, read_steps
from grpo_gsm8k.runs.git import read_git
from grpo_gsm8k.runs.metrics import LEDGER
from grpo_gsm8k.runs.record import RunRecord, read_object, read_record
from grpo_gsm8k.runs.snapshot import read_system
from grpo_gsm8k.runs.storage import digest, make_folder, read_lines, sealed, write_json

RESUMABLE = (*TRAINING, "eval")
ROWS, JOURNAL = "eval/step_0.jsonl", "eval/step_0.partial.jsonl"  # an evaluation's completions when it ended, and before
WATCH_S = 0.002  # an evaluation of the tiny model is over in half a second


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
@click.option("--at", help="Steps K,… at whose checkpoints runs are stopped (eval: numbers of completions); default: half.")
@click.option("--kill", is_flag=True, help="Stop with SIGKILL, which no process can answer, in place of SIGTERM.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, at: str | None, kill: bool, artifacts_dir: str) -> None:
    """Prove on this machine that RUN's N steps equal K steps, a stop, a resumption and N - K steps.

    RUN's config is run in a temporary folder: once whole, and once for each K, stopped when K's checkpoint is complete and
    resumed from it; an evaluation (eval) is stopped once K of its N completions are on disk, and goes on from these. Ledger,
    metrics but for times, weights, evaluations and kept rollouts must be equal to the whole run's. The certificate goes into
    RUN (certificates/). Exit code 0: proved; 1: not, and the first divergence is named.
    """
    record = read_record(run, Path(artifacts_dir))
    if record.command not in RESUMABLE:
        raise ConfigError(
            f"{record.path} is a run of {record.command!r}, which has no --resume; allowed are {', '.join(RESUMABLE)}"
        )
    if record.state != "completed":
        raise InputError(f"{record.path} is {record.state}: certify a run that completed")
    total = _num_done(record.path, record)
    points = _points(at, total, _unit(record))
    stop = signal.SIGKILL if kill else signal.SIGTERM
    folder = Path(tempfile.mkdtemp(prefix="grpo_gsm8k_certify_"))
    numbers = ", ".join(map(str, points))
    click.echo(f"certifying {record.name}: {total} {_unit(record)}s, stopped by {stop.name} at {numbers}")
    began = time.monotonic()
    whole = _run_whole(restore(record, folder / "whole"))
    click.echo(f"  whole run: {time.monotonic() - began:.0f} s")
    recorded = compare_runs(record.path, whole).divergence
    cases = []
    for point in points:
        case = _stop_and_resume(restore(record, folder / f"at-{point}"), whole, point, stop)
        cases.append(case)
        told = "identical" if case.divergence is None else divergence_text(case.divergence)[0]
        where = f"resumed at step {point}" if record.command in TRAINING else "resumed"
        click.echo(f"  stopped after {_unit(record)} {case.stopped_after}, {where}: {told}")
    path, certificate = _write(record, total, whole, cases, recorded)
    click.echo("\n".join(certificate_text(certificate)))
    click.echo(f"certificate  {path}")
    broken = [case for case in cases if case.divergence is not None]
    if broken and broken[0].divergence is not None:
        found = divergence_text(broken[0].divergence)[0]
        raise ProofError(
            f"resumed at {_unit(record)} {broken[0].at} the run is another one: {found}; both are kept in {folder}"
        )
    shutil.rmtree(folder, ignore_errors=True)


def _unit(record: RunRecord) -> str:
    """What a run is counted in: what its resumption loses nothing of."""
    return "step" if record.command in TRAINING else "completion"


def _num_done(run: Path, record: RunRecord) -> int:
    """Returns how many steps of a training run, or completions of an evaluation that ended or not, are on disk."""
    if record.command in TRAINING:
        return last_step(read_steps(run, LEDGER), record)
    ended = run / ROWS
    return sum(1 for _ in read_lines(ended if ended.exists() else run / JOURNAL))


def _points(at: str | None, total: int, unit: str) -> list[int]:
    if total < 2:
        raise InputError(f"a run of one {unit} has none at which it could be stopped and go on")
    if at is None:
        return [total // 2]
    points = [int(part) if part.strip().isdecimal() else 0 for part in at.split(",")]
    if not all(1 <= point < total for point in points) or len(set(points)) < len(points):
        raise ConfigError(f"--at is {at!r}: allowed are different {unit}s from 1 to {total - 1}, separated by commas")
    return sorted(points)


def _run_whole(restored: Restored) -> Path:
    """Returns a copy of the run that nothing stops, as its config says, its saves included."""
    with launched(restored, own_code(), quiet=True) as again:
        again.process.wait()
        return _ended_well(again)


def _stop_and_resume(restored: Restored, whole: Path, at: int, stop: signal.Signals) -> Case:
    """Returns what came of a copy of the run that was stopped at a checkpoint, or a completion, and resumed from it."""
    record = restored.record
    changed = _saves(record, at) if record.command in TRAINING else {}
    with launched(restored, own_code(), also=changed, quiet=True) as again:
        while again.path is None or not _has_come_to(again.path, record, at):
            if not again.poll(WATCH_S):
                raise EngineError(f"the copy ended before {_unit(record)} {at} was saved: {_said(again)}")
        again.process.send_signal(stop)
        again.process.wait()
        path = again.finished_path()
    if read_status(path)["state"] == "completed":
        raise InputError(f"the copy was done before it could be stopped at {_unit(record)} {at}; give --at an earlier one")
    stopped_after = _num_done(path, record)
    resume = path / FOLDER / f"step-{at}" if record.command in TRAINING else path
    with launched(restored, own_code(), resume=resume, quiet=True) as again:
        again.process.wait()
    status = read_status(path)
    if status["state"] != "completed":
        raise EngineError(f"the run {path} could not be resumed at {_unit(record)} {at}: {status.get('reason')}")
    found = compare_runs(whole, path, sparse_weights="save_every" in changed).divergence
    return Case(at, stopped_after, stop.name, changed, hashes(path), found)


def _saves(record: RunRecord, at: int) -> dict[str, Any]:
    """The options by which step `at` of a training run is saved, and still there when the run is resumed."""
    every = record.values.get("save_every")
    changed: dict[str, Any] = {} if every is not None and at % int(every) == 0 else {"save_every": at}
    return changed | ({"keep_last": None} if record.values.get("keep_last") is not None else {})


def _has_come_to(run: Path, record: RunRecord, at: int) -> bool:
    if record.command in TRAINING:
        return (run / FOLDER / f"step-{at}" / COMPLETE).exists()
    return _num_done(run, record) >= at


def _ended_well(again: Again) -> Path:
    path = again.finished_path()
    if again.process.returncode != 0:
        raise EngineError(f"the copy ended with exit code {again.process.returncode}: {_said(again)}")
    return path


def _said(again: Again) -> str:
    path = again.path
    return f"{read_status(path).get('reason')}; see {path / 'run.log'}" if path is not None else "it never started"


def _write(
    record: RunRecord, total: int, whole: Path, cases: list[Case], recorded: Divergence | None
) -> tuple[Path, dict[str, Any]]:
    git = read_git()
    certificate = {
        "certificate": "resume",
        "created_at": utc_now(),
        "run": record.name,
        "command": record.command,
        "config_sha256": digest(dict(record.values)),
        "unit": _unit(record),
        "num_units": total,
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
    write_json(path, sealed(certificate))
    return path, certificate


def _data(run: Path) -> dict[str, str]:
    from grpo_gsm8k.runs.divergence import named_files

    return named_files(read_object(run / "data.json").get("files", []))


def certificate_text(certificate: Mapping[str, Any]) -> list[str]:
    """Returns a certificate as a person reads it."""
    world = certificate["world"]
    lines = [
        "─" * 80,
        f"certificate of resumption: {certificate['command']} run {certificate['run']}, {certificate['num_units']} "
        f"{certificate['unit']}s",
        f"  code {world['code']}  torch {world['torch']}  {world['cpu']}  gpu {world['gpu']}  {world['num_threads']} thread(s)",
        f"  {'uninterrupted':<19} " + _hash_line(certificate["uninterrupted"]),
    ]
    for case in certificate["cases"]:
        at = case["at"] if certificate["unit"] == "step" else case["stopped_after"]
        parts = f"{at} + {case['stopped_by']} + {certificate['num_units'] - at}"
        lines.append(f"  {parts:<19} " + _hash_line(case["hashes"]))
        options = ", ".join(f"{key} = {value}" for key, value in case["changed_options"].items())
        lines.append(f"    {case['verdict']}{f' (with {options}, which changes no result)' if options else ''}")
    recorded = certificate["recorded_run"]
    same = "identical" if recorded == "identical" else f"not identical: {recorded['file']} parts at step {recorded['step']}"
    lines.append(f"  the recorded run and the one done now: {same}")
    return [*lines, f"verdict  {certificate['verdict']}", "─" * 80]


def _hash_line(named: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {value[:12]}" for name, value in named.items())
