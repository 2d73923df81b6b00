"""A checkpoint is whole or not there."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_gsm8k.errors import InputError, StorageError
from grpo_gsm8k.runs.checkpoints import Checkpoints, complete_checkpoints, cut_back, find_checkpoint, settle, split_resume
from grpo_gsm8k.runs.directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "sft", [])


def save(run: RunDirectory, step: int, keep_last: int | None = None, content: str = "weights") -> Path:
    with Checkpoints(run, keep_last).writing(step) as path:
        (path / "model").mkdir()
        (path / "model" / "w").write_text(f"{content} {step}")
    return path


def test_a_saved_checkpoint_is_found_and_on_the_record(run: RunDirectory) -> None:
    assert find_checkpoint(run.path) is None
    save(run, 5)
    save(run, 10)
    found = find_checkpoint(run.path)
    assert found is not None
    assert (found.step, (found.path / "model/w").read_text()) == (10, "weights 10")
    assert [row["step"] for row in run.read("checkpoints.jsonl")] == [5, 10]
    earlier = find_checkpoint(run.path, upto=9)
    assert earlier is not None
    assert earlier.step == 5


def test_keep_last_prunes_the_oldest_and_never_the_newest(run: RunDirectory) -> None:
    for step in (1, 2, 3, 4):
        save(run, step, keep_last=2)
    assert [found.step for found in complete_checkpoints(run.path)] == [3, 4]
    assert [(row["step"], row["state"]) for row in run.read("checkpoints.jsonl")][-1] == (2, "pruned")
    assert not (run.path / "checkpoints/step-1").exists()


def test_a_half_written_checkpoint_is_ignored_with_a_warning_that_names_it(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    save(run, 5)
    (run.path / "checkpoints/step-9").mkdir()
    (run.path / "checkpoints/step-9/model").write_text("half")
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(run.path)
    assert found is not None
    assert found.step == 5
    assert "step-9: it is half-written" in caplog.text
    save(run, 9)
    assert [path.step for path in complete_checkpoints(run.path)] == [5, 9]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "complete"])
def test_a_damaged_checkpoint_is_ignored_with_the_file_named(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(run, 5)
    path = save(run, 10)
    file = path / "model/w"
    {
        "flip": lambda: file.write_text("weights 11"),
        "truncate": lambda: file.write_text("weig"),
        "remove": file.unlink,
        "complete": lambda: (path / "COMPLETE").write_text("{"),
    }[damage]()
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(run.path)
    assert found is not None
    assert found.step == 5
    assert ("COMPLETE" if damage == "complete" else "model/w") in caplog.text


def test_a_save_that_fails_leaves_the_earlier_checkpoint_and_no_litter(run: RunDirectory) -> None:
    save(run, 5, keep_last=1)
    with pytest.raises(StorageError, match="disk is full"), Checkpoints(run, 1).writing(10) as path:
        (path / "w").write_text("half")
        raise OSError(28, "No space left on device")
    assert [found.step for found in complete_checkpoints(run.path)] == [5]
    assert not (run.path / "checkpoints/step-10").exists()


def test_kill_9_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    body = """
import sys
from pathlib import Path
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.checkpoints import Checkpoints
run = RunDirectory(Path(sys.argv[1]))
for step in range(10**6):
    with Checkpoints(run, 2).writing(step) as path:
        for name in range(5):
            (path / str(name)).write_bytes(bytes([step % 256]) * 200_000)
"""
    run = RunDirectory.create(tmp_path, "sft", [])
    for delay in (0.3, 0.37, 0.45, 0.52):
        process = subprocess.Popen([sys.executable, "-c", body, str(run.path)])
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for found in complete_checkpoints(run.path):
            assert find_checkpoint(run.path, upto=found.step) == found


def test_resume_takes_a_run_or_one_of_its_checkpoints(run: RunDirectory) -> None:
    path = save(run, 5)
    assert split_resume("latest") == ("latest", None)
    assert split_resume(str(run.path)) == (str(run.path), None)
    assert split_resume(str(path)) == (str(run.path), 5)
    with pytest.raises(InputError, match="no checkpoint"):
        split_resume(str(run.path / "checkpoints/step-6"))
    (path / "COMPLETE").unlink()
    with pytest.raises(InputError, match="half-written"):
        split_resume(str(path))


def test_records_are_cut_back_to_a_step_and_put_in_order(run: RunDirectory) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 0, "eval/x": 0.5}, {"step": 3, "loss": 3.0}]
    run.append("metrics.jsonl", *rows, {"step": 2, "eval/x": 0.6})
    settle(run, "metrics.jsonl")
    assert [(row["step"], "loss" in row) for row in run.read("metrics.jsonl")] == [
        (0, False),
        (1, True),
        (2, True),
        (2, False),
        (3, True),
    ]
    cut_back(run, "metrics.jsonl", 1, frozenset({0}))
    assert run.read("metrics.jsonl") == [{"step": 0, "eval/x": 0.5}, {"step": 1, "loss": 1.0}]
    run.append("metrics.jsonl", {"step": 2, "loss": 2.0})
    assert len(run.read("metrics.jsonl")) == 3
