"""`eval` through real vLLM: the same tokens as transformers, and resumed equals uninterrupted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_gsm8k.runs.storage import read_lines

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here (make test-vllm)"),
]
GREEDY = ["--model_id", "tiny", "--wandb", "disabled", "--max_new_tokens", "48", "--graders", "numeric", "--limit", "200"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grpo_gsm8k.cli", "eval", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)  # type: ignore[call-overload,no-any-return]


def finish(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=280)
    assert process.returncode == 0, error


def only_run(folder: Path) -> Path:
    (path,) = (folder / "artifacts" / "runs").iterdir()
    return path


def test_greedy_evaluation_gives_the_same_tokens_as_transformers(tmp_path: Path) -> None:
    tokens = {}
    for engine in ("transformers", "vllm"):
        (tmp_path / engine).mkdir()
        finish(start(tmp_path / engine, *GREEDY, "--engine", engine))
        rows = list(read_lines(only_run(tmp_path / engine) / "eval/step_0.jsonl"))
        tokens[engine] = [row["token_ids"] for row in rows]
        logprobs = [value for row in rows for value in row["logprobs"]]
        assert len(logprobs) == sum(map(len, tokens[engine]))
    assert len(tokens["vllm"]) == 200
    assert tokens["vllm"] == tokens["transformers"]


def test_killed_and_resumed_through_vllm_equals_uninterrupted(tmp_path: Path) -> None:
    sampled = [*GREEDY, "--engine", "vllm", "--temperature", "0.8", "--num_samples", "3", "--batch_size", "40"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    finish(start(whole, *sampled))
    process = start(cut, *sampled)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        journals = list(cut.glob("artifacts/runs/*/eval/step_0.partial.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") > 100:
            break
        time.sleep(0.005)
    assert process.poll() is None
    process.kill()
    process.communicate()
    finish(start(cut, "--resume", "latest"))
    for name in ("eval/step_0.jsonl", "eval/step_0.json", "ledger.jsonl"):
        assert (only_run(cut) / name).read_bytes() == (only_run(whole) / name).read_bytes()
