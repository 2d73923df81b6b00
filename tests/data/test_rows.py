"""Rows of all kinds become problems with stable ids, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.data.rows import last_boxed, load_problems, read_rows, to_problems, to_row
from grpo_gsm8k.data.sources import DATASETS, Published
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.types import Problem


def _file(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so $\boxed{12}$.", "12"),
        (r"\boxed{1} or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"the set \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"thus $\boxed 3$ it is", "3"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\text{(A) } x\}}", r"\text{(A) } x\}"),
    ],
)
def test_the_last_box_is_the_gold(solution: str, gold: str) -> None:
    assert last_boxed(solution) == gold


@pytest.mark.parametrize("solution", ["no box", r"cut off \boxed{\frac{1}{2}"])
def test_a_solution_without_a_closed_box_has_no_gold(solution: str) -> None:
    with pytest.raises(ValueError, match="boxed"):
        last_boxed(solution)


def test_any_file_with_questions_and_answers_can_be_loaded(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        {"question": "a?", "answer": "1+1=2\n#### 1,002"},
        {"prompt": "b?", "gold": 7},
        {"problem": "c?", "solution": r"it is \boxed{x^2}"},
        {"id": "mine", "question": "d?", "answer": "-3.5", "meta": {"from": "me"}},
        {"question": "e?", "answer": 18},
    )
    problems = load_problems(path)
    assert [p.gold for p in problems] == ["1002", "7", "x^2", "-3.5", "18"]
    assert [p.question for p in problems] == ["a?", "b?", "c?", "d?", "e?"]
    assert problems[0].id.startswith("rows/00000-") and problems[3] == Problem("mine", "d?", "-3.5", "-3.5", {"from": "me"})


def test_a_problem_written_and_loaded_is_the_same(tmp_path: Path) -> None:
    problem = Problem("x/1", "q\u2028\U0001f600 é?", "a\n#### 2", "2", {"level": "Level 1"})
    assert load_problems(_file(tmp_path, to_row(problem))) == [problem]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "#### 1"}, ":2: no 'question' (the row has: answer)"),
        ({"question": "", "answer": "#### 1"}, ":2: 'question' is empty"),
        ({"question": 5, "answer": "#### 1"}, ":2: 'question' is 5; text is needed"),
        ({"question": [{"role": "user"}], "answer": "#### 1"}, ":2: 'question' is [{'role': 'user'}]; text is needed"),
        ({"question": "q"}, ":2: no 'answer' and no 'gold' (the row has: question)"),
        ({"question": "q", "answer": "about ten"}, ":2: the answer has no '####'"),
        ({"question": "q", "answer": "#### ten"}, ":2: no number after '####'"),
        ({"question": "q", "answer": True}, ":2: 'answer' is bool; text or a number is needed"),
        ({"question": "q", "answer": "#### 1", "meta": 3}, ":2: 'meta' is int; an object is needed"),
        ({"question": "q", "answer": "#### 1", "id": ""}, ":2: 'id' is ''; text is needed"),
        ({"question": "a\ud800b", "answer": "#### 1"}, r":2: 'question' has half a character, \ud800, at position 1"),
        ({"question": "q", "answer": "\udfff #### 1"}, r":2: 'answer' has half a character, \udfff, at position 0"),
        ({"question": "q", "gold": "1\udc00"}, r":2: 'gold' has half a character"),
        ({"question": "q", "answer": "#### 1", "id": "\ud800"}, r":2: 'id' has half a character"),
        ({"id": "first", "question": "q", "answer": "#### 1"}, ":2: the id 'first' was given to an earlier row"),
    ],
)
def test_a_bad_row_is_one_line_naming_its_place(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = _file(tmp_path, {"id": "first", "question": "p", "answer": "#### 1"}, row)
    with pytest.raises(DataError) as raised:
        load_problems(path)
    assert str(raised.value).startswith(f"{path}{message}") and "\n" not in str(raised.value)


def test_half_a_character_in_a_published_row_is_named_once(tmp_path: Path) -> None:
    for name, row, column in (
        ("gsm8k", {"question": "a\ud800b", "answer": "#### 1"}, "question"),
        ("math500", {"problem": "p", "solution": "s", "answer": "\ud800"}, "gold"),
    ):
        dataset = DATASETS[name]
        assert isinstance(dataset, Published)
        with pytest.raises(DataError) as raised:
            to_problems([("x.jsonl:7", row)], dataset.shape, "x")
        assert str(raised.value).startswith(f"x.jsonl:7: {column!r} has half a character, \\ud800")


def test_parquet_and_jsonl_of_the_same_rows_are_the_same_problems(
    gsm8k_dir: Path, tmp_path: Path, parquet_bytes: Callable[[Any], bytes]
) -> None:
    rows = [row for _, row in read_rows(gsm8k_dir / "train.jsonl")]
    (tmp_path / "train.parquet").write_bytes(parquet_bytes(rows))
    dataset = DATASETS["gsm8k"]
    assert isinstance(dataset, Published)
    from_jsonl, from_parquet = (
        to_problems(read_rows(path), dataset.shape, "gsm8k/train")
        for path in (gsm8k_dir / "train.jsonl", tmp_path / "train.parquet")
    )
    assert from_jsonl == from_parquet
    assert from_jsonl[0].id == "gsm8k/train/00000-73429d56" and from_jsonl[0].gold == "72"
    assert len({problem.id for problem in from_jsonl}) == 7473


def test_files_of_other_kinds_are_said(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"x\.parquet: not a parquet file"):
        read_rows(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"a data file is \.jsonl or \.parquet"):
        read_rows(tmp_path / "x.csv")


def test_a_missing_column_is_said_with_the_columns_there_are(tmp_path: Path, parquet_bytes: Callable[[Any], bytes]) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet_bytes([{"question": "q", "reply": "#### 1"}]))
    dataset = DATASETS["gsm8k"]
    assert isinstance(dataset, Published)
    with pytest.raises(DataError, match=r"x\.parquet: row 1: no 'answer' \(the row has: question, reply\)"):
        to_problems(read_rows(tmp_path / "x.parquet"), dataset.shape, "gsm8k/train")
