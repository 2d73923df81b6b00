"""Training data of any kind to token sequences: a JSONL file of pairs or chats, or a folder of pre-tokenised shards."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.jsonl import read_file
from grpo_gsm8k.data.prompt_tokens import tokenizer_identity
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.storage import digest, file_sha256
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.training_data.jsonl_examples import Dropped, Kept, Limits, judge, stream_examples
from grpo_gsm8k.training_data.shards import read_folder_manifest, read_shard, shard_sequences

log = logging.getLogger("grpo_gsm8k")


@dataclass(frozen=True)
class TrainingData:
    """Sequences in the order of the data, what was dropped, and the record of the files for a run's data.json."""

    sequences: list[TokenSequence]
    dropped: list[dict[str, Any]]
    record: dict[str, Any]


def load_training_data(
    path: Path, tokenizer: Any, limits: Limits | None = None, special_tokens: str = "auto"
) -> list[TokenSequence]:
    """Returns the sequences of `read_training_data`; what is dropped is logged, one warning an example."""
    return read_training_data(path, tokenizer, limits, special_tokens).sequences


def read_training_data(path: Path, tokenizer: Any, limits: Limits | None = None, special_tokens: str = "auto") -> TrainingData:
    """Returns the training data at `path`, a .jsonl file (see `examples`) or a folder of shards (see `shards`).

    `limits` apply to both. `special_tokens` is about the prompts of JSONL pairs. A folder must have been made with a tokenizer
    of the same digest and end token, and its shards must have the sha256 of the manifest.
    Raises: DataError naming path and line (or example), and what is wrong.
    """
    limits = limits or Limits()
    if path.is_dir():
        found = _read_folder(path, tokenizer, limits)
    elif not path.exists():
        raise DataError(f"{path}: no such file or folder")
    elif path.suffix == ".jsonl":
        found = _read_jsonl(path, tokenizer, limits, special_tokens)
    else:
        raise DataError(f"{path}: training data are a .jsonl file or a folder that data pretokenize made")
    for item in found.dropped:
        log.warning("%s: example %s dropped, %s", path, item["id"], item["why"])
    if not found.sequences:
        raise DataError(
            f"{path}: all {len(found.dropped)} examples are longer than max_total_tokens {limits.max_total_tokens}; raise it"
        )
    return found


def _read_jsonl(path: Path, tokenizer: Any, limits: Limits, special_tokens: str) -> TrainingData:
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    items = list(stream_examples(path, tokenizer, limits, special_tokens, sha256=sha256))
    return _collected(path, items, sha256, {"source": "local", "special_tokens": special_tokens})


def _read_folder(path: Path, tokenizer: Any, limits: Limits) -> TrainingData:
    manifest = read_folder_manifest(path)
    made, here = manifest["tokenizer"], tokenizer_identity(tokenizer, "")
    for key in ("sha256", "eos_token_id"):
        if made[key] != here[key]:
            raise DataError(
                f"{path}: made with another tokenizer, {made['name']} ({key} {str(made[key])[:12]}, this one has"
                f" {str(here[key])[:12]}); pretokenize the data with this model_id"
            )
    items: list[Kept | Dropped] = []
    hashed = hashlib.sha256()
    for file in manifest["files"].values():
        content = read_file(path / file["path"])
        if digest(content) != file["sha256"]:
            raise DataError(f"{path / file['path']}: changed since it was made (sha256 differs from the manifest)")
        hashed.update(file["sha256"].encode())
        for sequence in shard_sequences(read_shard(content, str(path / file["path"]))):
            items.append(judge(sequence, len(items) + 1, f"{path}: {sequence.id}", limits))
    source = {"source": "pretokenized", "made_of": manifest["source"], "dropped_before": manifest["num_dropped"]}
    return _collected(path, items, hashed.hexdigest(), source)


def _collected(path: Path, items: list[Kept | Dropped], sha256: str, source: dict[str, Any]) -> TrainingData:
    sequences = [item.sequence for item in items if isinstance(item, Kept)]
    dropped = [item.record() for item in items if isinstance(item, Dropped)]
    counts = {"rows": len(items), "num_trained": sum(sequence.num_trained for sequence in sequences), "dropped": dropped}
    return TrainingData(sequences, dropped, {"role": "training data", "path": str(path), "sha256": sha256, **counts, **source})
