"""`traces generate` and `traces format`, as a person runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.cli import main
from grpo_gsm8k.runs.directory import read_status

KEY = "sk-0123456789abcdefghij"
ROWS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(10)]


def load_server() -> Any:
    path = Path(__file__).resolve().parents[1] / "trace_server.py"
    spec = importlib.util.spec_from_file_location("trace_server", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["trace_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trace_server = load_server()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_API_KEY", KEY)
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def flags(server: Any) -> list[str]:
    return ["traces", "generate", "--infile", "in.jsonl", "--outfile", "traces.jsonl", "--base-url", server.base_url]


def only_run() -> Path:
    (run,) = Path("artifacts/runs").iterdir()
    return run


def test_generate_then_format_leaves_pairs_and_runs_without_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    with trace_server.TraceServer(trace_server.solutions_of(ROWS)) as server:
        assert main(flags(server)) == 0
    run = only_run()
    result = json.loads((run / "result.json").read_bytes())
    assert (result["num_traces"], result["num_new"], result["num_left"], result["stopped"]) == (10, 10, 0, None)
    assert read_status(run)["state"] == "completed"
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert KEY.encode() not in written and KEY not in "".join(capsys.readouterr())
    assert main(["traces", "format", "--infile", "traces.jsonl", "--outfile", "pairs.jsonl"]) == 0
    assert "pairs.jsonl: 10 pairs of 10 traces" in capsys.readouterr().out
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().split("\n")[:-1]]
    assert pairs[0]["response"] == "0 + 1 = 1.\n#### 1"
    assert json.loads(Path("pairs.jsonl.report.json").read_bytes())["sentences_cleaned"]["box"] == 10
    assert main(["data", "pretokenize", "--infile", "pairs.jsonl"]) == 0


def test_a_refused_key_fails_the_run_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with trace_server.TraceServer({}, trouble=lambda question, times: "401") as server:
        assert main(flags(server)) == 1
    assert "HTTP 401: trouble 401 for Bearer [redacted]" in capsys.readouterr().err
    assert read_status(only_run())["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--base_url", "nowhere"], "no address"),
        (["generate", "--infile", "absent.jsonl", "--base_url", "http://127.0.0.1:9"], "absent.jsonl: cannot be read"),
        (["generate", "--samples_per_prompt", "0"], "samples_per_prompt = 0"),
        (["format", "--infile", "absent.jsonl"], "absent.jsonl: no such file"),
        (["format", "--infile", "in.jsonl"], "in.jsonl:1: 'id' is None"),
        (["format", "--grader", "format"], "unknown grader 'format'"),
        (["format", "--infile", "in.jsonl", "--template", "none"], "in.jsonl:1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line


def test_without_a_key_nothing_is_begun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY")
    assert main(["traces", "generate"]) == 2
    assert "DEEPSEEK_API_KEY holds no key" in capsys.readouterr().err
    assert not Path("artifacts").exists()


def test_an_interrupted_run_says_so_and_keeps_what_was_under_way() -> None:
    with trace_server.TraceServer(trace_server.solutions_of(ROWS), latency_s=0.4) as server:
        command = [sys.executable, "-m", "grpo_gsm8k.cli", *flags(server), "--concurrency", "2"]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.PIPE)
        for _ in range(3000):
            if len(server.asked) >= 3:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 143
        assert len(Path("traces.jsonl").read_bytes().split(b"\n")) - 1 == len(server.asked) < 10
    assert read_status(only_run())["state"] == "interrupted"
