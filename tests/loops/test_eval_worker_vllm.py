"""Real vLLM (its CPU build) as the worker's engine: hot reload between steps, the same bytes as in a process of one's own."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from eval_workers import WEIGHTS_BYTES, children_of, evaluate_plainly, is_running, make_spec, publish, write_eval_set

from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.runs.directory import RunDirectory

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm here: run scripts/setup_vllm_cpu.sh"),
]
STEPS = (0, 5)


def test_vllm_in_the_worker_takes_each_steps_weights_and_equals_a_plain_evaluation(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "sft", [])
    spec = make_spec(
        run,
        write_eval_set(tmp_path / "eval.jsonl", 40),
        engine="vllm",
        engine_arguments={"model_id": "tiny", "max_model_len": 256},
        batch_size=32,
    )
    with EvalClient.start(spec, run, weights_bytes=WEIGHTS_BYTES) as client:
        described = client.wait_ready()
        for step in STEPS:
            publish(client.publish_dir(step), seed=step)
            client.submit(step)
        outcomes = client.drain()
        below = [client.worker_pid, *children_of(client.worker_pid)]
    assert described["engine"] == "vllm"
    assert not any(is_running(pid) for pid in below)
    assert not list(Path("/dev/shm").glob(f"grpo_gsm8k-{os.getpid()}-*"))
    assert [outcome.step for outcome in outcomes] == list(STEPS)
    accuracy = [outcome.aggregate["graders"]["numeric"]["accuracy"] for outcome in outcomes]
    assert accuracy[0] != accuracy[1]
    for step in STEPS:
        other = RunDirectory.create(tmp_path / f"plain-{step}", "eval", [])
        evaluate_plainly(spec, publish(tmp_path / f"weights-{step}", seed=step), other, step)
        assert (run.path / f"eval/step_{step}.jsonl").read_bytes() == (other.path / f"eval/step_{step}.jsonl").read_bytes()
