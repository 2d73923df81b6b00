"""Pre-tokenised shards: what a `.pt` file holds, and the folder's manifest.

Shapes: N sequences, T positions (one less than the longest sequence of the shard). A shard is a dict of plain tensors and
primitives that `torch.load(path, weights_only=True)` reads:

- `input_ids`, `labels` (N, T) int64: the tokens, padded on the **left**, and the same shifted by one; wherever both are there,
  `labels[:, :-1]` is `input_ids[:, 1:]`.
- `response_mask` (N, T) bool, aligned to the labels: True where the label is trained.
- `lengths` (N,) int64: how many of a row's positions, counted from the right, are no padding. Attention comes from these
  alone (`attention_mask`), since a pad token may also be an end token that a sequence ends with.
- `pad_token_id` (int), `meta` (a dict: ids, counts, the lines it was made of, what was dropped, tokenizer, sha256s).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_gsm8k.data.folders import read_manifest
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.tokenize import TokenSequence

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
DATASET = "pretokenized"
TENSORS = ("input_ids", "labels", "response_mask", "lengths")


def shard_name(index: int) -> str:
    """Returns the file name of a shard."""
    return f"shard-{index:05d}.pt"


def make_shard(sequences: Sequence[TokenSequence], pad_token_id: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shard of sequences; `meta` gets `ids`, counts and the sha256 of the tensors. Raises: DataError for none."""
    import torch

    if not sequences:
        raise DataError("a shard needs at least one sequence")
    num_tokens = max(len(sequence.token_ids) for sequence in sequences)
    ids = torch.full((len(sequences), num_tokens), pad_token_id)
    trained = torch.zeros((len(sequences), num_tokens), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, -len(sequence.token_ids) :] = torch.tensor(sequence.token_ids)
        trained[row, -len(sequence.token_ids) :] = torch.tensor(sequence.trained)
    tensors = {
        "input_ids": ids[:, :-1].contiguous(),
        "labels": ids[:, 1:].contiguous(),
        "response_mask": trained[:, 1:].contiguous(),
        "lengths": torch.tensor([len(sequence.token_ids) - 1 for sequence in sequences]),
    }
    counts = {
        "ids": [sequence.id for sequence in sequences],
        "num_examples": len(sequences),
        "num_tokens": sum(len(sequence.token_ids) for sequence in sequences),
        "num_trained": sum(sequence.num_trained for sequence in sequences),
        "tensors_sha256": _tensors_sha256(tensors),
    }
    return {**tensors, "pad_token_id": pad_token_id, "meta": {**meta, **counts}}


def attention_mask(lengths: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Returns the mask (N, T), bool: True at the last `lengths[n]` positions of row n, the padding left of them False."""
    import torch

    return torch.arange(num_positions) >= num_positions - lengths[:, None]


def shard_bytes(shard: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a shard's file; the same shard gives the same bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(shard), buffer)
    return buffer.getvalue()


def read_shard(content: bytes, name: str) -> dict[str, Any]:
    """Returns the shard in a file's bytes. Raises: DataError when they are no shard of ours, or its tensors were changed."""
    import pickle

    import torch

    try:
        shard = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise DataError(f"{name}: not a shard that can be read ({' '.join(str(error).split())[:120]})") from None
    whole = isinstance(shard, dict) and {*TENSORS, "pad_token_id", "meta"} <= shard.keys() and isinstance(shard["meta"], dict)
    if not whole or not all(isinstance(shard[name], torch.Tensor) for name in TENSORS):
        raise DataError(f"{name}: not a shard of pre-tokenised data; it needs {', '.join((*TENSORS, 'pad_token_id', 'meta'))}")
    if shard["meta"].get("tensors_sha256") != _tensors_sha256(shard):
        raise DataError(f"{name}: its tensors are not those it was written with; pretokenize the data again")
    return dict(shard)


def shard_sequences(shard: Mapping[str, Any]) -> list[TokenSequence]:
    """Returns the sequences of a shard, without their padding."""
    found = []
    rows = zip(*(shard[name].tolist() for name in TENSORS), shard["meta"]["ids"], strict=True)
    for input_ids, labels, response_mask, length, identity in rows:
        ids = (*input_ids[len(input_ids) - length :], labels[-1])
        found.append(TokenSequence(identity, ids, (False, *response_mask[len(input_ids) - length :])))
    return found


def read_folder_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder of shards. Raises: DataError when it is not whole, or holds something else."""
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        half = next(folder.glob("shard-*.pt"), None)
        why = "was never finished; run data pretokenize again to go on" if half else "holds no pre-tokenised data"
        raise DataError(f"{folder}: {why} (no {MANIFEST})")
    if manifest["dataset"] != DATASET:
        raise DataError(f"{folder}: holds the data set {manifest['dataset']!r}, not pre-tokenised training data")
    return manifest


def _tensors_sha256(tensors: Mapping[str, Any]) -> str:
    hashed = hashlib.sha256()
    for name in TENSORS:
        values = tensors[name].contiguous()
        hashed.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        hashed.update(values.numpy().tobytes())
    return hashed.hexdigest()


def differences(asked: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Returns "key: asked …, there …" for each value that differs; nested keys are dotted."""
    found = []
    for key, value in asked.items():
        other = there.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            found += [f"{key}.{line}" for line in differences(value, other)]
        elif digest(value) != digest(other):
            found.append(f"{key}: asked {_short(value)}, there {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
