"""JSONL to a folder of shards, one shard in memory at a time; killed at any moment, it goes on where it was.

`request.json` (what is asked) is written first, each shard whole (temporary name, fsync, rename), the manifest last. A shard
says which lines it was made of, so that a later call goes on after the last whole one; the result is the same, byte for byte.
Asking for anything else in the same folder is refused. Input that is wrong leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.prepared import verify
from grpo_gsm8k.data.prompt_tokens import tokenizer_identity
from grpo_gsm8k.errors import DataError, InputError, StorageError
from grpo_gsm8k.runs.storage import (
    digest,
    file_sha256,
    make_folder,
    parse_json,
    read_plain,
    storage_error,
    write_bytes,
    write_json,
)
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.training_data.jsonl_examples import Dropped, Limits, stream_examples
from grpo_gsm8k.training_data.shards import (
    DATASET,
    MANIFEST,
    differences,
    make_shard,
    read_folder_manifest,
    read_shard,
    shard_bytes,
    shard_name,
)

log = logging.getLogger("grpo_gsm8k")

REQUEST = "request.json"
LOCK = ".pretokenize.lock"
FORMAT = 1


@dataclass(frozen=True)
class PretokenizeRequest:
    """What is asked of `pretokenize`. `tokenizer_name` is for people; `shard_size` counts examples."""

    infile: Path
    out_dir: Path
    tokenizer_name: str
    limits: Limits = field(default_factory=Limits)
    special_tokens: str = "auto"
    shard_size: int = 1024


@dataclass(frozen=True)
class Pretokenized:
    """A folder of shards: its manifest, and whether this call made it (False: it was there, and was verified)."""

    out_dir: Path
    manifest: dict[str, Any]
    changed: bool


def pretokenize(request: PretokenizeRequest, tokenizer: Any) -> Pretokenized:
    """Returns the folder of shards made of a JSONL file: made now, finished now, or there already and verified.

    Raises: DataError for a line that is wrong, a folder that holds something else (saying what differs) or was changed, and a
    file that changes while it is read; StorageError.
    """
    asked = _asked(request, tokenizer)
    fresh = not request.out_dir.exists()
    make_folder(request.out_dir)
    with _locked(request.out_dir):
        for torn in _torn(request.out_dir):
            torn.unlink()
        if (request.out_dir / MANIFEST).exists():
            manifest = read_folder_manifest(request.out_dir)
            _refuse_differences(request.out_dir, asked, manifest)
            changed = verify(request.out_dir)
            if changed:
                raise DataError(f"{changed[0]}; remove {request.out_dir} to pretokenize it again")
            (request.out_dir / REQUEST).unlink(missing_ok=True)  # its writer was killed between the two
            return Pretokenized(request.out_dir, manifest, changed=False)
        asked = _take_up(request.out_dir, asked)
        try:
            manifest = _Writer(request, tokenizer, asked).write()
        except InputError:
            _clear(request.out_dir, fresh)
            raise
        return Pretokenized(request.out_dir, manifest, changed=True)


def _asked(request: PretokenizeRequest, tokenizer: Any) -> dict[str, Any]:
    """Returns what the folder's content follows from; all of it must be the same for the same folder."""
    try:
        source = {"kind": "local", "name": request.infile.name, "sha256": file_sha256(request.infile)}
    except FileNotFoundError:
        raise DataError(f"{request.infile}: no such file") from None
    except OSError as error:
        raise DataError(f"{request.infile}: cannot be read ({error.strerror or error})") from None
    return {
        "format": FORMAT,
        "dataset": DATASET,
        "source": source,
        "tokenizer": tokenizer_identity(tokenizer, request.tokenizer_name),
        "max_total_tokens": request.limits.max_total_tokens,
        "overlong": request.limits.overlong,
        "special_tokens": request.special_tokens,
        "shard_size": request.shard_size,
    }


def _refuse_differences(folder: Path, asked: dict[str, Any], there: dict[str, Any]) -> None:
    tokenizer = {
        key: value for key, value in asked["tokenizer"].items() if key != "name"
    }  # the same one from elsewhere will do
    differ = differences({**asked, "tokenizer": tokenizer}, there)
    if differ:
        raise DataError(f"{folder}: was made of something else ({'; '.join(differ)}); give another out_dir or remove this one")


