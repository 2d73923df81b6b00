"""The evaluation worker on environments of several turns: what it finds is what an evaluation in this process finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_workers import WEIGHTS_BYTES, publish, tokenizer

from grpo_gsm8k.data.jsonl import write_jsonl
from grpo_gsm8k.data.rows import to_row
from grpo_gsm8k.engines.select import make_engine
from grpo_gsm8k.envs.registry import make_env
from grpo_gsm8k.errors import ConfigError, ProofError
from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.loops.eval_spec import EnvEvalSpec, EvalWorkerSpec
from grpo_gsm8k.loops.eval_work import open_work
from grpo_gsm8k.loops.rollouts import RolloutLimits
from grpo_gsm8k.prompts import template_hash
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import digest, read_lines
from grpo_gsm8k.types import Sampling

torch.set_num_threads(1)

STEPS = (0, 4)


def make_spec(folder: Path, name: str = "wordle", **changes: Any) -> tuple[RunDirectory, EvalWorkerSpec]:
    run = RunDirectory.create(folder, "grpo", [])
    env = make_env(name, num_train=1, num_val=1, num_test=8)
    write_jsonl(run.path / "eval_problems.jsonl", map(to_row, env.problems("test")))
    told = EnvEvalSpec(name, "question", template_hash("question"), RolloutLimits(3, 24))
    values: dict[str, Any] = {
        "run_path": str(run.path),
        "engine": "transformers",
        "engine_arguments": {"model_id": "tiny", "device": "cpu"},
        "eval_set_path": str(run.path / "eval_problems.jsonl"),
        "eval_examples": 6,
        "graders": (),
        "sampling": Sampling(temperature=0.8),
        "num_samples": 2,
        "seed": 7,
        "env": told,
    }
    return run, EvalWorkerSpec(**{**values, **changes})


SLOW = pytest.mark.slow


@pytest.fixture(
    scope="module", params=["calculator_inline", pytest.param("wordle", marks=SLOW), pytest.param("calculator", marks=SLOW)]
)
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[tuple[Any, ...]]:
    """Two evaluations of two different weights, and the run they belong to."""
    run, spec = make_spec(tmp_path_factory.mktemp("artifacts"), request.param)
    with EvalClient.start(spec, run, weights_bytes=WEIGHTS_BYTES) as client:
        described = client.wait_ready()
        for step in STEPS:
            publish(client.publish_dir(step), seed=step)
            client.submit(step)
        yield run, spec, described, client.drain()


def test_the_worker_finds_what_an_evaluation_in_this_process_finds(finished: Any, tmp_path: Path) -> None:
    run, spec, _, outcomes = finished
    assert [outcome.step for outcome in outcomes] == list(STEPS)
    engine, _ = make_engine(spec.engine, **spec.engine_arguments)
    with ExitStack() as stack:
        stack.callback(engine.close)
        work = open_work(spec, tokenizer(), stack)
        for outcome in outcomes:
            engine.load_weights(publish(tmp_path / f"weights-{outcome.step}", seed=outcome.step), outcome.step)
            done = work.evaluate(RunDirectory(tmp_path), engine, outcome.step)
            for name in (f"eval/step_{outcome.step}.jsonl", f"eval/step_{outcome.step}.json"):
                assert (run.path / name).read_bytes() == (tmp_path / name).read_bytes()
            assert outcome.stages == {stage: digest(value) for stage, value in done.stages.items()}
            assert outcome.aggregate == json.loads(json.dumps(done.aggregate))


def test_the_rollouts_have_turns_and_the_environment_is_the_grader(finished: Any) -> None:
    run, spec, described, outcomes = finished
    assert described["grader_versions"].keys() == {spec.env.name}
    assert described["num_problems"] == 6
    for outcome in outcomes:
        assert outcome.aggregate["primary_grader"] == spec.env.name
        assert (outcome.aggregate["num_problems"], outcome.aggregate["num_samples"]) == (6, 2)
        rows = list(read_lines(run.path / f"eval/step_{outcome.step}.jsonl"))
        assert len(rows) == 12
        for row in rows:
            assert row["num_completion_tokens"] == sum(row["sampled"]) == sum(t["end"] - t["start"] for t in row["turns"])
            assert (0 in row["sampled"]) == (len(row["turns"]) > 1)
    if spec.env.name != "calculator":  # whose call tiny does not know
        assert any(len(row["turns"]) > 1 for row in rows)


def test_a_spec_with_an_environment_survives_json(tmp_path: Path) -> None:
    _, spec = make_spec(tmp_path)
    assert EvalWorkerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("changes", [{"graders": ("numeric",)}, {"batch_size": 4}])
def test_graders_and_batches_beside_an_environment_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="graders and batch_size are none"):
        make_spec(tmp_path, **changes)


def test_another_template_than_the_trainers_is_noticed(tmp_path: Path) -> None:
    _, spec = make_spec(tmp_path)
    assert spec.env is not None
    other = replace(spec, env=replace(spec.env, template_sha256="0" * 64))
    with ExitStack() as stack, pytest.raises(ProofError, match="template question changed since the trainer read it"):
        open_work(other, tokenizer(), stack)
