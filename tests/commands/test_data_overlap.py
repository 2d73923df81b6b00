"""`data overlap` on files of every kind: what is found, said, and ended with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.cli import main

QUESTION = "Tom has 12 apples. He eats 3 of them every day. How many apples are left after 2 days?"
OTHER = "Mia runs 5 miles in the morning and 3 miles in the evening. How far does she run in a week?"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION.lower(), "answer": "6"},
        {"problem": QUESTION, "solution": "6"},
        {"prompt": f"<|im_start|>user\n{QUESTION}<|im_end|>\n", "response": "6"},
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "6"}]},
        {"id": "x", "question": OTHER, "prompt": f"{QUESTION}\n#### 6\n\n{OTHER}", "gold": "56"},
        {"id": "x", "sample_index": 0, "question": QUESTION, "reasoning": "12 - 6 = 6", "answer": "6"},
        {"id": "x", "prompt": "Go on.", "response": f"You ask: {QUESTION} It is 6."},
        {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": f"You ask: {QUESTION} 6"}]},
        {"question": OTHER, "reasoning": f"It is like: {QUESTION.upper()}", "answer": "56"},
    ],
    ids=[
        "problem in lower case",
        "MATH",
        "pair",
        "chat",
        "few-shot example of a rendered prompt",
        "trace",
        "response",
        "assistant's turn",
        "reasoning",
    ],
)
def test_a_question_in_training_data_of_any_kind_ends_with_1(
    row: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = write(tmp_path / "train.jsonl", row)
    evaluated = write(tmp_path / "eval.jsonl", {"question": QUESTION, "answer": "6"})
    assert main(["data", "overlap", training, evaluated]) == 1
    said = capsys.readouterr()
    assert "1 of 1 eval questions are in the training data" in said.out
    assert said.err == f"error: {training} holds 1 of the 1 questions of {evaluated}; take them out of one\n"


def test_few_shot_examples_of_an_eval_prompt_are_not_asked(tmp_path: Path) -> None:
    training = write(tmp_path / "train.jsonl", {"question": OTHER, "answer": "56"})
    row = {"question": QUESTION, "prompt": f"{OTHER}\n#### 56\n\n{QUESTION}", "gold": "6"}
    assert main(["data", "overlap", training, write(tmp_path / "eval.jsonl", row)]) == 0


def test_what_is_near_is_shown_with_both_texts_and_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = QUESTION.replace("12", "15")
    training = write(tmp_path / "train.jsonl", {"question": near, "answer": "9"}, {"question": OTHER, "answer": "56"})
    evaluated = write(tmp_path / "eval.jsonl", {"id": "e", "question": QUESTION, "answer": "6"})
    assert main(["data", "overlap", training, evaluated]) == 0
    said = capsys.readouterr().out
    assert near.removesuffix("?") in said
    assert QUESTION in said
    assert "near: 95 % of the words, 16 in a run, other numbers" in said
    assert main(["data", "overlap", training, evaluated, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["near"] == {"pairs": 1, "training_texts": 1, "eval_questions": 1, "same_numbers": 0}
    assert found["pairs"][0]["training_id"] == "train/00000"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty"),
        ('{"text": "x"}\n', "train.jsonl:1: no text in 'question', 'problem', 'prompt' or 'messages' (the row has: text)"),
        ('{"question": 3}\n', "train.jsonl:1: no text"),
        ('{"messages": [{"role": "user"}]}\n', "train.jsonl:1: no text"),
        ("{\n", "train.jsonl:1: not JSON"),
    ],
)
def test_a_file_without_texts_is_one_line(content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    evaluated = write(tmp_path / "eval.jsonl", {"question": QUESTION, "answer": "6"})
    assert main(["data", "overlap", str(tmp_path / "train.jsonl"), evaluated]) == 2
    assert says in capsys.readouterr().err
