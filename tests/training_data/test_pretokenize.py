"""Pretokenising: streamed, resumed after kill -9 to the same bytes, and never over something else."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_gsm8k.errors import DataError, StorageError
from grpo_gsm8k.training_data.jsonl_examples import Limits
from grpo_gsm8k.training_data.pretokenize import PretokenizeRequest, pretokenize
from grpo_gsm8k.training_data.reading import load_training_data, read_training_data
from grpo_gsm8k.training_data.shards import attention_mask


def pairs(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {n} + 1?", "response": f"{n + 1}" + " again" * (n % 7)} for n in range(num)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".pretokenize.lock"}


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., PretokenizeRequest]:
    def make(infile: Path, out: str = "out", **options: Any) -> PretokenizeRequest:
        return PretokenizeRequest(infile, tmp_path / out, "tiny", **options)

    return make


Make = Callable[..., PretokenizeRequest]


def test_shards_hold_what_the_lines_say_and_over_long_ones_are_on_record(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any
) -> None:
    infile = jsonl(*pairs(20))
    done = pretokenize(request_of(infile, shard_size=4, limits=Limits(max_total_tokens=22)), tokenizer)
    read = load_training_data(infile, tokenizer, Limits(max_total_tokens=22))
    assert done.changed and len(read) < 20
    assert load_training_data(done.out_dir, tokenizer) == read
    manifest = done.manifest
    assert manifest["num_lines"] == 20 and manifest["num_examples"] == len(read)
    assert [item["line"] for item in manifest["dropped"]] == [
        n + 1 for n in range(20) if f"data/{n:05d}" not in {sequence.id[:10] for sequence in read}
    ]
    assert "tokens, more than max_total_tokens 22" in manifest["dropped"][0]["why"]
    shards = [torch.load(done.out_dir / name, weights_only=True) for name in manifest["files"]]
    assert [len(shard["input_ids"]) for shard in shards] == [4, len(read) - 4]
    lines = [(shard["meta"]["first_line"], shard["meta"]["last_line"]) for shard in shards]
    assert lines[0][0] == 1 and all(left[1] + 1 == right[0] for left, right in pairwise(lines))
    mask = attention_mask(shards[0]["lengths"], shards[0]["input_ids"].shape[1])
    first = [*shards[0]["input_ids"][0][mask[0]].tolist(), shards[0]["labels"][0, -1].item()]
    assert tuple(first) == read[0].token_ids
    assert shards[0]["meta"]["tokenizer"]["name"] == "tiny" and shards[0]["pad_token_id"] == tokenizer.pad_token_id


def test_doing_it_again_changes_nothing_and_a_changed_shard_is_named(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any
) -> None:
    asked = request_of(jsonl(*pairs(10)), shard_size=4)
    folder = pretokenize(asked, tokenizer).out_dir
    before = contents(folder)
    assert not pretokenize(asked, tokenizer).changed
    assert contents(folder) == before and set(before) == {"manifest.json", *(f"shard-0000{n}.pt" for n in range(3))}
    (folder / "shard-00001.pt").write_bytes(before["shard-00002.pt"])
    with pytest.raises(DataError, match=r"shard-00001.pt: changed since it was prepared"):
        pretokenize(asked, tokenizer)
    with pytest.raises(DataError, match=r"shard-00001.pt: changed since it was made"):
        load_training_data(folder, tokenizer)


@pytest.mark.parametrize("finished", [True, False])
def test_something_else_into_the_same_folder_is_refused_with_what_differs(
    finished: bool, jsonl: Callable[..., Path], request_of: Make, tokenizer: Any, bos_tokenizer: Any
) -> None:
    asked = request_of(jsonl(*pairs(10)), shard_size=4)
    pretokenize(asked, tokenizer)
    if not finished:
        manifest = json.loads((asked.out_dir / "manifest.json").read_bytes())
        keys = manifest.keys() - {"files", "dropped", "pad_token_id"}
        (asked.out_dir / "request.json").write_text(json.dumps({k: v for k, v in manifest.items() if not k.startswith("num_")}))
        assert keys
        (asked.out_dir / "manifest.json").unlink()
    before = contents(asked.out_dir)
    other = jsonl(*pairs(9), name="other.jsonl")
    for wrong, which, says in (
        (replace(asked, infile=other), tokenizer, "source.name: asked other.jsonl, there data.jsonl; source.sha256"),
        (replace(asked, shard_size=5), tokenizer, "shard_size: asked 5, there 4"),
        (replace(asked, limits=Limits(30, "refuse")), tokenizer, "max_total_tokens: asked 30, there 2048; overlong"),
        (asked, bos_tokenizer, "tokenizer.sha256: asked"),
    ):
        with pytest.raises(DataError, match="made of something else") as caught:
            pretokenize(wrong, which)
        assert says in str(caught.value)
        assert contents(asked.out_dir) == before


def test_a_folder_with_shards_of_somebody_else_is_left_alone(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any
) -> None:
    asked = request_of(jsonl(*pairs(3)))
    asked.out_dir.mkdir()
    (asked.out_dir / "shard-00000.pt").write_bytes(b"mine")
    with pytest.raises(DataError, match="so no pretokenize put it there"):
        pretokenize(asked, tokenizer)
    assert (asked.out_dir / "shard-00000.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("rows", "limits", "says"),
    [
        ([*pairs(9), {"prompt": "p", "response": ""}], Limits(), "data.jsonl:10: 'response' is empty"),
        ([*pairs(9), "not json"], Limits(), "data.jsonl:10: not JSON"),
        (pairs(9), Limits(25, "refuse"), "data.jsonl:4: 27 tokens, more than max_total_tokens 25; raise it"),
        (pairs(9), Limits(2), "all 9 examples are longer than max_total_tokens 2"),
        ([{**row, "id": "same"} for row in pairs(3)], Limits(), "data.jsonl:2: the id 'same' was given to an earlier line"),
    ],
)
def test_input_that_is_wrong_is_refused_by_its_line_and_leaves_nothing(
    rows: list[Any], limits: Limits, says: str, jsonl: Callable[..., Path], request_of: Make, tokenizer: Any
) -> None:
    asked = request_of(jsonl(*rows), shard_size=2, limits=limits)
    with pytest.raises(DataError, match="jsonl") as caught:
        pretokenize(asked, tokenizer)
    assert says in str(caught.value)
    assert not asked.out_dir.exists()


def test_a_missing_an_empty_and_a_changing_file_are_refused(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such file"):
        pretokenize(request_of(tmp_path / "absent.jsonl"), tokenizer)
    with pytest.raises(DataError, match="the file is empty"):
        pretokenize(request_of(jsonl(name="empty.jsonl")), tokenizer)
    with pytest.raises(DataError, match="cannot be read"):
        pretokenize(request_of(tmp_path), tokenizer)


def test_a_second_writer_is_told_to_wait(jsonl: Callable[..., Path], request_of: Make, tokenizer: Any) -> None:
    import fcntl

    asked = request_of(jsonl(*pairs(3)))
    asked.out_dir.mkdir()
    with (asked.out_dir / ".pretokenize.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another pretokenize is at work here"):
            pretokenize(asked, tokenizer)


def killed_at_rename(number: int, asked: PretokenizeRequest, tokenizer: Any) -> bool:
    """Runs pretokenize in a child that is killed just before its nth rename; returns whether it was."""
    child = os.fork()
    if child == 0:
        left = [number]
        rename = Path.replace

        def replace_or_die(self: Path, target: Path) -> Path:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.replace = replace_or_die  # type: ignore[method-assign,assignment]
        pretokenize(asked, tokenizer)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_before_any_of_its_writes_it_goes_on_to_the_same_bytes(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any
) -> None:
    rows = pairs(30)
    infile = jsonl(*rows)
    options = {"shard_size": 7, "limits": Limits(24)}
    whole = contents(pretokenize(request_of(infile, "whole", **options), tokenizer).out_dir)
    num_writes = len(whole) + 1  # request.json, the shards, the manifest
    for number in range(num_writes):
        asked = request_of(infile, f"killed-{number}", **options)
        assert killed_at_rename(number, asked, tokenizer)
        if number > 1:
            with pytest.raises(DataError, match="was never finished; run data pretokenize again"):
                load_training_data(asked.out_dir, tokenizer)
        assert pretokenize(asked, tokenizer).changed
        assert contents(asked.out_dir) == whole
    assert not killed_at_rename(num_writes, request_of(infile, "not-killed", **options), tokenizer)


def test_killed_in_the_middle_of_its_work_it_goes_on_without_doing_it_again(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any
) -> None:
    infile = jsonl(*pairs(4000))
    whole = contents(pretokenize(request_of(infile, "whole", shard_size=50), tokenizer).out_dir)
    asked = request_of(infile, "killed", shard_size=50)
    child = os.fork()
    if child == 0:
        pretokenize(asked, tokenizer)
        os._exit(0)
    deadline = time.monotonic() + 120
    while not (asked.out_dir / "shard-00009.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    made = {name for name in contents(asked.out_dir) if name.startswith("shard")}
    assert 10 <= len(made) < len(whole) - 1
    times = {name: (asked.out_dir / name).stat().st_mtime_ns for name in made}
    pretokenize(asked, tokenizer)
    assert contents(asked.out_dir) == whole
    assert {name: (asked.out_dir / name).stat().st_mtime_ns for name in made} == times


def test_shards_of_another_tokenizer_are_refused(
    jsonl: Callable[..., Path], request_of: Make, tokenizer: Any, bos_tokenizer: Any
) -> None:
    folder = pretokenize(request_of(jsonl(*pairs(3))), tokenizer).out_dir
    with pytest.raises(
        DataError, match=r"made with another tokenizer, tiny \(sha256 .*pretokenize the data with this model_id"
    ):
        load_training_data(folder, bos_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token  # neither this nor another chat template makes other tokens
    tokenizer.chat_template = "other"
    assert len(load_training_data(folder, tokenizer)) == 3
    tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(DataError, match="eos_token_id 2, this one has 0"):
        load_training_data(folder, tokenizer)


def test_limits_hold_for_shards_too(jsonl: Callable[..., Path], request_of: Make, tokenizer: Any) -> None:
    infile = jsonl(*pairs(10))
    folder = pretokenize(request_of(infile), tokenizer).out_dir
    dropped = read_training_data(folder, tokenizer, Limits(24))
    assert dropped.sequences == load_training_data(infile, tokenizer, Limits(24))
    assert [item["id"] for item in dropped.dropped] == [item["id"] for item in dropped.record["dropped"]] != []
    with pytest.raises(DataError, match=r"out: data/0000\d-.{8}: \d+ tokens, more than max_total_tokens 24"):
        load_training_data(folder, tokenizer, Limits(24, "refuse"))


def test_a_path_that_holds_no_training_data_is_refused(jsonl: Callable[..., Path], tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, says in (
        ("absent.jsonl", "no such file or folder"),
        ("notes.txt", "training data are a .jsonl file or a folder"),
        ("folder", "holds no pre-tokenised data"),
    ):
        with pytest.raises(DataError, match=says):
            load_training_data(tmp_path / name, tokenizer)


def test_a_file_is_read_line_by_line_at_line_feeds_only(jsonl: Callable[..., Path], tokenizer: Any) -> None:
    row = {"prompt": "line\u2028separator", "response": "a\u2029b"}
    path = jsonl(json.dumps(row, ensure_ascii=False), name="odd.jsonl")
    (sequence,) = load_training_data(path, tokenizer)
    assert tokenizer.decode(list(sequence.token_ids)) == "line\u2028separatora\u2029b<|im_end|>"
