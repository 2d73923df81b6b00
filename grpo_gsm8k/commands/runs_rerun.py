"""`runs rerun`: a run done again from its directory alone, and compared with it line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.commands.from_config import CONTEXT
from grpo_gsm8k.commands.runs_again import (
    TRAINING,
    Again,
    Restored,
    last_step,
    launched,
    must_be_training,
    own_code,
    restore,
)
from grpo_gsm8k.commands.runs_checks import Check, check_all, checks_text
from grpo_gsm8k.errors import ConfigError, EngineError, InputError, ProofError
from grpo_gsm8k.runs.directory import utc_now
from grpo_gsm8k.runs.divergence import (
    Divergence,
    Verdict,
    agreement,
    compare_runs,
    drifts,
    read_steps,
    stage_words,
)
from grpo_gsm8k.runs.git import checked_out
from grpo_gsm8k.runs.metrics import LEDGER, METRICS
from grpo_gsm8k.runs.record import RunRecord, read_object, read_record
from grpo_gsm8k.runs.storage import make_folder, sealed, write_json

SHOWN_DRIFTS = 12
RECORD = Path("certificates/rerun.json")


@click.command("rerun", context_settings=CONTEXT)
@click.argument("run")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Artifacts folder of the new run; default: RUN's."
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop once step N is done, and compare up to there (training).")
@click.option("--at-commit", is_flag=True, help="Run the recorded commit, with the recorded dirty.diff, from a worktree.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, out: Path | None, steps: int | None, at_commit: bool, artifacts_dir: str) -> None:
    """Do RUN again from its directory alone, and say whether the two are identical.

    Says first what is not as it was, and what that rules out. Then the command runs as a new run, and the two are compared:
    data, ledger, metrics but for times, evaluations, kept rollouts, result. Exit code 0: identical; 1: not, and the first
    divergence is named by step and stage; 2: RUN cannot be done again.
    """
    record = read_record(run, Path(artifacts_dir))
    upto = _upto(record, steps)
    if out is None:
        out = record.path.parent.parent if record.path.parent.name == "runs" else Path(artifacts_dir)
    with _code(record, at_commit) as code:
        restored = restore(record, out, other_code=at_commit)
        checks = check_all(restored, code)
        told = f"up to step {upto}" if upto is not None else "whole"
        _say(
            f"rerun of {record.name} ({record.command}, {record.state}), {told}",
            *checks_text(checks, record, at_commit=at_commit),
        )
        _say(*(f"  {note}" for note in restored.notes), "─" * 80)
        again = run_again(restored, code, upto)
    verdict = compare_runs(record.path, again, upto)
    _say("─" * 80, *verdict_text(verdict, record.path, again, upto))
    _keep(record, again, checks, verdict, upto)
    if verdict.divergence is not None:
        raise ProofError(f"{again.name} is not identical with {record.name}: {divergence_text(verdict.divergence)[0][9:]}")


def _upto(record: RunRecord, steps: int | None) -> int | None:
    """The step up to which there is something to compare; None for a run that ended well and is compared whole."""
    if steps is not None:
        must_be_training(record, "--steps")
    if record.command not in TRAINING:
        if record.state != "completed":
            raise InputError(f"{record.path} is {record.state} ({record.reason}): there is nothing whole to compare with")
        return None
    last = last_step(read_steps(record.path, LEDGER), record)
    if steps is not None and steps > last:
        raise ConfigError(f"--steps is {steps}, and {record.name} recorded {last} steps; allowed is 1 to {last}")
    if record.state != "completed":
        return steps or last
    return steps if steps != last else None


@contextmanager
def _code(record: RunRecord, at_commit: bool) -> Iterator[Path]:
    if not at_commit:
        yield own_code()
        return
    if record.git.get("source") != "checkout":
        raise InputError(
            f"{record.path} ran from no checkout (its commit is {record.git.get('sha')}): there is nothing to check out"
        )
    diff = record.path / "sys/dirty.diff"
    if record.git.get("diff_redacted"):
        raise InputError(f"{diff}: a secret was taken out of it, so that it no longer makes the code that ran")
    with checked_out(str(record.git["sha"]), diff if diff.exists() else None) as tree:
        yield tree


def run_again(restored: Restored, code: Path, upto: int | None) -> Path:
    """Returns the directory of the new run; with `upto` it is stopped (SIGTERM) once that step and its evaluations are done.

    The schedules follow from the config's own number of steps, so the config is left as it is and the process is stopped.
    Raises: EngineError when it failed.
    """
    with launched(restored, code) as again:
        if upto is None:
            code_ = again.process.wait()
        else:
            wanted = read_steps(restored.record.path, LEDGER, upto).keys()
            while again.poll() and not _has_steps(again, upto, wanted):
                pass
            ended = again.process.poll()
            again.process.terminate()
            code_ = again.process.wait()
            code_ = 0 if ended is None else code_
        path = again.finished_path()
    if code_ != 0:
        reason = read_object(path / "status.json").get("reason")
        raise EngineError(f"the rerun {path} ended with exit code {code_}: {reason}; what it recorded is there")
    return path


def _has_steps(again: Again, upto: int, wanted: Any) -> bool:
    path = again.path
    return path is not None and wanted <= read_steps(path, LEDGER, upto).keys()


def verdict_text(verdict: Verdict, there: Path, here: Path, upto: int | None) -> list[str]:
    """Returns the verdict as a person reads it; where the runs part, also what agrees and how far the metrics lie apart."""
    where = "" if upto is None else f" up to step {upto}"
    lines = [f"run      {there}", f"rerun    {here}", f"compared {', '.join(verdict.compared)}{where}"]
    if verdict.divergence is None:
        return [*lines, f"verdict  identical{where}"]
    lines += divergence_text(verdict.divergence)
    ledgers, metrics = ([read_steps(run, name, upto) for run in (there, here)] for name in (LEDGER, METRICS))
    stages = agreement(ledgers[0], ledgers[1])
    if stages:
        lines.append("agreement of the ledgers, stage by stage:")
        lines += [f"  {stage_words(stage):<32} {agreed:>6} of {total}" for stage, (agreed, total) in stages.items()]
    found = drifts(metrics[0], metrics[1])
    if found:
        lines.append("largest difference of each metric, and where:")
        lines += [
            f"  {one.key:<32} {one.size:.3g}  (step {one.step}: {one.there!r}, {one.here!r})" for one in found[:SHOWN_DRIFTS]
        ]
        lines += [f"  … {len(found) - SHOWN_DRIFTS} more ({RECORD} has them)"] if len(found) > SHOWN_DRIFTS else []
    return lines


def divergence_text(found: Divergence) -> list[str]:
    """Returns a divergence in words: its step and stage, both values, and the first row in which it shows."""
    step = "" if found.step is None else f"step {found.step}, "
    lines = [f"verdict  first divergence at {step}{stage_words(found.stage)} ({found.file})"]
    lines += [f"  there  {found.there!r}", f"  here   {found.here!r}"]
    return lines + ([f"  first in {found.detail}"] if found.detail else [])


def _keep(record: RunRecord, again: Path, checks: list[Check], verdict: Verdict, upto: int | None) -> None:
    """Writes the new run's certificates/rerun.json: of which run it is the rerun, what was not as it was, and the verdict."""
    ledgers, metrics = ([read_steps(run, name, upto) for run in (record.path, again)] for name in (LEDGER, METRICS))
    found = verdict.divergence
    make_folder(again / RECORD.parent)
    certificate = sealed(
        {
            "rerun_of": record.name,
            "created_at": utc_now(),
            "upto": upto,
            "verdict": "identical" if found is None else "divergent",
            "first_divergence": None if found is None else asdict(found),
            "compared": verdict.compared,
            "differs": [asdict(check) for check in checks if check.effect != "none"],
            "agreement": agreement(ledgers[0], ledgers[1]),
            "drift": [asdict(one) for one in drifts(metrics[0], metrics[1])],
        }
    )
    write_json(again / RECORD, certificate)


def _say(*lines: str) -> None:
    """Prints lines at once, so that they stand before what the run's own process says."""
    click.echo("\n".join(lines))
    sys.stdout.flush()
