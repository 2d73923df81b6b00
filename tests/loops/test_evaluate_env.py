"""Evaluating an environment leaves the files and the record of a plain evaluation, with turns and masks besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from envs_for_tests import EOS, SumEnv, decode, extend, problem, prompt

from grpo_gsm8k.algorithms.summary import summarise
from grpo_gsm8k.engines.scripted import ScriptedEngine
from grpo_gsm8k.loops.evaluate import EvalTask, Evaluation, evaluate_unrecorded
from grpo_gsm8k.loops.evaluate_env import EnvEvalTask, evaluate_env
from grpo_gsm8k.loops.rollouts import RolloutLimits
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import read_lines
from grpo_gsm8k.types import Completion, Prompt, Sampling, Score

torch.set_num_threads(1)


def answers(prompt: Prompt, seed: int) -> Completion:
    """Says its context's length in the first turns; problem p0 then says 1, p1 says 2, p2 is cut, p3 says a seed's digit."""
    number = int(prompt.problem_id[1:])
    last = {0: (1, EOS), 1: (2, EOS), 2: (1, 1, 1), 3: (1 + seed % 2, EOS)}[number]
    ids = last if len(prompt.token_ids) > 10 or number == 2 else (len(prompt.token_ids), EOS)
    return Completion(ids, (-0.25,) * len(ids), "eos" if ids[-1] == EOS else "length")


def task(env: SumEnv, num_samples: int = 1) -> EnvEvalTask:
    return EnvEvalTask(
        env=env,
        problems=[problem(number) for number in range(4)],
        prompts=[prompt(number) for number in range(4)],
        sampling=Sampling(1.0),
        limits=RolloutLimits(4, 3),
        num_samples=num_samples,
        seed=5,
        extend=extend,
    )


def evaluate(folder: Path, env: SumEnv, num_samples: int = 1, step: int = 7) -> tuple[Evaluation, list[dict[str, Any]]]:
    done = evaluate_env(RunDirectory(folder), task(env, num_samples), ScriptedEngine(answers), decode, step)
    return done, list(read_lines(folder / f"eval/step_{step}.jsonl"))


def test_accuracy_is_the_share_of_rollouts_that_the_environment_calls_correct(tmp_path: Path) -> None:
    done, rows = evaluate(tmp_path, SumEnv(raises_on="p3"))
    assert [row["scores"]["sum"]["status"] for row in rows] == ["correct", "wrong", "unparsed", "error"]
    assert [row["stop_reason"] for row in rows] == ["answered", "answered", "length", "error"]
    assert (done.aggregate["primary_grader"], done.aggregate["accuracy"], done.aggregate["truncated"]) == ("sum", 0.25, 1)
    counts = done.aggregate["graders"]["sum"]
    assert [counts[status] for status in ("correct", "wrong", "unparsed", "error")] == [1, 1, 1, 1]
    assert done.aggregate["rollouts"] == {
        "mean_score": 0.25,
        "mean_turns": 2.0,
        "stop_reasons": {"answered": 2, "error": 1, "length": 1},
        "metrics": {"turns_used": 3.0},
    }
    assert json.loads((tmp_path / "eval/step_7.json").read_bytes()) == json.loads(json.dumps(done.aggregate))
    assert {**summarise(rows, ("sum",), step=7, seed=5), "rollouts": done.aggregate["rollouts"]} == done.aggregate


def test_a_row_shows_the_turns_and_which_tokens_the_model_sampled(tmp_path: Path) -> None:
    _, rows = evaluate(tmp_path, SumEnv(turns=2))
    row = rows[0]
    assert row["token_ids"] == [2, EOS, 901, 1, 50, 902, 8, EOS]
    assert row["sampled"] == [1, 1, 0, 0, 0, 0, 1, 1]
    assert [turn["text"] for turn in row["turns"]] == ["2", "8"]
    assert row["completion"] == "2 901 1 50 902 8"
    assert (row["prompt"], row["num_prompt_tokens"], row["num_completion_tokens"]) == ("prompt 0", 2, 4)


def test_an_environment_of_one_turn_evaluates_like_its_grader_does(tmp_path: Path) -> None:
    """Same seeds, same tokens, same verdicts, and every key of a plain row."""

    def grade(problems: Any, texts: Any) -> list[Score]:
        right = [p.gold in text.split() for p, text in zip(problems, texts, strict=True)]
        return [Score(float(r), t, "correct" if r else "wrong") for r, t in zip(right, texts, strict=True)]

    told = task(SumEnv(turns=1), num_samples=3)
    plain_task = EvalTask(told.problems, told.prompts, {"sum": grade}, Sampling(1.0, max_tokens=3), 3, 5, 8, True)
    plain = evaluate_unrecorded(RunDirectory(tmp_path / "a"), plain_task, ScriptedEngine(answers), decode, 7)
    done, rows = evaluate(tmp_path / "b", SumEnv(turns=1), num_samples=3)
    assert {key: done.stages[key] for key in ("data", "prompt")} == {key: plain.stages[key] for key in ("data", "prompt")}
    assert done.stages.keys() == plain.stages.keys()
    assert done.times.keys() == plain.times.keys()
    for row, other in zip(rows, read_lines(tmp_path / "a/eval/step_7.jsonl"), strict=True):
        assert other.keys() <= row.keys()
        same = other.keys() - {"stop_reason"} - ({"scores"} if row["problem_id"] == "p2" else set())
        assert {key: row[key] for key in same} == {key: other[key] for key in same}


def test_several_samples_of_a_problem_have_seeds_of_their_own(tmp_path: Path) -> None:
    done, rows = evaluate(tmp_path, SumEnv(turns=3), num_samples=4)
    assert [(row["problem_id"], row["sample_index"]) for row in rows[:5]] == [*(("p0", i) for i in range(4)), ("p1", 0)]
    assert len({row["seed"] for row in rows}) == 16
    assert done.aggregate["pass_at_k"].keys() == {"1", "2", "4"}


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        evaluate(tmp_path / name, SumEnv(), num_samples=2)
        written.append([(tmp_path / name / f"eval/step_7.{end}").read_bytes() for end in ("json", "jsonl")])
    assert written[0] == written[1]
