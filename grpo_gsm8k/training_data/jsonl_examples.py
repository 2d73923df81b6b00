"""A JSONL file of examples, line by line to token sequences, over-long ones dropped or refused, never cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.jsonl import stream_jsonl
from grpo_gsm8k.errors import ConfigError, DataError, unknown_name
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.training_data.examples import Example, ExampleReader

OVERLONG = ("drop", "refuse")
_AT_ONCE = 64  # lines tokenised in one call; more is no faster


@dataclass(frozen=True, slots=True)
class Limits:
    """The longest example that is trained on, in tokens (prompt, response and end tokens), and what is done with longer ones.

    `overlong`: "drop" leaves them out, on record; "refuse" raises. Raises: ConfigError for another word or less than 2 tokens.
    """

    max_total_tokens: int = 2048
    overlong: str = "drop"

    def __post_init__(self) -> None:
        if self.overlong not in OVERLONG:
            raise ConfigError(unknown_name("overlong", self.overlong, OVERLONG))
        if self.max_total_tokens < 2:
            raise ConfigError(f"max_total_tokens is {self.max_total_tokens}; at least 2 are needed, a context and a label")


@dataclass(frozen=True, slots=True)
class Kept:
    """An example of a line."""

    line: int
    sequence: TokenSequence


@dataclass(frozen=True, slots=True)
class Dropped:
    """An example that was left out, and why in one line; `place` is for people (it holds a path) and no part of the record."""

    line: int
    id: str
    num_tokens: int
    why: str
    place: str

    def record(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {"line": self.line, "id": self.id, "num_tokens": self.num_tokens, "why": self.why}


def judge(sequence: TokenSequence, line: int, place: str, limits: Limits) -> Kept | Dropped:
    """Returns the sequence kept or dropped. Raises: DataError when it is too long and that is to be refused."""
    num = len(sequence.token_ids)
    if num <= limits.max_total_tokens:
        return Kept(line, sequence)
    why = f"{num} tokens, more than max_total_tokens {limits.max_total_tokens}"
    if limits.overlong == "refuse":
        raise DataError(f"{place}: {why}; raise it, shorten the example, or use overlong drop")
    return Dropped(line, sequence.id, num, why, place)


def stream_examples(
    path: Path,
    tokenizer: Any,
    limits: Limits,
    special_tokens: str = "auto",
    *,
    skip: int = 0,
    known_ids: set[str] | None = None,
    sha256: str | None = None,
) -> Iterator[Kept | Dropped]:
    """Yields one item for each line after the first `skip`, in order.

    `known_ids` are those of the skipped lines; ids are unique in a file. `sha256`, where given, is what the file must have.
    Raises: DataError naming path and line.
    """
    reader = ExampleReader(tokenizer, special_tokens)
    hashed = hashlib.sha256()
    seen = set(known_ids or ())
    batch: list[Example] = []
    for number, row in stream_jsonl(path, hashed, skip=skip):
        example = reader.parse(row, number, str(path), path.stem)
        if example.id in seen:
            raise DataError(f"{example.place}: the id {example.id!r} was given to an earlier line; give each its own, or none")
        seen.add(example.id)
        batch.append(example)
        if len(batch) == _AT_ONCE:
            yield from _encoded(reader, batch, limits)
            batch = []
    yield from _encoded(reader, batch, limits)
    if sha256 is not None and hashed.hexdigest() != sha256:
        raise DataError(f"{path}: changed while it was read; pretokenize it again")


def _encoded(reader: ExampleReader, batch: list[Example], limits: Limits) -> Iterator[Kept | Dropped]:
    for example, sequence in zip(batch, reader.encode(batch), strict=True):
        yield judge(sequence, example.line, example.place, limits)
