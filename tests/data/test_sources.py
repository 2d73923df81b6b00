"""Local files are told to be a split by their names, and a path that cannot be read is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_gsm8k.data.prep import PrepRequest, prepare
from grpo_gsm8k.data.sources import DATASETS, Published, local_files
from grpo_gsm8k.errors import DataError


def dataset(name: str = "gsm8k") -> Published:
    found = DATASETS[name]
    assert isinstance(found, Published)
    return found


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test.jsonl", "test"),
        ("Test.jsonl", "test"),
        ("test-00000-of-00001.parquet", "test"),
        ("gsm8k_test.jsonl", "test"),
        ("train.jsonl", "train"),
        ("train-00000-of-00001.parquet", "train"),
        ("latest.jsonl", "train"),
        ("rows.jsonl", "train"),
        ("train_without_test.jsonl", "train"),
    ],
)
def test_a_single_file_is_the_split_that_its_name_says(tmp_path: Path, name: str, split: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (found,) = local_files(tmp_path / name, dataset()).items()
    assert (found[0], found[1][0].path) == (split, name)
    assert list(local_files(tmp_path / name, dataset("math500"))) == ["test"]


def test_nothing_is_held_out_of_a_test_file(local_gsm: Path, tmp_path: Path) -> None:
    done = prepare(PrepRequest(tmp_path / "out", source=local_gsm / "test.jsonl", eval_n=2))
    assert done.rows == {"test": 10}
    done = prepare(PrepRequest(tmp_path / "other", source=local_gsm / "train.jsonl", eval_n=2))
    assert done.rows == {"train": 38, "val": 2}


def test_a_path_that_cannot_be_followed_is_one_line(tmp_path: Path) -> None:
    loop, inside = tmp_path / "loop", tmp_path / "folder"
    loop.symlink_to(loop)
    inside.mkdir()
    (inside / "test.jsonl").symlink_to(inside / "test.jsonl")
    (inside / "train.jsonl").write_bytes(b"x")
    for source in (loop, inside, tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match=r"cannot be read \((Too many levels|File name too long)") as raised:
            local_files(source, dataset())
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="no such file or folder; --source is"):
        local_files(tmp_path / "none", dataset())
