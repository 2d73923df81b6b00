"""A disk that fills up: what was whole stays whole, and the run can still say why it ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_gsm8k.runs.directory import RunDirectory, read_status
from grpo_gsm8k.runs.lifecycle import running
from grpo_gsm8k.runs.storage import StorageError, read_lines


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB (needs the right to mount)."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0 or sys.platform != "linux":
        pytest.skip("may not mount a tmpfs here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_run_that_fills_its_disk_keeps_whole_lines_and_says_why_it_failed(small_disk: Path) -> None:
    run = RunDirectory.create(small_disk, "eval", [])
    with pytest.raises(StorageError, match="disk is full"), running(run):
        for step in range(10**6):
            run.append("metrics.jsonl", {"step": step, "filler": "x" * 5000})
    status = read_status(run.path)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "disk is full" in status["reason"]
    assert (run.path / "metrics.jsonl").read_bytes().endswith(b"\n")
    steps = [row["step"] for row in read_lines(run.path / "metrics.jsonl")]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50


def test_a_whole_write_on_a_full_disk_leaves_the_old_file_and_no_litter(small_disk: Path) -> None:
    run = RunDirectory.create(small_disk, "eval", [])
    run.write_json("result.json", {"a": 1})
    before = sorted(path.name for path in run.path.iterdir())
    with pytest.raises(StorageError, match="disk is full"):
        run.write_json("result.json", {"a": "x" * 2_000_000})
    assert (run.path / "result.json").read_text() == '{\n  "a": 1\n}\n'
    assert sorted(path.name for path in run.path.iterdir()) == before
