"""`format` and `format_boxed`: the shape of a completion."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_gsm8k.rewards.format import BoxedFormatGrader, FormatGrader

GOOD = [
    "<think>a</think> <answer>1</answer>",
    "a</think>\n<answer> x </answer>\n",
    "<think>\na\n</think><answer>\\boxed{1}</answer>",
]
BAD = {
    "<answer>1</answer>": "0 </think>",
    "<think>a</think> 1": "0 <answer>",
    "<think>a</think> <answer>1": "0 </answer>",
    "<think>a</think> <answer></answer>": "empty <answer>",
    "<think></think> <answer>1</answer>": "empty <think>",
    "<think>a</think> so <answer>1</answer>": "text outside",
    "<think>a</think> <answer>1</answer> done": "text outside",
    "<think>a<think>b</think> <answer>1</answer>": "second <think>",
    "<answer>1</answer></think>": "order",
    "": "0 </think>",
}


@pytest.mark.parametrize("completion", GOOD)
def test_the_asked_shape_scores_one(completion: str) -> None:
    score = FormatGrader().grade(completion, "")
    assert (score.value, score.status) == (1.0, "correct")


@pytest.mark.parametrize("completion", BAD)
def test_any_other_shape_scores_zero_and_says_what_is_missing(completion: str) -> None:
    score = FormatGrader().grade(completion, "")
    assert (score.value, score.status) == (0.0, "wrong")
    assert BAD[completion] in score.explanation


def test_a_box_must_be_closed_and_not_empty() -> None:
    grade = BoxedFormatGrader().grade
    assert grade("so \\boxed{\\frac{1}{2}}.", "").value == 1.0
    for completion in ("", "18", "\\boxed{18", "\\boxed{}", "\\boxed{ }"):
        assert grade(completion, "").value == 0.0


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_makes_them_raise(completion: str) -> None:
    assert FormatGrader().grade("<think>" + completion, "").value in (0.0, 1.0)
    assert BoxedFormatGrader().grade("\\boxed{" + completion, "").value in (0.0, 1.0)
