"""`sft` with real vLLM as its evaluator: hot-reloaded weights give the evaluations that transformers gives."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.runs.storage import json_line, read_lines

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here (make test-vllm)"),
]


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "grpo_gsm8k.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr


def test_training_evaluated_by_vllm_gives_the_tokens_that_transformers_gives(tmp_path: Path) -> None:
    for split, num in (("train", 600), ("val", 48)):
        rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in generate(split, num, 0)]
        (tmp_path / f"{split}.jsonl").write_bytes(b"".join(map(json_line, rows)))
    run(tmp_path, "data", "render-pairs", "--infile", "train.jsonl", "--outfile", "pairs.jsonl")
    run(tmp_path, "data", "render-eval", "--infile", "val.jsonl", "--outfile", "eval.jsonl")
    shared = "--data_path pairs.jsonl --eval_set_path eval.jsonl --max_steps 8 --batch_size 16 --eval_every 4 --lr 2e-3"
    more = "--eval_max_new_tokens 40 --graders numeric --wandb disabled"
    tokens = {}
    for engine in ("transformers", "vllm"):
        run(tmp_path, "sft", *shared.split(), *more.split(), "--eval_engine", engine, "--artifacts_dir", engine)
        (path,) = (tmp_path / engine / "runs").iterdir()
        tokens[engine] = {
            step: [row["token_ids"] for row in read_lines(path / f"eval/step_{step}.jsonl")] for step in (0, 4, 8)
        }
    assert tokens["vllm"] == tokens["transformers"]
    assert tokens["vllm"][0] != tokens["vllm"][8]
