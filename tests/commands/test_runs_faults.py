"""Faults: after bytes rot, files go, clocks jump and processes die, every `runs` command works and says what is wrong."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
from small_runs import ask, ask_all, make_training_run
from test_runs_tail import living

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.directory import RunDirectory

AGAIN = ("rerun", "rerun --steps", "certify-resume")  # refused: this run has not all options of this version
FILES = (
    "status.json",
    "config.json",
    "command.json",
    "data.json",
    "manifest.json",
    "result.json",
    "metrics.jsonl",
    "ledger.jsonl",
    "checkpoints.jsonl",
    "eval/step_0.json",
    "eval/step_0.jsonl",
    "rollouts/step_2.jsonl",
    "sys/git.json",
    "sys/determinism.json",
    "checkpoints/step-2/COMPLETE",
    "checkpoints/step-2/trainer_state.json",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_run(tmp_path_factory.mktemp("whole") / "artifacts")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "artifacts" / "runs" / whole.name))


def check_all(run: Path, *names: str, leave_out: tuple[str, ...] = ("audit",)) -> dict[str, str]:
    """Returns what every command said; each ends with a code of ours, an error is one line, the damaged files are named.

    list, show and verify name each of `names`; a command that could not go on names one of them, or `runs` that cannot be done
    again for another reason. `audit` starts processes to grade, and is asked where there is a reason to.
    """
    said = {}
    for name, asked in ask_all(run, leave_out=leave_out).items():
        said[name] = asked.stdout + asked.stderr
        assert asked.returncode in (0, 1, 2), name
        assert "Traceback" not in said[name] and "unexpected failure" not in said[name], (name, said[name])
        if asked.returncode:
            assert asked.stderr.startswith("error: "), (name, asked.stderr)
            assert asked.stderr.count("\n") == 1, (name, asked.stderr)
        if asked.returncode == 2 and names and name not in AGAIN:
            # "kept no rollouts (rollouts/step_<n>.jsonl)" names what is gone as well as can be
            folders = {f"{file.split('/')[0]}/" for file in names if "/" in file}
            assert any(part in asked.stderr for part in (*names, *folders)), (name, asked.stderr)
    assert all(file in said["verify"] for file in names), said["verify"]
    return said


def make_random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def make_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # which nobody writes to: to open it is to wait for ever


def make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000 + b"\n")


def cut_in_a_character(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3] + "é".encode()[:1])


def add_byte_order_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def make_utf16(path: Path) -> None:
    path.write_bytes(path.read_text().encode("utf-16"))


def add_carriage_returns(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")


def make_one_long_line(path: Path) -> None:
    path.write_bytes(b'{"step": 1, "values": "' + b"x" * 3_000_000 + b'"}\n')


DAMAGES = {
    "random bytes": make_random_bytes,
    "gone": Path.unlink,
    "a folder": make_folder_of,
    "a pipe": make_pipe,
    "a link to itself": make_loop,
    "a link to nothing": make_dangling,
    "empty": make_empty,
    "nested too deep": make_deep,
    "cut in a character": cut_in_a_character,
    "byte-order mark": add_byte_order_mark,
    "UTF-16": make_utf16,
    "carriage returns": add_carriage_returns,
    "one long line": make_one_long_line,
}
SAME_JSON = ("byte-order mark", "UTF-16", "carriage returns")
PAIRS = [(file, damage) for file in FILES for damage in DAMAGES]
QUICK = [(file, list(DAMAGES)[(number + 5) % len(DAMAGES)]) for number, file in enumerate([*FILES, *FILES[::-1]])]


@pytest.mark.parametrize(
    ("file", "damage"), [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in PAIRS]
)
def test_a_damaged_file_is_named_and_stops_no_command(file: str, damage: str, run: Path) -> None:
    DAMAGES[damage](run / file)
    if file == "status.json" and damage in SAME_JSON:  # nothing has its hash, and it says what it said
        check_all(run)
        return
    said = check_all(run, file, leave_out=() if file.startswith("eval/") else ("audit",))
    assert ask("verify", run).returncode in (1, 2)
    assert run.name in said["list"]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".jsonl")])
def test_a_jsonl_cut_in_the_middle_of_a_line_is_named(name: str, run: Path) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) * 2 // 3])
    assert f"{name}: was cut to" in ask("verify", run).stdout


def without_privileges(run: Path) -> dict[str, tuple[int, str]]:
    """Returns what `ask_all` gives in a process whom permissions bind, root or not."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(reader)
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0  # no capability is left
            found = {name: (asked.returncode, asked.stderr) for name, asked in ask_all(run, leave_out=("audit",)).items()}
            with os.fdopen(writer, "w") as file:
                json.dump(found, file)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return {name: (code, error) for name, (code, error) in json.loads(said).items()}


LOCKED = (*FILES, "eval", "sys", "rollouts", "checkpoints", "checkpoints/step-2", ".", "..")
QUICK_LOCKED = ("ledger.jsonl", "status.json", "eval", "checkpoints", ".")


