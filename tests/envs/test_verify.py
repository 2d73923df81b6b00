"""Verification of environments: each fault is found in data that has it, and sound data have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_gsm8k.data.rows import load_problems
from grpo_gsm8k.envs.registry import make_env
from grpo_gsm8k.envs.verify import NUM_EXAMPLES, Verification, verify
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.types import Problem

SOUND = [Problem(f"p{n}", f"What is {n} and 1?", f"{n} + 1 = {n + 1}\n#### {n + 1}", str(n + 1)) for n in range(6)]


def found(*problems: Problem, others: list[Problem] | None = None, grader: str = "numeric") -> dict[str, tuple[int, str]]:
    splits = {"test": [*SOUND, *problems]} | ({"train": others} if others else {})
    result = verify(make_env("jsonl", splits=splits, grader=grader), "test")
    return {finding.kind: (finding.num, finding.examples[0]) for finding in result.findings}


def test_sound_problems_have_no_findings() -> None:
    result = verify(make_env("jsonl", splits={"test": SOUND}), "test")
    assert result == Verification("jsonl", "numeric 3", "test", 6, 6, ())
    assert result.ok


def test_an_answer_that_does_not_give_its_gold_is_found() -> None:
    assert found(Problem("bad", "What is 9 and 9?", "9 + 9 = 18\n#### 18", "19")) == {
        "published answers without the full score": (1, "bad: '19': wrong 0, read '18' (####)")
    }


def test_a_gold_that_is_no_number_is_found() -> None:
    assert found(Problem("bad", "How many?", "Many.\n#### many", "many")) == {
        "golds that the grader cannot read": (1, "bad: 'many': the gold 'many' is not a number")
    }


def test_an_empty_question_and_one_asked_twice_are_found() -> None:
    twice = Problem("twice", "what is 3  AND 1?", "#### 4", "4")
    assert found(Problem("empty", " ", "#### 4", "4"), twice) == {
        "empty questions": (1, "empty: the question is empty"),
        "questions repeated in the split": (1, "twice: asks what p3 asks"),
    }


def test_a_question_of_another_split_is_found() -> None:
    train = [Problem("t", "What is 2 and 1?", "#### 3", "3")]
    assert found(others=train) == {"questions also in train": (1, "p2: asks what t asks")}


def test_an_answer_that_is_not_published_is_said_and_is_no_fault() -> None:
    result = verify(make_env("jsonl", splits={"test": [*SOUND, Problem("none", "Why?", "", "")]}), "test")
    assert [(finding.kind, finding.is_fault) for finding in result.findings] == [("problems without a published answer", False)]
    assert result.ok and result.num_right == 6


def test_a_grader_that_takes_any_answer_is_found_out() -> None:
    assert found(grader="format")["published answers without the full score"][0] == 6
    boxed = [Problem(f"b{n}", f"What is {n}?", f"\\boxed{{{n}}}", str(n)) for n in range(3)]
    result = verify(make_env("jsonl", splits={"test": boxed}, grader="format_boxed"), "test")
    assert [(finding.kind, finding.num) for finding in result.findings] == [("wrong answers with the full score", 3)]
    assert not result.ok


def test_two_ways_to_write_one_number_are_not_a_wrong_answer() -> None:
    same = [Problem("a", "1?", "#### 18", "18"), Problem("b", "2?", "#### 18.00", "18.00"), Problem("c", "3?", "#### 5", "5")]
    assert verify(make_env("jsonl", splits={"test": same}), "test").ok


def test_examples_are_the_first_few() -> None:
    bad = [Problem(f"bad{n}", f"What is {n}00?", "#### 1", "2") for n in range(9)]
    (finding,) = verify(make_env("jsonl", splits={"test": bad}), "test").findings
    assert (finding.num, len(finding.examples)) == (9, NUM_EXAMPLES)


def test_a_split_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="unknown split 'val'"):
        verify(make_env("jsonl", splits={"test": SOUND}), "val")


def test_every_published_answer_of_gsm8k_is_right_by_its_own_grader(gsm8k_dir: Path) -> None:
    splits = {split: load_problems(gsm8k_dir / f"{split}.jsonl") for split in ("train", "test")}
    for split, num in (("train", 7473), ("test", 1319)):
        result = verify(make_env("gsm8k", splits=splits), split)
        assert (result.num_right, result.findings) == (num, ())
