"""Rendered eval sets: written as `eval` would prompt, and refused where anything does not fit."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.data.prompt_tokens import prompt_token_ids, tokenizer_identity
from grpo_gsm8k.data.rendered_eval import (
    load_rendered_eval_set,
    meta_path,
    number_of_gold,
    rendered_meta,
    write_rendered_eval_set,
)
from grpo_gsm8k.data.rows import load_problems
from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.errors import ConfigError, DataError
from grpo_gsm8k.prompts import render_batch
from grpo_gsm8k.types import Problem

PROBLEMS = [
    Problem("a/1", "Ada has 3 pens and buys 4.", "3 + 4 = 7.\n#### 7", "7", {"kind": "add"}),
    Problem("a/2", "How much is 1,234.5\u2028?", "#### 1,234.5", "1,234.5"),
    Problem("a/3", "What is x?", "\\boxed{x^2}", "x^2"),
]
HOW = {"template": {"name": "question", "kind": "chat", "sha256": "0"}, "stop": []}


@pytest.fixture
def tokenizer() -> Any:
    return load_tokenizer("tiny")


def written(path: Path, tokenizer: Any) -> Path:
    prompts = render_batch(tokenizer, PROBLEMS, template="question")
    write_rendered_eval_set(path, list(zip(PROBLEMS, prompts, strict=True)), tokenizer, "tiny", HOW)
    return path


def rows_of(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_is_written_is_read_back_problem_by_problem_and_token_by_token(tmp_path: Path, tokenizer: Any) -> None:
    path = written(tmp_path / "sets" / "val.jsonl", tokenizer)
    prompts = render_batch(tokenizer, PROBLEMS, template="question")
    for problem, prompt, (read_problem, read_prompt) in zip(
        PROBLEMS, prompts, load_rendered_eval_set(path, tokenizer), strict=True
    ):
        assert read_problem == problem
        assert (read_prompt.problem_id, read_prompt.token_ids, read_prompt.text) == (problem.id, prompt.token_ids, prompt.text)
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert [line["gold_num"] for line in lines] == [7, 1234.5, None]
    assert (rendered_meta(path) or {})["template"]["name"] == "question"


def test_writing_it_again_changes_nothing_and_what_no_render_wrote_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    path = written(tmp_path / "val.jsonl", tokenizer)
    before = path.stat().st_mtime_ns
    items = load_rendered_eval_set(path, tokenizer)
    assert write_rendered_eval_set(path, items, tokenizer, "tiny", HOW)[1] is False
    assert path.stat().st_mtime_ns == before
    assert write_rendered_eval_set(path, items[:1], tokenizer, "tiny", HOW)[1] is True
    assert len(load_rendered_eval_set(path, tokenizer)) == 1
    meta_path(path).unlink()
    with pytest.raises(DataError, match="no render put it there"):
        write_rendered_eval_set(path, items, tokenizer, "tiny", HOW)


def test_a_set_of_another_tokenizer_or_chat_template_or_changed_since_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = written(tmp_path / "val.jsonl", tokenizer)
    other = load_tokenizer("tiny")
    other.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    with pytest.raises(DataError, match=r"rendered with another tokenizer \(tiny"):
        load_rendered_eval_set(path, other)
    other = load_tokenizer("tiny")
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match="another chat template"):
        load_rendered_eval_set(path, other)
    path.write_bytes(path.read_bytes().replace(b'"gold": "7"', b'"gold": "8"'))
    with pytest.raises(DataError, match="changed since it was rendered"):
        load_rendered_eval_set(path, tokenizer)
    meta_path(path).write_text("{}")
    with pytest.raises(DataError, match="not a record of format 1"):
        load_rendered_eval_set(path, tokenizer)


def test_a_set_from_elsewhere_is_taken_with_prompt_gold_and_gold_num_alone(tmp_path: Path, tokenizer: Any) -> None:
    (prompt,) = render_batch(tokenizer, ["How many?"], template="question")
    path = rows_of(
        tmp_path / "mine.jsonl",
        {"prompt": prompt.text, "gold": "It is 7.\n#### 7", "gold_num": 7},
        {"prompt": "Plain text", "gold": "$1,080", "gold_num": "1080.0"},
        {"prompt": "More", "gold": "3/4", "gold_num": 0.75},
        {"prompt": "And", "gold": "1/3", "gold_num": 1 / 3, "id": 5},
    )
    read = load_rendered_eval_set(path, tokenizer)
    assert [problem.gold for problem, _ in read] == ["7", "$1,080", "3/4", "1/3"]
    assert read[0][1].token_ids == prompt.token_ids
    assert read[0][0].id.startswith("mine/00000-") and read[3][0].id == "5"


GOOD = {"prompt": "How many?", "gold": "7", "gold_num": 7}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        *(({key: value for key, value in GOOD.items() if key != name}, f"no '{name}'") for name in GOOD),
        (GOOD | {"prompt": " "}, "'prompt' is ' '; text is needed"),
        (GOOD | {"gold": 7}, "'gold' is 7; text is needed"),
        (GOOD | {"gold_num": 8}, "'gold_num' is 8, but the number of gold '7' is 7"),
        (GOOD | {"gold_num": None}, "'gold_num' is None, but the number of gold '7' is 7"),
        (GOOD | {"gold_num": True, "gold": "1"}, "'gold_num' is True"),
        (GOOD | {"gold": "x^2"}, "'gold_num' is 7, but the number of gold 'x^2' is null"),
        (GOOD | {"gold": "so #### nothing"}, "no number after '####'"),
        (GOOD | {"prompt": "<|start_header_id|>user"}, "holds '<|start_header_id|>', which is no token of this tokenizer"),
        (GOOD | {"prompt": "<s>[INST] hello"}, "holds '<s>', which is no token of this tokenizer"),
        (GOOD | {"prompt_token_ids": [5, 6]}, "'prompt_token_ids' are not what this tokenizer makes"),
        (GOOD | {"prompt_token_ids": "none"}, "'prompt_token_ids' are not"),
        (GOOD | {"id": "first"}, "the id 'first' was given to an earlier line"),
        ("", "the line is empty"),
        ("[1]", "a JSON object is needed"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_by_path_and_line(row: Any, says: str, tmp_path: Path, tokenizer: Any) -> None:
    path = rows_of(tmp_path / "mine.jsonl", GOOD | {"id": "first"}, row, GOOD)
    with pytest.raises(DataError) as caught:
        load_rendered_eval_set(path, tokenizer)
    assert str(caught.value).startswith(f"{path}:2: ") and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_the_tokenizer_cannot_spell_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "How": 1, "many": 2, "?": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    poor = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    path = rows_of(tmp_path / "mine.jsonl", GOOD | {"prompt": "How many pens?"})
    with pytest.raises(DataError, match="1: the prompt does not read back from this tokenizer's tokens"):
        load_rendered_eval_set(path, poor)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such file"), (b"", "the file is empty"), ("folder", "cannot be read")]
)
def test_a_set_that_is_missing_empty_or_unreadable_is_refused(
    content: bytes | str | None, says: str, tmp_path: Path, tokenizer: Any
) -> None:
    path = tmp_path / "val.jsonl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=says) as caught:
        load_rendered_eval_set(path, tokenizer)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("gold", "number"),
    [("7", 7), ("1,080", 1080), ("18.50", 18.5), ("-3", -3), ("3/4", 0.75), ("1/3", "1/3"), ("20%", 20), ("x", None)],
)
def test_a_golds_number_is_written_exactly(gold: str, number: Any) -> None:
    assert number_of_gold(gold) == number and type(number_of_gold(gold)) is type(number)
    assert number_of_gold("9" * 300) == int("9" * 300)
    assert Fraction(str(number_of_gold("0.1"))) == Fraction(1, 10)


def test_a_tokenizer_is_told_by_what_it_does_not_by_how_it_pads(tokenizer: Any) -> None:
    before = tokenizer_identity(tokenizer, "x")
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_identity(tokenizer, "x") == before
    tokenizer.add_tokens(["pens"])
    assert tokenizer_identity(tokenizer, "x")["sha256"] != before["sha256"]


def test_special_tokens_are_asked_for_by_known_names_only(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="unknown special_tokens 'ad'; did you mean 'add'"):
        prompt_token_ids(tokenizer, ["a"], "ad")


def test_real_golds_of_gsm8k_all_have_their_number(gsm8k_dir: Path) -> None:
    problems = load_problems(next(gsm8k_dir.glob("test*.jsonl")))
    assert len(problems) == 1319
    assert all(isinstance(number_of_gold(problem.gold), int) for problem in problems)
