"""Rollouts on disk come back exactly, and a file that was cut or altered is known for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.rollout_files import StoredRollout, read_rollouts, rollout_path, write_rollouts
from grpo_gsm8k.types import Problem, Rollout, Score, Turn

FIRST = Rollout(
    problem=Problem("tiny/0", 'Ünï\u2028 "code"\n', "1 + 1 = 2\n#### 2", "2", {"level": 3, "tags": ["a"]}),
    sample_index=1,
    seed=2**48 - 1,
    prompt_token_ids=(5, 6),
    token_ids=(1, 2, 9, 3, 0),
    sampled=(True, True, False, True, True),
    logprobs=(-0.1, -1e-17, 0.0, -float(2**0.5), -0.3),
    turns=(Turn(0, 2, "a\ufffd", "stop"), Turn(3, 5, "c", "eos")),
    stop_reason="answered",
    score=Score(0.25, None, "wrong", "half\nright"),
    metrics={"guesses": 2.0},
)
SECOND = replace(FIRST, sample_index=2, stop_reason="max_turns", score=Score(0.0, None, "unparsed"), metrics={})


def test_rollouts_come_back_exactly_and_the_same_rollouts_give_the_same_bytes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    path = write_rollouts(run, 3, [FIRST, SECOND])
    assert path == rollout_path(run.path, 3) == tmp_path / "rollouts/step_3.jsonl"
    assert read_rollouts(path) == [StoredRollout(FIRST), StoredRollout(SECOND)]
    content = path.read_bytes()
    assert write_rollouts(run, 3, [FIRST, SECOND]).read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["step_3.jsonl"]


def test_what_the_update_made_of_a_rollout_is_kept_with_it(tmp_path: Path) -> None:
    logprobs = [(-0.1, -0.2, -0.3, -0.4), None]
    path = write_rollouts(
        RunDirectory(tmp_path), 0, [FIRST, SECOND], advantages=[0.5, -0.5], trained=[True, False], learner_logprobs=logprobs
    )
    assert read_rollouts(path) == [StoredRollout(FIRST, 0.5, True, logprobs[0]), StoredRollout(SECOND, -0.5, False, None)]


def test_every_line_is_one_json_object_with_the_rollout_in_it(tmp_path: Path) -> None:
    lines = write_rollouts(RunDirectory(tmp_path), 0, [FIRST, SECOND]).read_bytes().split(b"\n")
    assert len(lines) == 3
    row = json.loads(lines[0])
    assert (row["problem_id"], row["gold"], row["index"], row["num_rollouts"]) == ("tiny/0", "2", 0, 2)
    assert row["sampled"] == [1, 1, 0, 1, 1]
    assert row["score"] == {"value": 0.25, "answer": None, "status": "wrong", "explanation": "half\nright"}
    assert row["turns"][1] == {"start": 3, "end": 5, "text": "c", "stop_reason": "eos"}


def test_any_byte_that_is_changed_or_missing_is_noticed(tmp_path: Path) -> None:
    path = write_rollouts(RunDirectory(tmp_path), 0, [FIRST, SECOND])
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(DataError) as caught:
                read_rollouts(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([0], r"step_0.jsonl:1: is rollout 1 of 2 in a file of 1 lines"),
        ([1], r"step_0.jsonl:1: is rollout 2 of 2 in a file of 1 lines"),
        ([1, 0], r"step_0.jsonl:1: is rollout 2 of 2 in a file of 2 lines"),
        ([0, 0], r"step_0.jsonl:2: is rollout 1 of 2 in a file of 2 lines"),
    ],
)
def test_lines_that_were_taken_out_or_moved_are_noticed(order: list[int], said: str, tmp_path: Path) -> None:
    path = write_rollouts(RunDirectory(tmp_path), 0, [FIRST, SECOND])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"".join(lines[index] + b"\n" for index in order))
    with pytest.raises(DataError, match=said):
        read_rollouts(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step_9.jsonl: cannot be read \(No such file or directory\)"):
        read_rollouts(tmp_path / "step_9.jsonl")


def test_lengths_that_do_not_match_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="zip"):
        write_rollouts(run, 0, [FIRST, SECOND], advantages=[1.0])
    with pytest.raises(ValueError, match="tiny/0, sample 1: 1 learner log-probs for 4 sampled tokens"):
        write_rollouts(run, 0, [FIRST], learner_logprobs=[(-0.1,)])
    with pytest.raises(ValueError, match="step 0 has no rollouts"):
        write_rollouts(run, 0, [])
    assert not (tmp_path / "rollouts").exists()
