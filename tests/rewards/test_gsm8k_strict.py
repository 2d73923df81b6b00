"""`gsm8k_strict`: the `####` convention and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_gsm8k.rewards.gsm8k_strict import Gsm8kStrictGrader
from grpo_gsm8k.rewards.numbers import gold_number

GRADER = Gsm8kStrictGrader()


@pytest.mark.parametrize(
    "completion", ["#### 1080", "#### 1,080", "####1080", "#### $1,080.00", "#### 3\n#### 1080.", "#### 1080 eggs"]
)
def test_the_last_marked_number_is_read(completion: str) -> None:
    assert GRADER.grade(completion, "1,080").status == "correct"


@pytest.mark.parametrize("completion", ["\\boxed{18}", "The answer is 18.", "#### eighteen", "### 18", ""])
def test_any_other_form_is_unparsed(completion: str) -> None:
    assert GRADER.grade(completion, "18").status == "unparsed"


@pytest.mark.parametrize("completion", ["#### 8", "#### 18.5", "#### -18", "#### 180", "#### 1.8.0", "#### " + "9" * 5000])
def test_another_number_is_wrong(completion: str) -> None:
    assert GRADER.grade(completion, "18").status == "wrong"


def test_equal_answers_are_equal_votes() -> None:
    answers = [GRADER.grade(f"#### {written}", "3").answer for written in ("$1,080", "1080.00", "1080", "1,080.")]
    assert answers == ["1080"] * 4


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_every_published_solution_is_correct_and_wrong_for_the_next_problem(gsm8k_dir: Path, name: str) -> None:
    text = (gsm8k_dir / name).read_text(encoding="utf-8")
    answers = [json.loads(line)["answer"] for line in text.split("\n") if line]
    golds = [gold_number(answer) for answer in answers]
    assert all(score.status == "correct" for score in GRADER.grade_batch(answers, golds))
    others = GRADER.grade_batch(answers, golds[1:] + golds[:1])
    assert [s.status == "correct" for s in others] == [a == b for a, b in zip(golds, golds[1:] + golds[:1], strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_no_text_makes_it_raise(completion: str, gold: str) -> None:
    assert GRADER.grade("#### " + completion, gold).status in ("correct", "wrong", "unparsed", "error")
