"""Published weights: in RAM where there is room, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_gsm8k.runs.weight_folders import Place, WeightFolders, available_memory, choose_place, sweep

HOLD = """
import sys, time
from pathlib import Path
from grpo_gsm8k.runs.weight_folders import Place, WeightFolders
folders = WeightFolders(Place(Path(sys.argv[1]), True, ""))
(folders.make(3) / "model.safetensors").write_bytes(b"x" * 100)
print(folders.path, flush=True)
time.sleep(60)
"""


def test_ram_is_taken_where_all_copies_fit(tmp_path: Path) -> None:
    place = choose_place(tmp_path / "run", 1000, 3, ram=tmp_path)
    assert (place.base, place.in_ram) == (tmp_path, True)
    assert "3 copies" in place.why


def test_the_run_directory_is_taken_where_ram_is_too_small_or_missing(tmp_path: Path) -> None:
    inside = tmp_path / "run" / "published"
    too_much = choose_place(tmp_path / "run", available_memory(), 3, ram=tmp_path)
    assert (too_much.base, too_much.in_ram) == (inside, False)
    assert "more than the" in too_much.why
    missing = choose_place(tmp_path / "run", 1, 1, ram=tmp_path / "none")
    assert (missing.base, missing.in_ram) == (inside, False)
    assert "not there" in missing.why


@pytest.mark.parametrize("in_ram", [True, False])
def test_each_step_has_an_empty_folder_and_closing_removes_all(tmp_path: Path, in_ram: bool) -> None:
    base = tmp_path if in_ram else tmp_path / "published"
    folders = WeightFolders(Place(base, in_ram, ""))
    (folders.make(1) / "file").write_text("old")
    assert list(folders.make(1).iterdir()) == []
    folders.make(2)
    folders.remove(1)
    assert [path.name for path in folders.path.iterdir() if path.is_dir()] == ["step-2"]
    assert folders.path.stat().st_mode & 0o077 == 0 or not in_ram
    folders.close()
    folders.close()
    assert not folders.path.exists()
    assert tmp_path.exists()


def test_what_an_earlier_start_left_in_the_run_directory_is_removed(tmp_path: Path) -> None:
    (tmp_path / "published/step-4").mkdir(parents=True)
    assert list(WeightFolders(Place(tmp_path / "published", False, "")).path.iterdir()) == []


def test_a_sweep_removes_the_folders_of_dead_processes_only(tmp_path: Path) -> None:
    ours = WeightFolders(Place(tmp_path, True, ""))
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    assert theirs.name.startswith(f"grpo_gsm8k-{other.pid}-")
    (tmp_path / "grpo_gsm8k-1-1-unlocked").mkdir()
    (tmp_path / "somebody-else").mkdir()
    (tmp_path / "grpo_gsm8k-link").symlink_to(tmp_path / "somebody-else")
    assert [path.name for path in sweep(tmp_path)] == ["grpo_gsm8k-1-1-unlocked"]
    other.kill()
    other.wait()
    other.stdout.close()
    assert (theirs / "step-3/model.safetensors").exists()
    assert sweep(tmp_path) == [theirs]
    assert not theirs.exists()
    assert ours.path.exists()
    assert (tmp_path / "somebody-else").exists()
    ours.close()


def test_a_folder_stays_while_a_process_that_inherited_its_lock_lives(tmp_path: Path) -> None:
    folders = WeightFolders(Place(tmp_path, True, ""))
    assert folders.lock_fd is not None
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(folders.lock_fd,))
    os.close(folders.lock_fd)  # as when the trainer dies
    folders.lock_fd = None
    assert sweep(tmp_path) == []
    worker.kill()
    worker.wait()
    assert sweep(tmp_path) == [folders.path]


def test_available_memory_is_that_of_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= total
