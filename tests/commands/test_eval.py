"""`eval` as a person runs it: a process, its output, its exit code and what it leaves."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.storage import read_lines

TINY = ["--model_id", "tiny", "--wandb", "disabled", "--max_new_tokens", "48", "--graders", "numeric,gsm8k_strict"]


def command(*arguments: str, module: str = "grpo_gsm8k.cli") -> list[str]:
    verb = ["eval"] if module.endswith("cli") else []
    return [sys.executable, "-m", module, *verb, *arguments]


def run(folder: Path, *arguments: str, module: str = "grpo_gsm8k.cli", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, module=module), cwd=folder, capture_output=True, text=True, timeout=240, env={**os.environ, **env}
    )


def run_here(folder: Path, *arguments: str, module: str = "grpo_gsm8k.cli") -> subprocess.CompletedProcess[str]:
    """The same in this process, which has torch imported already."""
    out, err = io.StringIO(), io.StringIO()
    main = importlib.import_module(module).main
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command(*arguments, module=module)[3:])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def only_run(folder: Path) -> Path:
    (path,) = (folder / "artifacts" / "runs").iterdir()
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One whole evaluation with no option but a limit, as the README has it."""
    folder = tmp_path_factory.mktemp("eval")
    done = run(folder, "--limit", "100", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_eval_with_nothing_but_a_limit_leaves_a_whole_run_directory(finished: Any) -> None:
    folder, done = finished
    path = only_run(folder)
    names = {str(file.relative_to(path)) for file in path.rglob("*")}
    expected = "config.json command.json status.json sys/system.json sys/git.json sys/engine.json data.json metrics.jsonl"
    assert names >= {*expected.split(), "ledger.jsonl", "eval/step_0.json", "eval/step_0.jsonl", "report.html", "result.json"}
    assert not [name for name in names if name.endswith((".partial.jsonl", ".reserve"))]
    assert read_status(path)["state"] == "completed"
    assert (folder / "artifacts/baselines/tiny_tiny_val_question_first100.jsonl").read_bytes() == (
        path / "eval/step_0.jsonl"
    ).read_bytes()
    assert "report" in done.stdout
    assert "no CUDA device" in done.stderr  # which engine and why


def test_the_numbers_agree_wherever_they_are_written(finished: Any) -> None:
    folder, done = finished
    path = only_run(folder)
    rows = list(read_lines(path / "eval/step_0.jsonl"))
    aggregate, result = read(path / "eval/step_0.json"), read(path / "result.json")
    (metrics,) = read_lines(path / "metrics.jsonl")
    correct = sum(row["scores"]["numeric"]["status"] == "correct" for row in rows)
    assert len(rows) == 100
    assert aggregate["accuracy"] == result["accuracy"] == metrics["eval/numeric/accuracy"] == correct / 100
    assert 0.2 < correct / 100 < 0.6
    assert f"{correct:.1f} %" in done.stdout
    for grader in aggregate["graders"].values():
        assert sum(grader[status] for status in ("correct", "wrong", "unparsed", "error")) == 100
        assert grader["ci95"][0] <= grader["accuracy"] <= grader["ci95"][1]


def test_w_and_b_is_offline_by_default_and_inside_the_run(finished: Any) -> None:
    folder, _ = finished
    assert list((only_run(folder) / "wandb").glob("offline-run-*/*.wandb"))


def test_what_auto_became_is_on_the_record(finished: Any) -> None:
    folder, _ = finished
    record = read(only_run(folder) / "config.json")
    assert record["values"]["engine"] == "transformers"
    assert record["sources"]["engine"].startswith("auto: ")
    assert record["sources"]["limit"] == "flag"
    assert record["values"]["eval_path"] is None


def test_strict_determinism_was_got_on_a_cpu(finished: Any) -> None:
    folder, _ = finished
    toggles = {row["name"]: row for row in read(only_run(folder) / "sys/determinism.json")}
    assert toggles["PYTHONHASHSEED"]["got"] == "0"
    assert toggles["torch.use_deterministic_algorithms"]["got"] == "True"
    assert all(row["held"] for row in toggles.values())


def test_the_same_eval_again_gives_the_same_bytes_and_ledger(finished: Any, tmp_path: Path) -> None:
    folder, _ = finished
    assert run(tmp_path, "--limit", "100", WANDB_MODE="offline").returncode == 0
    for name in ("eval/step_0.jsonl", "eval/step_0.json", "ledger.jsonl"):
        assert (only_run(tmp_path) / name).read_bytes() == (only_run(folder) / name).read_bytes()


def interrupt_at(folder: Path, completions: int, number: signal.Signals, *arguments: str) -> Path:
    """Starts an eval and sends it a signal as soon as so many completions are on disk."""
    process = subprocess.Popen(command(*arguments), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    runs = folder / "artifacts" / "runs"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        journals = list(runs.glob("*/eval/step_0.partial.jsonl")) if runs.exists() else []
        if (completions == 0 and runs.exists() and list(runs.glob("*/config.json"))) or (
            journals and journals[0].read_bytes().count(b"\n") >= completions > 0
        ):
            break
        time.sleep(0.002)
    assert process.poll() is None, f"the run ended before it was interrupted: {process.stderr.read() if process.stderr else ''}"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 128 + number, error
        assert error.rstrip().split("\n")[-1] == f"interrupted ({number.name})"
        assert "Traceback" not in error
    return only_run(folder)


SAMPLED = (*TINY, "--limit", "96", "--batch_size", "8", "--temperature", "0.8", "--num_samples", "4")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, *SAMPLED)
    assert done.returncode == 0, done.stderr
    return only_run(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted_byte_for_byte(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    moments = [random.randrange(0, 40), random.randrange(60, 200)]
    path = interrupt_at(tmp_path, moments[0], number, *SAMPLED)
    for completions in moments[1:]:
        status = read_status(path)
        assert status.get("died") if number == signal.SIGKILL else status["state"] == "interrupted"
        process = subprocess.Popen(
            command("--resume", "latest"), cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        journal = path / "eval/step_0.partial.jsonl"
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= completions):
            time.sleep(0.002)
        process.send_signal(number)
        process.wait(timeout=60)
    done = run(tmp_path, "--resume", str(path))
    assert done.returncode == 0, done.stderr
    assert "are on disk" in (path / "run.log").read_text()
    for name in ("eval/step_0.jsonl", "eval/step_0.json", "ledger.jsonl"):
        assert (path / name).read_bytes() == (uninterrupted / name).read_bytes(), moments
    assert len(read_status(path)["starts"]) == 3


def test_ctrl_c_prints_one_line_and_ends_with_130(tmp_path: Path) -> None:
    path = interrupt_at(tmp_path, 5, signal.SIGINT, *SAMPLED)
    assert (read_status(path)["state"], read_status(path)["exit_code"]) == ("interrupted", 130)


def test_resuming_a_complete_run_changes_nothing(finished: Any) -> None:
    folder, _ = finished
    path = only_run(folder)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    done = run_here(folder, "--resume", path.name)
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_resuming_with_another_option_is_refused_and_names_it(tmp_path: Path) -> None:
    path = interrupt_at(tmp_path, 20, signal.SIGTERM, *SAMPLED)
    done = run_here(tmp_path, "--resume", str(path), "--temperature", "0.5", "--limit", "96")
    assert done.returncode == 2
    assert "temperature is 0.8 there and 0.5 here" in done.stderr
    assert "limit" not in done.stderr.split("temperature")[1]


def test_a_resumed_completion_that_differs_from_the_one_on_disk_stops_the_run(tmp_path: Path) -> None:
    path = interrupt_at(tmp_path, 20, signal.SIGKILL, *SAMPLED)
    journal = path / "eval/step_0.partial.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines = lines[: 8 * (len(lines) // 8) + 1] if len(lines) % 8 == 0 else lines[:-1]
    row = json.loads(lines[-1] or lines[-2])
    keep = [line for line in lines if line and json.loads(line)["index"] != row["index"]]
    row["token_ids"][0] += 1
    journal.write_bytes(b"\n".join([*keep[: len(keep) // 8 * 8 + 3], json.dumps(row).encode()]) + b"\n")
    done = run_here(tmp_path, "--resume", str(path))
    assert done.returncode == 1
    assert "differs from what is on disk" in done.stderr
    assert read_status(path)["state"] == "failed"


def test_several_samples_give_pass_and_majority(uninterrupted: Path) -> None:
    aggregate = read(uninterrupted / "eval/step_0.json")
    passed = [aggregate["pass_at_k"][k] for k in ("1", "2", "4")]
    assert passed == sorted(passed)
    assert passed[0] == pytest.approx(aggregate["accuracy"])
    assert set(aggregate["maj_at_k"]) == {"1", "2", "4"}
    rows = list(read_lines(uninterrupted / "eval/step_0.jsonl"))
    assert len({(row["problem_id"], row["sample_index"]) for row in rows}) == len(rows) == 96 * 4
    assert len({row["seed"] for row in rows}) == 96 * 4


def test_real_gsm8k_runs_through_the_same_path(gsm8k_dir: Path, tmp_path: Path) -> None:
    done = run_here(
        tmp_path, *TINY, "--dataset", "gsm8k", "--source", str(gsm8k_dir), "--split", "test", "--limit", "24", "--eval_n", "512"
    )
    assert done.returncode == 0, done.stderr
    data, model, template = read(only_run(tmp_path) / "data.json")["files"]
    assert (model["role"], len(model["sha256"])) == ("model", 64)
    assert template["role"] == "template"
    assert (data["rows"], data["split"], data["dataset"]) == (1319, "test", "gsm8k")
    assert "24 problems" in done.stdout
    again = run_here(tmp_path, *TINY, "--dataset", "gsm8k", "--source", str(gsm8k_dir), "--limit", "3", "--eval_n", "800")
    assert again.returncode == 2
    assert "asked 800, there 512" in again.stderr


def test_a_file_of_ones_own_is_evaluated_without_preparing_anything(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(
        '{"question": "Mia has 3 cups. Mia buys 4 more. How many cups does Mia have now?", "answer": "7"}\n'
    )
    for module in ("grpo_gsm8k.cli", "grpo_gsm8k.fast_eval_vllm"):
        done = run_here(tmp_path, *TINY, "--engine", "transformers", "--eval_path", "mine.jsonl", module=module)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {"runs", "baselines"}


BAD = {
    "a missing file": (["--eval_path", "gone.jsonl"], "gone.jsonl", 2),
    "a corrupt file": (["--eval_path", "corrupt.jsonl"], "corrupt.jsonl:2", 2),
    "an empty file": (["--eval_path", "empty.jsonl"], "empty.jsonl", 2),
    "an unknown template": (["--template", "quesion"], "did you mean 'question'", 2),
    "a misspelt model": (["--model_id", "tinny"], "did you mean 'tiny'", 2),
    "a missing model folder": (["--model_id", "./no/such"], "no model folder", 2),
    "a model folder without a tokenizer": (["--model_id", "bare", "--dataset", "tiny"], "no tokenizer", 2),
    "shots without a place": (["--template", "none", "--k_shot", "2"], "none", 2),
    "more tokens than the window": (["--max_new_tokens", "5000"], "window", 2),
    "a GPU that is not there": (["--device", "cuda"], "no CUDA device", 1),
    "a server that is down": (["--engine", "openai", "--base_url", "http://127.0.0.1:9/v1"], "127.0.0.1:9", 1),
    "vllm that is not installed": (["--engine", "vllm"], "not installed", 1),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_an_exit_code_and_a_failed_status(name: str, tmp_path: Path) -> None:
    arguments, says, code = BAD[name]
    if name.startswith("vllm") and importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed here")
    (tmp_path / "corrupt.jsonl").write_text('{"question": "a?", "answer": "1"}\n{"question": \n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "qwen2"}')
    model = [] if "--model_id" in arguments else ["--model_id", "tiny"]
    done = run_here(tmp_path, *model, *arguments, "--wandb", "disabled", "--limit", "2")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.rstrip().split("\n")[-1]
    assert last.startswith("error: ")
    assert says in last
    status = read_status(only_run(tmp_path))
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert says in status["reason"]


REFUSED = [
    (["--limit", "-1"], "at least 1"),
    (["--engine", "vlm"], "did you mean 'vllm'"),
    (["--graders", "numerc"], "did you mean 'numeric'"),
    (["--dataset", "gsm9k"], "did you mean 'gsm8k'"),
    (["--limmit", "3"], "limmit"),
    (["limit=3", "--limit", "4"], "twice"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED)
def test_a_bad_option_is_refused_before_anything_is_written(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = run_here(tmp_path, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_artifacts_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file")
    done = run_here(tmp_path, *TINY)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write")
    assert done.stderr.count("\n") == 1


def test_flags_take_dashes_or_underscores_and_dry_run_starts_nothing(tmp_path: Path) -> None:
    for flag in ("--max-new-tokens", "--max_new_tokens"):
        done = run_here(tmp_path, "--dry-run", flag, "7", "--config", "eval-tiny")
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert shown["values"]["max_new_tokens"] == 7
        assert shown["sources"]["template"] == "preset eval-tiny"
    assert not list(tmp_path.iterdir())


def test_a_run_whose_disk_filled_up_at_the_end_goes_on_without_sampling_again(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "baselines").write_text("a file where a folder should be")
    failed = run_here(tmp_path, *SAMPLED)
    assert failed.returncode == 1
    assert "cannot write" in failed.stderr
    (tmp_path / "artifacts" / "baselines").unlink()
    done = run_here(tmp_path, "--resume", "latest")
    assert done.returncode == 0, done.stderr
    path = only_run(tmp_path)
    assert "384 of 384 completions are on disk" in (path / "run.log").read_text()
    assert len(list(read_lines(path / "metrics.jsonl"))) == 1
    assert (path / "eval/step_0.jsonl").read_bytes() == (uninterrupted / "eval/step_0.jsonl").read_bytes()
