"""What is dropped from a reasoning, by which rule; work is never dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_gsm8k.traces.cleaning import clean_reasoning, rule_of


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("I need to put the final answer within \\boxed{}.", "instruction"),
        ("Please reason step by step, and put your final answer within \\boxed{}.", "instruction"),
        ("Let's reason step-by-step.", "instruction"),
        ("Don't forget to use \\boxed here!", "box"),
        ("And the answer goes into a box.", "box"),
        ("The user wants me to think step by step.", "request"),
        ("I was asked for a certain format.", "request"),
        ("So the final answer is \\boxed{18}.", None),
        ("Let me reason step by step: 3 * 4 = 12.", None),
        ("She puts the apples into the box.", None),
        ("Each box holds 6 muffins.", None),
        ("The user of the gym pays 5 dollars.", None),
        ("What is the final answer?", None),
    ],
)
def test_each_rule_takes_what_it_says_and_nothing_that_calculates(sentence: str, rule: str | None) -> None:
    assert rule_of(sentence) == rule


def test_only_the_echo_goes_and_the_lines_around_it_stay_as_they_were() -> None:
    text = "Okay.  The user wants a final answer. First, 12 / 3 = 4.\n\n\n\n  4 + 1 = 5  \nI put the answer in a box.\nDone."
    cleaned = clean_reasoning(text)
    assert cleaned.text == "Okay. First, 12 / 3 = 4.\n\n  4 + 1 = 5\nDone."
    assert cleaned.dropped == {"request": 1, "instruction": 1}


def test_published_solutions_lose_nothing(gsm8k_dir: Path) -> None:
    for line in (gsm8k_dir / "train.jsonl").read_bytes().split(b"\n")[:-1]:
        assert not clean_reasoning(json.loads(line)["answer"]).dropped
