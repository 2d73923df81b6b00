"""The leak gate: what stops a run, what is put on record, and that few-shot examples are looked through too."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.training_data.overlap import check_leaks, sequence_prompts, trained_texts
from grpo_gsm8k.types import Prompt

QUESTIONS = [
    ("val/0", "Tom has 12 apples. He eats 3 of them every day. How many apples are left after 2 days?"),
    ("val/1", "Ann buys 4 pens at $2 each and pays with a note of $20. How much does she get back?"),
]
OTHER = "Mia runs 5 miles in the morning and 3 miles in the evening. How far does she run in a week?"


def asked(identity: str, text: str, token_ids: tuple[int, ...] = ()) -> Prompt:
    return Prompt(identity, token_ids or tuple(text.encode()), f"<|im_start|>user\n{text}<|im_end|>\n")


def test_a_training_prompt_that_holds_an_eval_question_stops_the_run_and_both_are_named() -> None:
    training = [asked("train/0", OTHER), asked("train/1", f"Solve.\n\n{QUESTIONS[1][1].upper()}")]
    with pytest.raises(
        ProofError, match=r"1 training examples are problems of the eval set \(train/1 is val/1\); take them out"
    ):
        check_leaks(training, QUESTIONS, is_allowed=False)


def test_a_few_shot_example_of_a_training_prompt_counts() -> None:
    shots = f"Question: {QUESTIONS[0][1]}\nAnswer: 6\n\nQuestion: {OTHER}\nAnswer:"
    with pytest.raises(ProofError, match="train/0 is val/0"):
        check_leaks([asked("train/0", shots)], QUESTIONS, is_allowed=False)


def test_an_eval_prompt_may_hold_its_own_question_and_no_other_of_the_set() -> None:
    own = [asked(identity, f"{OTHER} #### 56\n\n{question}") for identity, question in QUESTIONS]
    assert check_leaks([asked("train/0", "How old is Ann?")], QUESTIONS, own, is_allowed=False)["leaked_shots"] == []
    shown = [own[0], asked("val/1", f"{QUESTIONS[0][1]} #### 6\n\n{QUESTIONS[1][1]}")]
    with pytest.raises(ProofError, match=r"1 prompts of the eval set hold another of its problems \(val/1 holds val/0\)"):
        check_leaks([asked("train/0", "How old is Ann?")], QUESTIONS, shown, is_allowed=False)


def test_a_question_quoted_in_what_is_trained_stops_the_run() -> None:
    training = [asked("train/0", OTHER), asked("train/1", "Go on.")]
    trained = [("train/0", f"{OTHER} She runs 56."), ("train/1", f"You ask: {QUESTIONS[0][1].lower()} 6.")]
    with pytest.raises(ProofError, match=r"1 trained responses hold questions of the eval set \(train/1 quotes val/0\)"):
        check_leaks(training, QUESTIONS, (), trained, is_allowed=False)
    record = check_leaks(training, QUESTIONS, (), trained, is_allowed=True)
    assert (record["num_overlapping"], record["quoted_in_trained_text"]) == (1, [("train/1", "val/0")])
    assert [(pair["kind"], pair["training_id"]) for pair in record["pairs"]] == [("normalised", "train/1")]
    assert check_leaks(training, QUESTIONS, (), trained[:1], is_allowed=False)["quoted_in_trained_text"] == []


def test_the_same_tokens_are_the_same_problem_where_the_eval_set_has_no_questions() -> None:
    rendered = [Prompt("val/0", (1, 2, 3), "x"), Prompt("val/1", (1, 2, 4), "y")]
    training = [Prompt("train/0", (1, 2, 4), "something else")]
    with pytest.raises(ProofError, match="train/0 is val/1"):
        check_leaks(training, [("val/0", "x"), ("val/1", "y")], rendered, is_allowed=False)


def test_what_is_allowed_and_what_is_near_is_on_record_with_both_texts(caplog: pytest.LogCaptureFixture) -> None:
    near = QUESTIONS[1][1].replace("4 pens", "7 pens")
    training = [asked("train/0", QUESTIONS[0][1]), asked("train/1", near), asked("train/2", OTHER)]
    with caplog.at_level(logging.INFO, "grpo_gsm8k"):
        record = check_leaks(training, QUESTIONS, is_allowed=True)
    assert record["num_overlapping"] == 1
    assert record["same_problem"] == [("train/0", "val/0")]
    assert {kind: counts["pairs"] for kind, counts in record["counts"].items()} == {
        "exact": 1,
        "normalised": 0,
        "near": 1,
        "ngram": 0,
    }
    (_, pair) = record["pairs"]
    assert (pair["training_id"], pair["eval_id"], pair["same_numbers"]) == ("train/1", "val/1", False)
    assert "7 pens" in pair["training_text"]
    assert pair["eval_text"] == QUESTIONS[1][1]
    assert record["rule"] == {"ngram": 13, "near_share": 0.8, "rare_words": 8, "rare_texts": 10}
    assert "1 training examples are problems of the eval set (train/0 is val/0), as allowed" in caplog.text
    assert "1 of 2 eval questions are in the training data, 1 more are near a training text" in caplog.text


def test_what_a_sequence_trains_and_what_it_does_not_are_told_apart_in_every_turn(tokenizer: Any) -> None:
    pieces = [("How old is Ann?", False), ("She is 3.", True), ("And Ben?", False), ("He is 4.", True)]
    ids: list[int] = []
    trained: list[bool] = []
    for text, is_trained in pieces:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += tokens
        trained += [is_trained] * len(tokens)
    (prompt,) = sequence_prompts([TokenSequence("chat/0", tuple(ids), tuple(trained))], tokenizer)
    sequence = TokenSequence("chat/0", tuple(ids), tuple(trained))
    assert trained_texts([sequence], tokenizer) == [("chat/0", "She is 3.\nHe is 4.")]
    assert prompt.problem_id == "chat/0"
    assert prompt.text == "How old is Ann?\nAnd Ben?"
    assert list(prompt.token_ids) == tokenizer("How old is Ann?", add_special_tokens=False)["input_ids"]
