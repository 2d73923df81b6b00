"""Data sets as environments of one turn: graders, truncation, reasoning-gym's own scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from grpo_gsm8k.data import gym
from grpo_gsm8k.envs.dataset import DatasetEnv
from grpo_gsm8k.envs.protocol import Exchange, Outcome
from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.rewards.gym import GymScorer
from grpo_gsm8k.rewards.registry import make_grader
from grpo_gsm8k.types import Problem, Score, StopReason

EGGS = Problem("eggs", "How many eggs?", "3 * 6 = 18\n#### 18", "18")


def score(env: DatasetEnv, problem: Problem, text: str, stop_reason: StopReason = "eos") -> Score:
    reply = env.reply([Exchange(problem, (text,), stop_reason)])[0]
    assert isinstance(reply, Outcome)
    return reply.score


@pytest.fixture(name="env")
def numeric_env() -> DatasetEnv:
    return DatasetEnv("gsm8k", {"train": [EGGS]}, make_grader("numeric"))


def test_a_completion_is_scored_by_the_grader(env: DatasetEnv) -> None:
    assert score(env, EGGS, "So #### 18").value == 1.0
    assert score(env, EGGS, "So #### 17") == Score(0.0, "17", "wrong", "####")
    assert (env.max_turns, env.stop, env.inline, env.version) == (1, (), False, "numeric 3")


def test_a_right_answer_in_a_completion_cut_by_length_gets_no_reward(env: DatasetEnv) -> None:
    cut = score(env, EGGS, "So #### 18", "length")
    assert (cut.value, cut.status) == (0.0, "unparsed")
    assert "cut by its length limit" in cut.explanation


def test_replies_keep_the_order_of_the_exchanges(env: DatasetEnv) -> None:
    ways: list[tuple[str, StopReason]] = [("#### 18", "eos"), ("#### 18", "length"), ("#### 3", "stop"), ("#### 18", "stop")]
    replies = env.reply([Exchange(EGGS, (text,), stop) for text, stop in ways])
    assert [reply.score.status for reply in replies if isinstance(reply, Outcome)] == [
        "correct",
        "unparsed",
        "wrong",
        "correct",
    ]


def test_a_grader_that_fails_says_error_and_not_wrong(env: DatasetEnv) -> None:
    assert score(env, Problem("bad", "?", "", "many"), "#### 18").status == "error"


def test_problems_of_a_split_come_in_order_and_another_split_is_refused(env: DatasetEnv) -> None:
    assert env.problems("train") == [EGGS]
    assert env.splits == ("train",)
    with pytest.raises(DataError, match=r"environment gsm8k: unknown split 'test'.*known: train"):
        env.problems("test")


@pytest.fixture(name="gym_env", scope="module")
def made_gym_env() -> Iterator[DatasetEnv]:
    mixture = gym.parse_mixture({"datasets": {"countdown": {}}})
    problems, _ = gym.generate_mixture(mixture, "train", 2, 0)
    env = DatasetEnv("gym", {"train": problems}, GymScorer(num_workers=1, timeout_s=1.0))
    yield env
    env.close()


def test_reasoning_gym_scores_its_own_problems_with_fractions_kept(gym_env: DatasetEnv) -> None:
    problem = gym_env.problems("train")[0]
    assert score(gym_env, problem, f"<answer>{problem.answer}</answer>").value == 1.0
    wrong = score(gym_env, problem, "<answer>-1</answer>")
    assert (wrong.status, wrong.value) == ("wrong", gym.score_answer(problem, "-1"))
    assert wrong.value == 0.05
    assert score(gym_env, problem, f"<answer>{problem.answer}</answer>", "length").status == "unparsed"
    assert gym_env.version.startswith("reasoning-gym ")


def test_a_completion_that_hangs_its_scorer_is_an_error_and_the_others_are_scored(gym_env: DatasetEnv) -> None:
    first, second = gym_env.problems("train")
    texts = [(first, first.answer), (second, second.answer), (first, "9**9**9**9")]  # this scorer evaluates what it is given
    began = time.monotonic()
    replies = gym_env.reply([Exchange(problem, (f"<answer>{text}</answer>",), "eos") for problem, text in texts])
    assert time.monotonic() - began < 30
    scores = [reply.score for reply in replies if isinstance(reply, Outcome)]
    assert [found.status for found in scores] == ["correct", "correct", "error"]
    assert scores[2].explanation == "reasoning-gym's scorer of countdown: timed out after 1 s"


def test_a_gym_environment_refuses_problems_of_others(gym_env: DatasetEnv) -> None:
    with pytest.raises(DataError, match="not a reasoning-gym problem"):
        score(gym_env, EGGS, "<answer>18</answer>")


@pytest.mark.slow
def test_a_question_that_is_made_differently_now_stops_the_run_and_not_the_rollout(gym_env: DatasetEnv) -> None:
    changed = replace(gym_env.problems("train")[0], question="Another?")
    with pytest.raises(ProofError, match="makes another question"):
        score(gym_env, changed, "<answer>1</answer>")


def test_a_demonstration_marks_its_gold_where_the_answer_does_not(env: DatasetEnv) -> None:
    assert env.demonstration(EGGS) == (EGGS.answer,)
    plain = Problem("plain", "?", "Six a box, three boxes.", "18")
    for grader in ("numeric", "gsm8k_strict", "math"):
        judged = DatasetEnv("jsonl", {}, make_grader(grader))
        assert score(judged, plain, judged.demonstration(plain)[0]).value == 1.0
        judged.close()
    assert env.demonstration(Problem("none", "?", "", "")) == ()
