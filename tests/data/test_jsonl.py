"""JSON Lines: bytes in, the same bytes out, and errors that name the line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.data.jsonl import encode_jsonl, load_jsonl, parse_jsonl, read_jsonl, write_jsonl
from grpo_gsm8k.errors import DataError, StorageError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(), _VALUES, max_size=4), min_size=1, max_size=4))
def test_every_value_comes_back_as_it_was_written(rows: list[dict[str, object]]) -> None:
    assert [row for _, row in parse_jsonl(encode_jsonl(rows), "x")] == rows


def test_lines_are_split_at_newline_only() -> None:
    text = '{"a": "x\u2028y\u2029z\x85w"}\n{"a": 2}\r\n{"a": 3}'
    assert list(parse_jsonl(text.encode(), "x")) == [(1, {"a": "x\u2028y\u2029z\x85w"}), (2, {"a": 2}), (3, {"a": 3})]


@pytest.mark.parametrize("split", ["train", "test"])
def test_writing_gsm8k_gives_the_very_bytes_that_were_published(gsm8k_dir: Path, tmp_path: Path, split: str) -> None:
    rows = load_jsonl(gsm8k_dir / f"{split}.jsonl")
    sha256 = write_jsonl(tmp_path / "copy.jsonl", rows)
    assert (tmp_path / "copy.jsonl").read_bytes() == (gsm8k_dir / f"{split}.jsonl").read_bytes()
    assert sha256 == hashlib.sha256((gsm8k_dir / f"{split}.jsonl").read_bytes()).hexdigest()


def test_the_gsm8k_row_with_line_separators_is_one_row(gsm8k_dir: Path) -> None:
    rows = load_jsonl(gsm8k_dir / "train.jsonl")
    assert len(rows) == 7473
    assert [index for index, row in enumerate(rows) if "\u2028" in row["question"]] == [2381]
    assert rows[2381]["question"].count("\u2028") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b'{"a": 1}\n\n{"a": 2}\n', ":2: the line is empty"),
        (b'{"a": 1}\n{"a": \n', ":2: not JSON (Expecting value at column 7)"),
        (b'{"a": 1}\n{"a": 2', ":2: not JSON"),
        (b'{"a": 1}\n[1]\n', ":2: a JSON object is needed, and this is list"),
        (b'{"a": "\xff"}\n', ":1: not UTF-8 (byte 8 of the line)"),
        (b'\xef\xbb\xbf{"a": 1}\n', ":1: begins with a byte-order mark; save it as plain UTF-8"),
        ('{"a": 1}\n'.encode("utf-16"), ":1: begins with a byte-order mark; save it as plain UTF-8"),
        (b'{"a": NaN}\n', ":1: not JSON that can be read (NaN is no JSON number)"),
        (b'{"a": ' + b"[" * 200_000 + b"}\n", ":1: not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ":1: not JSON that can be read"),
    ],
)
def test_a_bad_line_is_one_line_naming_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        list(read_jsonl(path))
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load_jsonl(tmp_path)


def test_a_path_that_cannot_be_followed_is_said(tmp_path: Path) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / "a\0b.jsonl", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="cannot be read") as raised:
            load_jsonl(path)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 2}, {"a": {1, 2}}])
    assert json.loads(path.read_bytes()) == {"a": 1}
    with pytest.raises(StorageError):
        write_jsonl(tmp_path / "no" / "rows.jsonl", [{"a": 1}])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
