"""`runs tail`: a run is followed until it ends, dies or is no longer watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from small_runs import ask, make_training_run

from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.following import LineFollower

LIVING = """
import sys, time
from pathlib import Path
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.lifecycle import running
run = RunDirectory.create(Path(sys.argv[1]), "grpo", [])
run.lock()
with running(run):
    for step in range(1, int(sys.argv[2])):
        run.append("metrics.jsonl", {"step": step, "train/loss": 0.5})
        print(run.path, flush=True)
        time.sleep(0.05)
"""


def living(folder: Path, num_steps: int) -> tuple[subprocess.Popen[str], Path]:
    """A run in a process of its own, and its directory."""
    process = subprocess.Popen([sys.executable, "-c", LIVING, str(folder), str(num_steps)], text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_finished_run_shows_its_last_lines_and_how_it_ended(tmp_path: Path) -> None:
    path = make_training_run(tmp_path)
    asked = ask("tail", path, "-n", 2)
    assert asked.returncode == 0
    first, second, last = asked.stdout.rstrip().split("\n")
    assert first.startswith("step 1  reward/mean 0.3333  train/loss -0.01")
    assert second.startswith("step 2")
    assert last.startswith(f"{path.name}: completed, exit code 0, at 20")
    assert ask("tail", path, "--json").stdout.count("\n") == 4


def test_a_running_run_is_followed_to_its_end_and_no_line_is_lost(tmp_path: Path) -> None:
    process, path = living(tmp_path, 20)
    asked = ask("tail", path, "-n", 1000)
    assert process.wait() == 0
    lines = asked.stdout.rstrip().split("\n")
    assert [line.split()[1] for line in lines[:-1]] == [str(step) for step in range(1, 20)]
    assert ": completed, exit code 0" in lines[-1]


def test_the_death_of_a_run_is_noticed(tmp_path: Path) -> None:
    process, path = living(tmp_path, 10**6)

    def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    timer = threading.Timer(0.3, kill)
    timer.start()
    asked = ask("tail", path)
    timer.join()
    assert asked.returncode == 0
    assert f"{path.name}: died: its process is gone" in asked.stdout
    assert " died " in ask("list", "--artifacts-dir", tmp_path).stdout
    assert "no manifest.json: the run died before it was written" in ask("verify", path).stdout


def test_ctrl_c_ends_the_following_and_not_the_run(tmp_path: Path) -> None:
    process, path = living(tmp_path, 10**6)
    command = [sys.executable, "-m", "grpo_gsm8k.cli", "runs", "tail", str(path)]
    following = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert following.stdout is not None and following.stderr is not None
    assert following.stdout.readline().startswith("step ")
    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=30) == 130
    assert following.stderr.read() == "interrupted (SIGINT)\n"
    assert process.poll() is None
    process.kill()
    process.wait()


def test_lines_put_in_another_order_at_the_end_are_not_said_twice(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "grpo", [])
    follower = LineFollower(run.path / "metrics.jsonl")
    assert list(follower.new_rows()) == []
    run.append("metrics.jsonl", {"step": 2}, {"step": 0})
    assert [row["step"] for row in follower.new_rows()] == [2, 0]
    time.sleep(0.01)
    (run.path / "sorted").write_text('{"step": 0}\n{"step": 2}\n{"step": 3}\n{"st')
    (run.path / "sorted").replace(run.path / "metrics.jsonl")
    assert [row["step"] for row in follower.new_rows()] == [3]
