"""Seconds that `runs list` takes over many run directories, as a process of its own.

    python benchmarks/runs_list.py [--num-runs 1000] [--repeats 5]

The goal is under a second for 1,000 runs, all of them shown. The directories are small training runs: 200 lines of metrics, an
evaluation, a config of 90 options.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIT = {"sha": "1234567890" * 4, "source": "checkout", "branch": "main", "dirty": True, "left_out": []}


def make_run(folder: Path, number: int) -> None:
    """Writes one run directory."""
    path = folder / "runs" / f"20260101T{number // 3600:02}{number // 60 % 60:02}{number % 60:02}Z_1234567"
    (path / "sys").mkdir(parents=True)
    (path / "eval").mkdir()
    created = f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000Z"
    start = {"started_at": created, "host": "node", "boot_id": "b", "pid": 1, "pid_start": 1}
    status = {"state": "completed", "command": "grpo", "created_at": created, "starts": [start], "exit_code": 0}
    values = {f"option_{place}": place for place in range(90)} | {"model_id": "Qwen/Qwen2.5-Math-1.5B"}
    grader = {"accuracy": 0.5, "ci95": [0.4, 0.6], "correct": 50, "wrong": 50, "unparsed": 0, "error": 0}
    aggregate = {"step": 200, "num_problems": 100, "primary_grader": "numeric", "accuracy": 0.5, "ci95": [0.4, 0.6]}
    aggregate |= {"graders": dict.fromkeys(("numeric", "gsm8k_strict", "math"), grader)}
    metrics = {f"metric/{place}": 0.1 * place for place in range(40)}
    for name, value in (
        ("status.json", {**status, "ended_at": created}),
        ("config.json", {"values": values, "sources": dict.fromkeys(values, "default")}),
        ("sys/git.json", GIT),
        ("result.json", {"steps": 200, "eval": aggregate}),
        ("eval/step_200.json", aggregate),
    ):
        (path / name).write_text(json.dumps(value, indent=2))
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": step, **metrics}) + "\n" for step in range(1, 201)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.num_runs):
            make_run(Path(folder), number)
        cli = [sys.executable, "-m", "grpo_gsm8k.cli", "runs"]
        where = ["--artifacts-dir", folder]
        ways = {
            "runs --help": [*cli, "--help"],
            "runs list (the newest 20)": [*cli, "list", *where],
            f"runs list --limit {options.num_runs}": [*cli, "list", "--limit", str(options.num_runs), *where],
            f"runs list --limit {options.num_runs} --json": [*cli, "list", "--json", "--limit", str(options.num_runs), *where],
        }
        print(f"{options.num_runs} runs, {options.repeats} repeats\n\n| command | median s | max s |\n|---|---|---|")
        for name, command in ways.items():
            seconds = []
            for _ in range(options.repeats):
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - began)
            print(f"| `{name}` | {statistics.median(seconds):.3f} | {max(seconds):.3f} |")


if __name__ == "__main__":
    main()
