"""A run directory: never shared, never half-written, and it tells how the run ended, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo_gsm8k.errors import ConfigError, InputError, StorageError
from grpo_gsm8k.runs.directory import RunDirectory, is_alive, open_run, process_identity, read_status
from grpo_gsm8k.runs.lifecycle import Interrupted, running
from grpo_gsm8k.runs.storage import JsonlAppender, read_lines, write_json

BODY = """
import sys, time
from pathlib import Path
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.lifecycle import running
run = RunDirectory.create(Path(sys.argv[1]), "eval", sys.argv)
run.lock()
with running(run):
    print(run.path, flush=True)
    for number in range(10**6):
        run.append("metrics.jsonl", {"step": number, "filler": "x" * 200})
        time.sleep(0.0005)
"""


def start_process(artifacts: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", BODY, str(artifacts)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_many_runs_in_the_same_second_get_a_directory_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: RunDirectory.create(tmp_path, "eval", []).path, range(32)))
    assert len(set(runs)) == 32
    assert all(read_status(path)["state"] == "created" for path in runs)


def test_a_completed_run_says_so_and_gives_its_reserve_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "eval", ["--limit", "3"])
    with running(run):
        assert read_status(run.path)["state"] == "running"
    status = read_status(run.path)
    assert (status["state"], status["exit_code"], status["reason"]) == ("completed", 0, None)
    assert not (run.path / ".reserve").exists()


def test_an_exception_leaves_its_traceback_in_the_log_and_its_line_in_the_status(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "eval", [])
    with pytest.raises(ZeroDivisionError), running(run):
        print(1 / 0)
    assert read_status(run.path)["state"] == "failed"
    assert read_status(run.path)["reason"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in (run.path / "run.log").read_text()


def test_bad_input_leaves_one_line_and_no_traceback(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "eval", [])
    with pytest.raises(ConfigError), running(run):
        raise ConfigError("limit = -1: allowed is at least 1")
    status = read_status(run.path)
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 2, "limit = -1: allowed is at least 1")
    assert "Traceback" not in (run.path / "run.log").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_leaves_an_interrupted_run(tmp_path: Path, number: signal.Signals, code: int) -> None:
    run = RunDirectory.create(tmp_path, "eval", [])
    with pytest.raises(Interrupted) as caught, running(run):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.exit_code == code
    status = read_status(run.path)
    assert (status["state"], status["reason"], status["exit_code"]) == ("interrupted", number.name, code)


def test_after_kill_9_a_reader_can_tell_that_the_run_died(tmp_path: Path) -> None:
    process, path = start_process(tmp_path)
    assert "died" not in read_status(path)
    with pytest.raises(InputError, match="still running"):
        RunDirectory(path).lock()
    time.sleep(0.2)
    process.kill()
    process.wait()
    status = read_status(path)
    assert (status["state"], status["died"]) == ("running", True)
    rows = list(read_lines(path / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert rows
    RunDirectory(path).lock()


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_the_run(tmp_path: Path) -> None:
    me = process_identity()
    assert is_alive(me) is True
    assert is_alive({**me, "pid_start": me["pid_start"] - 1}) is False
    assert is_alive({**me, "boot_id": "another boot"}) is False
    assert is_alive({**me, "host": "another-host"}) is None


def test_a_torn_last_line_is_left_out_by_readers_and_cut_by_the_next_writer(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ')
    assert [row["a"] for row in read_lines(file)] == [1, 2]
    appender = JsonlAppender(file)
    appender.append({"a": 3})
    appender.close()
    assert file.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def test_writing_whole_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="Circular"):
        loop: list[object] = []
        loop.append(loop)
        write_json(file, loop)
    assert json.loads(file.read_bytes()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_cannot_be_written_is_one_line_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write") as caught:
        RunDirectory.create(tmp_path / "file", "eval", [])
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_runs_are_found_by_path_by_name_and_as_latest(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path, "eval", [])
    time.sleep(0.01)
    second = RunDirectory.create(tmp_path, "eval", [])
    assert open_run(str(first.path), tmp_path).path == first.path
    assert open_run(first.path.name, tmp_path).path == first.path
    assert open_run("latest", tmp_path).path == second.path
    for name in ("gone", str(tmp_path)):
        with pytest.raises(InputError):
            open_run(name, tmp_path)


def test_a_corrupt_status_is_one_line(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "eval", [])
    for text in ("", "{", "[]", '{"x": 1}'):
        (run.path / "status.json").write_text(text)
        with pytest.raises(InputError, match=r"status\.json"):
            read_status(run.path)