def _take_up(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the request written now, or the one there, which must ask the same."""
    path = folder / REQUEST
    if path.exists():
        try:
            there = parse_json(read_plain(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); remove {folder} to pretokenize it again") from None
        _refuse_differences(folder, asked, there)
        return dict(there)
    foreign = next(folder.glob("shard-*.pt"), None)
    if foreign is not None:
        raise DataError(
            f"{folder}: holds {foreign.name} but no {REQUEST}, so no pretokenize put it there; give another out_dir"
        )
    write_json(path, asked)
    return asked


def _torn(folder: Path) -> list[Path]:
    """Returns what killed writers were in the middle of: the temporary names of `write_bytes`."""
    return [path for name in ("shard-*.pt", REQUEST, MANIFEST) for path in folder.glob(f".{name}.*")]


def _clear(folder: Path, fresh: bool) -> None:
    """Removes what pretokenize made in a folder whose input turned out to be wrong."""
    for path in [*folder.glob("shard-*.pt"), *_torn(folder), folder / REQUEST, folder / LOCK]:
        path.unlink(missing_ok=True)
    if fresh:
        with contextlib.suppress(OSError):  # it holds something of somebody else's
            folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second writer; the kernel lets go when the holder dies."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(folder, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{folder}: another pretokenize is at work here; wait for it or give another out_dir") from None
        yield
    finally:
        os.close(descriptor)


class _Writer:
    """Writes the shards that are not there yet, then the manifest."""

    def __init__(self, request: PretokenizeRequest, tokenizer: Any, asked: dict[str, Any]) -> None:
        self._request, self._tokenizer, self._asked = request, tokenizer, asked
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None:
            raise DataError(f"the tokenizer {request.tokenizer_name} has neither a pad token nor an end token; set one")
        self._pad = int(pad)
        self._files: dict[str, dict[str, Any]] = {}
        self._dropped: list[dict[str, Any]] = []
        self._last_line = 0
        self._ids: set[str] = set()

    def write(self) -> dict[str, Any]:
        self._read_finished()
        pending: list[TokenSequence] = []
        dropped: list[Dropped] = []
        line = self._last_line
        for item in stream_examples(
            self._request.infile,
            self._tokenizer,
            self._request.limits,
            self._request.special_tokens,
            skip=self._last_line,
            known_ids=self._ids,
            sha256=self._asked["source"]["sha256"],
        ):
            line = item.line
            if isinstance(item, Dropped):
                dropped.append(item)
                log.warning("%s: dropped, %s", item.place, item.why)
                continue
            pending.append(item.sequence)
            if len(pending) == self._request.shard_size:
                self._put(pending, dropped, line)
                pending, dropped = [], []
        if pending:
            self._put(pending, dropped, line)
        else:
            self._dropped += [item.record() for item in dropped]
        return self._finish(max(line, self._last_line))

    def _read_finished(self) -> None:
        """Takes in the whole shards of an earlier call, one at a time."""
        while (path := self._request.out_dir / shard_name(len(self._files))).exists():
            content = path.read_bytes()
            meta = read_shard(content, str(path))["meta"]
            if meta["request_sha256"] != digest(self._asked):
                raise DataError(f"{path}: is of another request; remove {self._request.out_dir} to pretokenize it again")
            self._take(path.name, content, meta)
            log.info("%s is there already (lines %d to %d)", path.name, meta["first_line"], meta["last_line"])

    def _put(self, sequences: list[TokenSequence], dropped: list[Dropped], line: int) -> None:
        path = self._request.out_dir / shard_name(len(self._files))
        meta = {
            "format": FORMAT,
            "request_sha256": digest(self._asked),
            "tokenizer": self._asked["tokenizer"],
            "source": self._asked["source"],
            "max_total_tokens": self._asked["max_total_tokens"],
            "shard": len(self._files),
            "first_line": self._last_line + 1,
            "last_line": line,
            "dropped": [item.record() for item in dropped],
        }
        shard = make_shard(sequences, self._pad, meta)
        content = shard_bytes(shard)
        write_bytes(path, content)
        self._take(path.name, content, shard["meta"])
        log.info("%s: %d examples, lines %d to %d", path.name, len(sequences), meta["first_line"], line)

    def _take(self, name: str, content: bytes, meta: dict[str, Any]) -> None:
        keys = ("num_examples", "num_tokens", "num_trained", "first_line", "last_line")
        self._files[name] = {"path": name, "sha256": digest(content), **{key: meta[key] for key in keys}}
        self._dropped += meta["dropped"]
        self._ids.update(meta["ids"], (item["id"] for item in meta["dropped"]))
        self._last_line = meta["last_line"]

    def _finish(self, num_lines: int) -> dict[str, Any]:
        if not self._files:
            raise DataError(
                f"{self._request.infile}: all {num_lines} examples are longer than max_total_tokens"
                f" {self._request.limits.max_total_tokens}; raise it"
            )
        totals = {key: sum(file[key] for file in self._files.values()) for key in ("num_examples", "num_tokens", "num_trained")}
        manifest = {**self._asked, **totals, "num_lines": num_lines, "num_dropped": len(self._dropped)}
        manifest |= {"pad_token_id": self._pad, "files": self._files, "dropped": self._dropped}
        write_json(self._request.out_dir / MANIFEST, manifest)
        (self._request.out_dir / REQUEST).unlink()
        return manifest
