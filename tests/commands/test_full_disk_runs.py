"""Commands on a disk that fills up: one line, a failed run, what was complete stays, and with more room the same results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import ask_all
from training_runs import facts, here, only_run

from grpo_gsm8k.runs.checkpoints import complete_checkpoints, what_is_wrong
from grpo_gsm8k.runs.directory import read_status

EVAL = "eval --limit 40 --wandb disabled --out_dir data"
GRPO = "grpo --config grpo-tiny --max_steps 4 --warmup_steps 1 --prompts_per_step 4 --group_size 4 --num_minibatches 1"
GRPO += " --eval_examples 8 --num_problems 100 --save_every 1 --keep_last 4 --eval_every 2 --wandb disabled"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a folder on a file system of its own, of a size that can be changed (needs the right to mount)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(text: str) -> Path:
        how = ["-o", f"remount,size={text}"] if folder.is_mount() else ["-t", "tmpfs", "-o", f"size={text}"]
        if subprocess.run(["mount", *how, "tmpfs", str(folder)], capture_output=True).returncode or sys.platform != "linux":
            pytest.skip("may not mount a tmpfs here")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def fill_disk(folder: Path, arguments: list[str]) -> Path:
    """Returns the run of a command that a full disk ended: said in one line, on record, every file whole."""
    done = here(folder, *arguments)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.split("\n") if line.startswith("error:")]
    assert len(errors) == 1 and "disk is full" in errors[0], done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    run = only_run(folder)
    status = read_status(run)
    assert status["state"] == "failed" and "disk is full" in status["reason"], status
    for path in run.rglob("*.json"):
        json.loads(path.read_bytes())
    for path in run.rglob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    return run


def check_asked(run: Path) -> None:
    """Every command says something of the run on the full disk, in a line where it cannot go on."""
    for name, asked in ask_all(run, leave_out=("rerun", "rerun --steps", "certify-resume")).items():
        assert asked.returncode in (0, 1, 2), name
        assert asked.stderr == "" or (asked.stderr.startswith("error: ") and asked.stderr.count("\n") == 1), (
            name,
            asked.stderr,
        )
        assert "unexpected failure" not in asked.stderr, (name, asked.stderr)


def run_and_measure(folder: Path, arguments: list[str]) -> tuple[Path, int]:
    """Returns the run of a command that has all the room it wants, and how many KiB it and its data take."""
    folder.mkdir()
    done = here(folder, *arguments)
    assert done.returncode == 0, done.stderr
    taken = sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())
    return only_run(folder), taken


@pytest.mark.slow
def test_an_evaluation_that_fills_its_disk_goes_on_where_there_is_room(disk: Callable[[str], Path], tmp_path: Path) -> None:
    whole, taken = run_and_measure(tmp_path / "whole", EVAL.split())
    folder = disk(f"{taken * 6 // 10}k")
    run = fill_disk(folder, EVAL.split())
    check_asked(run)
    disk("50m")
    done = here(folder, "eval", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    for name in ("eval/step_0.jsonl", "eval/step_0.json", "ledger.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("percent", [10, 30, 60, 90])
def test_training_that_fills_its_disk_keeps_its_checkpoints_and_goes_on(
    percent: int, disk: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, taken = run_and_measure(tmp_path / "whole", GRPO.split())
    folder = disk(f"{taken * percent // 100}k")
    run = fill_disk(folder, GRPO.split())
    kept = complete_checkpoints(run)
    assert len(kept) >= (1 if percent >= 60 else 0)
    assert all(what_is_wrong(checkpoint.path) is None for checkpoint in kept)
    check_asked(run)
    disk("100m")
    done = here(folder, "grpo", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert facts(run) == facts(whole)
