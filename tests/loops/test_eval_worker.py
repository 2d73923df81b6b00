"""The evaluation worker: what it finds is what a plain evaluation finds, tagged with its step, whatever the timing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eval_workers import WEIGHTS_BYTES, evaluate_plainly, make_spec, publish, write_eval_set

from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.loops.eval_client import EvalClient, EvalOutcome
from grpo_gsm8k.loops.eval_spec import EvalWorkerSpec, visible_device
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import read_lines
from grpo_gsm8k.types import Sampling

STEPS = (0, 3, 10)


@pytest.fixture(scope="module")
def eval_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_set(tmp_path_factory.mktemp("data") / "eval.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, eval_set: Path) -> Iterator[tuple[Any, ...]]:
    """Three evaluations of three different weights, submitted at once, and the run they belong to."""
    run = RunDirectory.create(tmp_path_factory.mktemp("artifacts"), "sft", [])
    spec = make_spec(run, eval_set)
    with EvalClient.start(spec, run, weights_bytes=WEIGHTS_BYTES, max_pending=3) as client:
        described = client.wait_ready()
        for step in STEPS:
            publish(client.publish_dir(step), seed=step)
            client.submit(step)
        pending = client.pending()
        outcomes = client.drain()
        yield run, spec, described, pending, outcomes


def plain(tmp_path: Path, spec: EvalWorkerSpec, step: int) -> tuple[dict[str, Any], RunDirectory]:
    run = RunDirectory.create(tmp_path / "plain", "eval", [])
    return evaluate_plainly(spec, publish(tmp_path / "weights", seed=step), run, step), run


@pytest.mark.parametrize("step", STEPS)
def test_results_equal_those_of_a_plain_evaluation_byte_for_byte(finished: Any, step: int, tmp_path: Path) -> None:
    run, spec, _, _, outcomes = finished
    aggregate, other = plain(tmp_path, spec, step)
    del aggregate["times"]
    for name in (f"eval/step_{step}.jsonl", f"eval/step_{step}.json"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes()
    (outcome,) = [outcome for outcome in outcomes if outcome.step == step]
    assert outcome.aggregate == json.loads(json.dumps(aggregate))
    assert {"step": step, **outcome.stages} == other.read("ledger.jsonl")[0]


def test_outcomes_come_in_step_order_with_their_own_step_and_times(finished: Any) -> None:
    _, _, _, pending, outcomes = finished
    assert [outcome.step for outcome in outcomes] == [outcome.aggregate["step"] for outcome in outcomes] == list(STEPS)
    assert list(pending) == list(STEPS)
    assert len({outcome.stages["sampled_tokens"] for outcome in outcomes}) == len(STEPS)
    for outcome in outcomes:
        assert isinstance(outcome, EvalOutcome)
        assert 0 < outcome.times["time/eval_sample_s"] < outcome.times["time/eval_s"]
        assert all(key.startswith("time/eval_") for key in outcome.times)


def test_the_worker_leaves_metrics_and_ledger_to_the_trainer(finished: Any) -> None:
    run = finished[0]
    left = {str(file.relative_to(run.path)) for file in (run.path / "eval").iterdir()}
    assert left == {"eval/worker.log", *(f"eval/step_{step}.{end}" for step in STEPS for end in ("json", "jsonl"))}
    assert not (run.path / "ledger.jsonl").exists()
    assert not (run.path / "metrics.jsonl").exists()


def test_what_the_worker_got_is_recorded(finished: Any) -> None:
    run, spec, described, _, _ = finished
    started, ready = read_lines(run.path / "sys/eval_worker.jsonl")
    assert (started["event"], ready["event"]) == ("started", "ready")
    assert EvalWorkerSpec.from_json(started["spec"]) == spec
    assert started["weights_in"] in ("ram", "run directory")
    assert ready["engine"] == json.loads(json.dumps(described))
    assert ready["engine"]["num_threads"] == 1
    assert ready["engine"]["num_problems"] == 12
    assert ready["engine"]["grader_versions"].keys() == {"numeric", "gsm8k_strict"}
    assert {"name": "torch.num_threads", "asked": "1", "got": "1", "decided_by": "harness"} in ready["determinism"]


def test_weights_are_gone_once_their_outcome_is_taken(finished: Any) -> None:
    _, _, _, pending, _ = finished
    assert pending.keys() == set(STEPS)
    assert not any(folder.exists() for folder in pending.values())


def test_a_spec_survives_json() -> None:
    spec = EvalWorkerSpec("r", "vllm", {"model_id": "tiny"}, "e", 5, ("math",), Sampling(stop=("\n\n",)), visible_devices="1")
    assert EvalWorkerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "openai"}, "takes new weights: unknown engine 'openai'"),
        ({"graders": ("numbr",)}, "did you mean 'numeric'"),
        ({"graders": ()}, "graders is empty"),
        ({"determinism": "strickt"}, "did you mean 'strict'"),
        ({"num_threads": 0}, "must be 1 or more"),
    ],
)
def test_what_no_worker_can_do_is_refused_before_one_is_started(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EvalWorkerSpec(**{"run_path": "r", "engine": "vllm", "engine_arguments": {}, "eval_set_path": "e", **changes})


def test_the_worker_has_threads_toggles_and_devices_of_its_own() -> None:
    trainer = {"OMP_NUM_THREADS": "16", "PYTHONHASHSEED": "5", "CUDA_VISIBLE_DEVICES": "4,7", "PATH": "/bin"}
    spec = EvalWorkerSpec("r", "transformers", {}, "e", num_threads=2, visible_devices=visible_device("cuda:1", trainer))
    environment = spec.worker_environment(trainer)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["PYTHONHASHSEED"] == "5"  # what the trainer runs with
    assert environment["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert environment["PATH"] == "/bin"


def test_a_device_is_counted_among_those_the_trainer_sees() -> None:
    assert visible_device("cuda:1", {}) == "1"
    assert visible_device("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == "GPU-a"
    assert visible_device("cpu", {"CUDA_VISIBLE_DEVICES": "0"}) == ""
    with pytest.raises(ConfigError, match=r"cuda:2 is not there: CUDA_VISIBLE_DEVICES shows 2 device"):
        visible_device("cuda:2", {"CUDA_VISIBLE_DEVICES": "0,1"})
    with pytest.raises(ConfigError, match="allowed is cpu, cuda or cuda:N"):
        visible_device("tpu", dict(os.environ))
