"""The calculator as a tool: what counts as a call, what comes back, what is graded."""

from __future__ import annotations

import json

import pytest

from grpo_gsm8k.data import word_problems
from grpo_gsm8k.data.rows import parse_problems, to_row
from grpo_gsm8k.envs.calculator import INSTRUCTION, CalculatorEnv, InlineCalculatorEnv, generate
from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.types import Problem, StopReason

PROBLEM = Problem("one", "Mia has 12 cups. …", "12 + 5 = 17. 17 - 8 = 9.\n#### 9", "9")


def tagged(*turns: str, stop_reason: StopReason = "stop") -> Reply:
    return CalculatorEnv({"test": [PROBLEM]}).reply([Exchange(PROBLEM, turns, stop_reason)])[0]


def inline(*turns: str, stop_reason: StopReason = "stop") -> Reply:
    return InlineCalculatorEnv({"test": [PROBLEM]}).reply([Exchange(PROBLEM, turns, stop_reason)])[0]


def test_a_tagged_call_is_answered_by_its_result() -> None:
    assert tagged("First <calc>12 + 5</calc>") == Observation("17")
    assert tagged("<calc>12 + 5</calc>", "<calc>17 - 8</calc>") == Observation("9")
    assert tagged("<calc> 3 <calc>1/3</calc>") == Observation("1/3")


@pytest.mark.parametrize("turn", ["<calc>twelve</calc>", "12 + 5</calc>", "<calc></calc>"])
def test_a_call_that_is_no_calculation_is_answered_by_an_error(turn: str) -> None:
    assert tagged(turn) == Observation("error: not a calculation")


def test_an_answer_is_graded_whether_the_tool_was_called_or_not() -> None:
    at_once = tagged("12 + 5 = 17. 17 - 8 = 9.\n#### 9", stop_reason="eos")
    assert isinstance(at_once, Outcome)
    assert (at_once.score.value, at_once.score.status, at_once.metrics["num_calls"]) == (1.0, "correct", 0.0)
    after = tagged("<calc>12 + 5</calc>", "<calc>1/0</calc>", "#### 17", stop_reason="eos")
    assert isinstance(after, Outcome)
    assert (after.score.value, after.score.status, after.score.answer) == (0.0, "wrong", "17")
    assert after.metrics == {"num_calls": 2.0, "num_failed_calls": 1.0}


def test_only_what_follows_the_last_mark_is_the_answer() -> None:
    answer = tagged("The total is 9. #### 9 or rather #### 8", stop_reason="eos")
    assert isinstance(answer, Outcome)
    assert answer.score.value == 0.0
    unmarked = tagged("The answer is 9.", stop_reason="eos")
    assert isinstance(unmarked, Outcome)
    assert (unmarked.score.value, unmarked.score.status) == (0.0, "unparsed")


def test_a_turn_cut_by_length_is_not_read() -> None:
    for cut in (tagged("#### 9", stop_reason="length"), inline("12 + 5 =", stop_reason="length")):
        assert isinstance(cut, Outcome)
        assert (cut.score.value, cut.score.status) == (0.0, "unparsed")
        assert "cut by its length limit" in cut.score.explanation


def test_an_inline_call_is_filled_in_where_it_stands() -> None:
    assert inline("12 + 5 =") == Observation(" 17")
    assert inline("12 + 5 =", ". 17 - 8 =") == Observation(" 9")
    assert inline("She pays $5 * 3 =\n") == Observation(" 15")  # the token that completes the stop string may hold more
    done = inline("12 + 5 =", ". 17 - 8 =", ".\n#### 9", stop_reason="eos")
    assert isinstance(done, Outcome)
    assert (done.score.value, done.metrics["num_calls"]) == (1.0, 2.0)


def test_an_inline_call_goes_on_from_the_results_before_it() -> None:
    assert inline("12 + 5 =", " - 8 =") == Observation(" 9")  # the text reads 12 + 5 = 17 - 8 =
    assert inline("2 * 3 =", "0 - 1 =") == Observation(" 59")  # … 60 - 1 =


@pytest.mark.parametrize("turn", ["x =", "apples =", "The total =", "17 =", "- 8 =", "=", "12 + =", "2 = ="])
def test_an_equals_sign_without_a_calculation_before_it_is_an_error(turn: str) -> None:
    assert inline(turn) == Observation(" error: not a calculation")


def test_an_inline_turn_without_call_or_answer_ends_with_nothing() -> None:
    done = inline("12 + 5 =", " that is it.", stop_reason="eos")
    assert isinstance(done, Outcome)
    assert (done.score.value, done.score.status) == (0.0, "unparsed")


def test_the_inline_text_with_its_results_is_the_published_answer() -> None:
    for problem in word_problems.generate("train", 200, seed=0):
        env, turns, text = InlineCalculatorEnv({"train": [problem]}), (), ""
        for turn in env.demonstration(problem):
            turns, text = (*turns, turn), text + turn
            reply = env.reply([Exchange(problem, turns, "stop")])[0]
            text += reply.text if isinstance(reply, Observation) else ""
        assert text == problem.answer
        assert isinstance(reply, Outcome) and reply.score.value == 1.0


def test_the_tagged_question_says_how_to_call_and_the_inline_one_is_the_plain_problem() -> None:
    plain, told = word_problems.generate("val", 5, seed=2), generate("val", 5, seed=2)
    assert [problem.question for problem in told] == [problem.question + INSTRUCTION for problem in plain]
    assert [problem.gold for problem in told] == [problem.gold for problem in plain]


def test_replies_depend_on_the_record_alone() -> None:
    problem = generate("test", 1, seed=0)[0]
    again = parse_problems(json.dumps(to_row(problem)).encode() + b"\n", "again")[0]
    turns = CalculatorEnv({}).demonstration(problem)
    for end in range(1, len(turns) + 1):
        replies = [CalculatorEnv({}).reply([Exchange(p, turns[:end], "stop")]) for p in (problem, again)]
        assert replies[0] == replies[1]
