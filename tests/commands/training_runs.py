"""Training commands run as a person runs them, killed and resumed; what must be equal afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from grpo_gsm8k.cli import main
from grpo_gsm8k.runs.storage import read_lines


def here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the harness in this process; returns its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command of the harness as a process of its own; its messages are in the file `stderr`."""
    command = [sys.executable, "-m", "grpo_gsm8k.cli", *arguments]
    with (folder / "stderr").open("a") as errors:
        return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=errors)


def only_run(folder: Path) -> Path:
    """Returns the run that was made in `folder`."""
    (path,) = (folder / "artifacts" / "runs").iterdir()
    return path


def run_whole(folder: Path, *arguments: str) -> Path:
    """Returns the run of a command that nothing interrupted."""
    process = start(folder, *arguments)
    assert process.wait(timeout=280) == 0, (folder / "stderr").read_text()
    return only_run(folder)


def kill_and_resume(folder: Path, arguments: list[str], moments: list[float]) -> tuple[Path, int]:
    """Kills the run after each of `moments` seconds of life, lets it end at last; returns it and how often it was killed."""
    kills = 0
    for moment in [*moments, None]:
        runs = [path.parent for path in folder.glob("artifacts/runs/*/config.json")]
        process = start(folder, *([arguments[0], "--resume", str(runs[0])] if runs else arguments))
        try:
            code = process.wait(timeout=280 if moment is None else moment)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0, (folder / "stderr").read_text()
        break
    return only_run(folder), kills


def wait_for(condition: Any, timeout_s: float = 120.0) -> None:
    """Waits until `condition()` is true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Returns the metrics without what may differ between runs."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "sys/"))}
        for row in read_lines(run / "metrics.jsonl")
    ]


def facts(run: Path) -> dict[str, Any]:
    """Returns what must be equal however often a run was killed: everything but times."""
    evals = {path.name: path.read_bytes() for path in sorted((run / "eval").glob("step_*"))}
    kept = {
        str(path.relative_to(run)): path.read_bytes() for name in ("rollouts", "expert_data") for path in run.glob(f"{name}/*")
    }
    result = json.loads((run / "result.json").read_bytes())
    return {
        "ledger": (run / "ledger.jsonl").read_bytes(),
        "metrics": metrics_of(run),
        "evals": evals,
        "kept": kept,
        "result": result,
    }
