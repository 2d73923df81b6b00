"""`grpo` with real vLLM as the engine that samples: after each update it is the learner's policy again."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from training_runs import facts, kill_and_resume, run_whole, start, wait_for

from grpo_gsm8k.runs.storage import read_lines

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here (make test-vllm)"),
]

SMALL = "--max_steps 4 --prompts_per_step 8 --group_size 4 --eval_every 4 --save_every 2 --eval_examples 16 --warmup_steps 1"
COMMON = ["grpo", "--config", "grpo-tiny", *SMALL.split(), "--num_problems", "300", "--lr", "1e-3", "--wandb", "disabled"]
COMMON += ["--engine", "vllm", "--engine_dtype", "float32"]
COMMON += ["--eval_engine", "transformers"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_whole(tmp_path_factory.mktemp("whole"), *COMMON)


def test_after_every_update_vllm_gives_the_learners_log_probs_again(whole: Path) -> None:
    rows = [row for row in read_lines(whole / "metrics.jsonl") if "mismatch/max_abs" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["mismatch/mean_abs"] < 1e-5 for row in rows)
    assert all(row["mismatch/max_abs"] < 1e-4 for row in rows)


def test_killed_and_resumed_through_vllm_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *COMMON)
    wait_for(lambda: list(tmp_path.glob("artifacts/runs/*/checkpoints/step-2/COMPLETE")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run, _ = kill_and_resume(tmp_path, COMMON, [])
    assert facts(run) == facts(whole)
