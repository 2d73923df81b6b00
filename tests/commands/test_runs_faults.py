"""Faults: after bytes rot, files go, clocks jump and processes die, every `runs` command works and says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import ask, ask_all, make_training_run
from test_runs_tail import living

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.directory import RunDirectory

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


def check_all(run: Path) -> None:
    """Every command ends with a code of ours, and an error is one line."""
    for name, asked in ask_all(run).items():
        assert asked.returncode in (0, 1, 2), name
        if asked.returncode:
            assert asked.stderr.startswith("error: "), (name, asked.stderr)
            assert asked.stderr.count("\n") == 1, (name, asked.stderr)
        assert "Traceback" not in asked.stdout + asked.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_random_bytes_is_named(name: str, run: Path) -> None:
    (run / name).write_bytes(bytes(range(256)))
    check_all(run)
    assert ask("verify", run).returncode in (1, 2)
    assert name in "".join(ask("verify", run).stdout + ask("verify", run).stderr)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(name: str, run: Path) -> None:
    (run / name).unlink()
    check_all(run)
    said = ask("verify", run)
    assert said.returncode in (1, 2)
    assert name in said.stdout + said.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named(name: str, run: Path) -> None:
    (run / name).unlink()
    (run / name).mkdir()  # for root too, whom no permission keeps from reading
    check_all(run)
    said = ask("verify", run)
    assert said.returncode in (1, 2)
    assert name in said.stdout + said.stderr


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".jsonl")])
def test_a_jsonl_cut_in_the_middle_of_a_line_is_named(name: str, run: Path) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) * 2 // 3])
    check_all(run)
    assert f"{name}: was cut to" in ask("verify", run).stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything; a folder in the file's place stands for it above")
def test_without_read_permission_the_file_is_named(run: Path) -> None:
    (run / "ledger.jsonl").chmod(0)
    check_all(run)
    assert "ledger.jsonl: cannot be read (Permission denied)" in ask("verify", run).stdout


def test_a_loop_of_links_in_a_runs_place_is_said(run: Path) -> None:
    (run / "eval/step_0.jsonl").unlink()
    (run / "eval/step_0.jsonl").symlink_to("step_0.jsonl")
    check_all(run)
    assert "eval/step_0.jsonl: cannot be read" in ask("verify", run).stdout


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


def ask_a_damaged_copy(whole: Path, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(whole, Path(folder) / "artifacts" / "runs" / whole.name))
        before = (run / name).read_bytes()
        (run / name).write_bytes(content)
        check_all(run) if not is_waiting(run) else None
        if content != before:
            assert ask("verify", run).returncode != 0 or name == "status.json"


def is_waiting(run: Path) -> bool:
    """Whether the damage made a run of this very process out of it, which `tail` would follow for ever."""
    try:
        return json.loads((run / "status.json").read_bytes())["state"] in ("created", "running")
    except (ValueError, LookupError, TypeError):
        return False


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(name=st.sampled_from(FILES), start=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40))
def test_random_bytes_in_any_file_never_give_a_traceback(whole: Path, name: str, start: float, junk: bytes) -> None:
    content = (whole / name).read_bytes()
    place = int(start * len(content))
    ask_a_damaged_copy(whole, name, content[:place] + junk + content[place + len(junk) :])


@FUZZ
@given(name=st.sampled_from(FILES), which=st.integers(0, 10**6), value=JSON)
def test_any_value_replaced_by_any_other_never_gives_a_traceback(whole: Path, name: str, which: int, value: object) -> None:
    lines = (whole / name).read_text().split("\n") if name.endswith(".jsonl") else [(whole / name).read_text()]
    line = which % max(1, len(lines) - 1)
    record = json.loads(lines[line])
    places = sorted(list_places(record), key=str)
    *way, last = places[which % len(places)]
    inner = record
    for key in way:
        inner = inner[key]
    inner[last] = value
    lines[line] = json.dumps(record)
    ask_a_damaged_copy(whole, name, "\n".join(lines).encode())


def list_places(value: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Every place of a value that holds another one."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in pairs for place in [(*way, key), *list_places(inner, (*way, key))]]