@pytest.mark.parametrize(
    "name", [name if name in QUICK_LOCKED else pytest.param(name, marks=pytest.mark.slow) for name in LOCKED]
)
def test_without_read_permission_what_is_locked_is_named(name: str, run: Path) -> None:
    (run / name).chmod(0)
    try:
        said = without_privileges(run)
    finally:
        (run / name).chmod(0o755)
    for command, (code, error) in said.items():
        assert code in (0, 1, 2), (command, error)
        assert error == "" if code == 0 else error.startswith("error: ") and error.count("\n") == 1, (command, error)
        assert "unexpected failure" not in error, (command, error)
    assert said["verify"][0] != 0
    assert Path(name).name in said["verify"][1] or name in (".", "..")


def test_an_empty_folder_among_the_runs_is_listed_as_damaged(run: Path) -> None:
    (run.parent / "20990101T000000Z_abcdefg").mkdir()
    listed = ask("list", "--artifacts-dir", run.parent.parent).stdout
    assert listed.split("\n")[1].split()[3] == "damaged"
    assert "20990101T000000Z_abcdefg is not a run directory: it has no status.json" in listed


def test_times_in_the_future_and_out_of_order_are_said(run: Path) -> None:
    status = json.loads((run / "status.json").read_bytes())
    status["ended_at"] = "2199-01-01T00:00:00.000Z"
    status["starts"][0]["started_at"] = "2001-01-01T00:00:00.000Z"
    (run / "status.json").write_text(json.dumps(status))
    check_all(run)
    for asked in (ask("list", "--artifacts-dir", run.parent.parent), ask("show", run), ask("verify", run)):
        assert "ended_at 2199-01-01T00:00:00.000Z lies in the future; a clock was moved" in asked.stdout
        assert "lies before created_at; a clock was moved" in asked.stdout


@pytest.mark.parametrize("moved_to", ["2001-01-01T00:00:00.000Z", "2199-01-01T00:00:00.000Z"])
def test_no_clock_makes_a_living_run_dead_or_a_dead_one_live(moved_to: str, tmp_path: Path) -> None:
    process, path = living(tmp_path, 10**6)
    status = json.loads((path / "status.json").read_bytes())
    status["created_at"] = status["starts"][0]["started_at"] = moved_to
    (path / "status.json").write_text(json.dumps(status))
    assert " running " in ask("list", "--artifacts-dir", tmp_path).stdout
    assert "the run is still running" in ask("verify", path).stdout
    with pytest.raises(InputError, match=rf"is still running \(pid {process.pid} "):
        RunDirectory(path).lock()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    check_died(path)


def test_a_pipe_in_place_of_the_lock_is_waited_for_by_no_command(run: Path) -> None:
    status = json.loads((run / "status.json").read_bytes())
    status |= {"state": "running"}
    status["starts"][-1]["host"] = "elsewhere"
    (run / "status.json").write_text(json.dumps(status))
    make_pipe(run / ".lock")
    check_all(run)


def test_names_that_are_no_text_and_folders_of_other_things_stop_no_command(run: Path) -> None:
    for name in ("eval/step_x.json", "eval/step_²0.json", "eval/step_.jsonl", "rollouts/step_٣.jsonl", "checkpoints/step-x"):
        (run / name).mkdir()
    (run / os.fsdecode(b"\xff\n.json")).write_bytes(b"\xff")
    (run.parent / os.fsdecode(b"\xfe")).mkdir()
    check_all(run, leave_out=())


def test_a_second_writer_is_refused_and_the_first_one_goes_on(tmp_path: Path) -> None:
    process, path = living(tmp_path, 10**6)
    with pytest.raises(InputError, match=rf"is still running \(pid {process.pid} "):
        RunDirectory(path).lock()
    listed = ask("list", "--artifacts-dir", tmp_path).stdout
    assert " running " in listed
    verified = ask("verify", path)
    assert verified.returncode == 0
    assert "the run is still running" in verified.stdout
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    check_died(path)


def check_died(path: Path) -> None:
    lines = (path / "metrics.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    (path / "metrics.jsonl").write_bytes(lines + b'{"step": 99, "tr')  # as a kill within a write leaves it
    check_all(path)
    assert " died " in ask("list", "--artifacts-dir", path.parent.parent).stdout
    assert "the process is gone and left no last word" in ask("show", path).stdout
    verified = ask("verify", path)
    assert verified.returncode == 0
    assert "which were being written" in verified.stdout
    RunDirectory(path).lock()  # its lock is free


def test_a_run_of_another_host_is_dead_when_its_lock_is_free(run: Path) -> None:
    status = json.loads((run / "status.json").read_bytes())
    status |= {"state": "running"}
    status["starts"][-1]["host"] = "elsewhere"
    (run / "status.json").write_text(json.dumps(status))
    assert " died " in ask("list", "--artifacts-dir", run.parent.parent).stdout
    writer = RunDirectory(run)
    writer.lock()
    assert " running " in ask("list", "--artifacts-dir", run.parent.parent).stdout
