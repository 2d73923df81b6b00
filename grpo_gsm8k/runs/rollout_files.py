"""Rollouts on disk: rollouts/step_<n>.jsonl, one object a rollout, written whole and read back exactly.

Each line says its place among how many, and ends in the sha256 of what comes before it in the line; so a file that was cut or
altered is known for it. The sampled mask is written as 0 and 1.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import digest, json_line, make_folder, read_plain, write_bytes
from grpo_gsm8k.types import Problem, Rollout, Score, Turn

FOLDER = "rollouts"
_SEAL_START = b', "sha256": "'
_SEAL_LENGTH = len(_SEAL_START) + 64 + len(b'"}')


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout, and what the update made of it; None where that was not written.

    `trained`: whether the rollout was part of the update. `learner_logprobs`: the learner's own log-prob of each sampled token,
    in order.
    """

    rollout: Rollout
    advantage: float | None = None
    trained: bool | None = None
    learner_logprobs: tuple[float, ...] | None = None


def rollout_digests(rollouts: Sequence[Rollout]) -> dict[str, str]:
    """Returns the ledger's stages of a step's rollouts, by stage.

    `data` and `reward` are the sha256 of JSON. `prompt` and `sampled_tokens` are that of bytes, little-endian: of each rollout
    the number of tokens and the tokens (int64), for `sampled_tokens` followed by their log-probs (float64).
    Raises: struct.error for tokens that are no such numbers.
    """
    prompts, sampled = hashlib.sha256(), hashlib.sha256()
    for rollout in rollouts:
        num_prompt, num = len(rollout.prompt_token_ids), len(rollout.token_ids)
        prompts.update(struct.pack(f"<{num_prompt + 1}q", num_prompt, *rollout.prompt_token_ids))
        sampled.update(struct.pack(f"<{num + 1}q{len(rollout.logprobs)}d", num, *rollout.token_ids, *rollout.logprobs))
    return {
        "data": digest([[rollout.problem.id, rollout.sample_index] for rollout in rollouts]),
        "prompt": prompts.hexdigest(),
        "sampled_tokens": sampled.hexdigest(),
        "reward": digest([[rollout.score.value, rollout.score.status] for rollout in rollouts]),
    }


def rollout_path(run_path: Path, step: int) -> Path:
    """Returns where a run keeps the rollouts of a step."""
    return run_path / FOLDER / f"step_{step}.jsonl"


def write_rollouts(
    run: RunDirectory,
    step: int,
    rollouts: Sequence[Rollout],
    *,
    advantages: Sequence[float] | None = None,
    trained: Sequence[bool] | None = None,
    learner_logprobs: Sequence[Sequence[float] | None] | None = None,
) -> Path:
    """Returns the file of a step's rollouts, which it writes whole; the same rollouts give the same bytes.

    The keyword arguments hold one entry a rollout.
    Raises: StorageError; ValueError for no rollouts, or lengths that do not match.
    """
    num = len(rollouts)
    if num == 0:
        raise ValueError(f"step {step} has no rollouts to write")
    columns = ([None] * num if column is None else column for column in (advantages, trained, learner_logprobs))
    rows = zip(rollouts, *columns, strict=True)
    lines = []
    for index, (rollout, advantage, used, logprobs) in enumerate(rows):
        if logprobs is not None and len(logprobs) != rollout.num_sampled:
            place = f"{rollout.problem.id}, sample {rollout.sample_index}"
            raise ValueError(f"{place}: {len(logprobs)} learner log-probs for {rollout.num_sampled} sampled tokens")
        row = {
            "index": index,
            "num_rollouts": num,
            **rollout_row(rollout),
            "advantage": advantage,
            "trained": used,
            "learner_logprobs": None if logprobs is None else list(logprobs),
        }
        lines.append(_seal(json_line(row)))
    path = rollout_path(run.path, step)
    make_folder(path.parent)
    write_bytes(path, b"".join(lines))
    return path


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Returns a rollout as JSON values."""
    problem = rollout.problem
    return {
        "problem_id": problem.id,
        "sample_index": rollout.sample_index,
        "seed": rollout.seed,
        "question": problem.question,
        "answer": problem.answer,
        "gold": problem.gold,
        "meta": dict(problem.meta),
        "stop_reason": rollout.stop_reason,
        "score": _fields(rollout.score),
        "metrics": dict(rollout.metrics),
        "turns": [_fields(turn) for turn in rollout.turns],
        "prompt_token_ids": list(rollout.prompt_token_ids),
        "token_ids": list(rollout.token_ids),
        "sampled": [int(sampled) for sampled in rollout.sampled],
        "logprobs": list(rollout.logprobs),
    }


def read_rollouts(path: Path) -> list[StoredRollout]:
    """Returns the rollouts that `write_rollouts` wrote (a problem's `meta` as JSON holds it).

    Raises: DataError when the file is missing, cut short or altered.
    """
    try:
        content = read_plain(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    lines = content.split(b"\n")
    if lines.pop() != b"" or not lines:
        raise DataError(f"{path}: empty, or its last line is torn; it was cut short after it was written")
    rows = [_open(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    for index, row in enumerate(rows):
        if row["index"] != index or row["num_rollouts"] != len(rows):
            place = f"rollout {row['index'] + 1} of {row['num_rollouts']}"
            raise DataError(f"{path}:{index + 1}: is {place} in a file of {len(rows)} lines; lines were taken out or put in")
    return [_to_stored(row) for row in rows]


def _seal(line: bytes) -> bytes:
    """Returns a JSON line with the digest of its own bytes as its last value."""
    body = line.removesuffix(b"}\n")
    return body + _SEAL_START + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _open(line: bytes, place: str) -> dict[str, Any]:
    body = line[:-_SEAL_LENGTH]
    if _seal(body + b"}\n") != line + b"\n":
        raise DataError(f"{place}: not the rollout that was written (its sha256 differs); the file was changed or damaged")
    row: dict[str, Any] = json.loads(body + b"}")
    return row


def _to_stored(row: Mapping[str, Any]) -> StoredRollout:
    logprobs = row["learner_logprobs"]
    rollout = Rollout(
        problem=Problem(row["problem_id"], row["question"], row["answer"], row["gold"], row["meta"]),
        sample_index=row["sample_index"],
        seed=row["seed"],
        prompt_token_ids=tuple(row["prompt_token_ids"]),
        token_ids=tuple(row["token_ids"]),
        sampled=tuple(bool(sampled) for sampled in row["sampled"]),
        logprobs=tuple(row["logprobs"]),
        turns=tuple(Turn(**turn) for turn in row["turns"]),
        stop_reason=row["stop_reason"],
        score=Score(**row["score"]),
        metrics=row["metrics"],
    )
    return StoredRollout(rollout, row["advantage"], row["trained"], None if logprobs is None else tuple(logprobs))


def _fields(record: Score | Turn) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}
