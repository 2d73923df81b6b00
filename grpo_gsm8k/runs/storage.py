"""Bytes on disk: files are written whole and renamed into place, or appended one whole line at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError, StorageError

OWN_SHA256 = "own_sha256"  # of what a later command adds to a run: no manifest has it
_encode = json.JSONEncoder(ensure_ascii=False).encode


def storage_error(path: Path, error: OSError) -> StorageError:
    """Returns the one-line failure for an OSError at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full: could not write {path}; free some space and use --resume")
    return StorageError(f"cannot write {path}: {error.strerror or error}; give a folder that can be written")


def make_folder(path: Path) -> None:
    """Creates a folder and its parents. Raises: StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from None


def open_plain(path: Path) -> BufferedReader:
    """Returns a file opened for reading. Raises: OSError, also for what is no plain file (a pipe would be waited for)."""
    return open(path, "rb", opener=_open_plain)


def _open_plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is no plain file", path)


def read_plain(path: Path) -> bytes:
    """Returns the bytes of a plain file. Raises: OSError."""
    with open_plain(path) as file:
        return file.read()


def parse_json(content: bytes) -> Any:
    """Returns the value that JSON says. Raises: ValueError for whatever is none, and for what is nested too deep to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole: to a temporary name beside it, fsynced, then renamed. Raises: StorageError; the old file stays."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(path, error) from None
        raise


def copy_folder(source: Path, target: Path) -> None:
    """Copies the files of a folder. Raises: OSError of the first that fails (that of shutil.copytree has no errno)."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whole; lone surrogates are kept as escapes."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def json_line(value: Any) -> bytes:
    """Returns one JSON line; the same value gives the same bytes on every machine."""
    return _encode(value).encode("utf-8", errors="backslashreplace") + b"\n"


class JsonlAppender:
    """Appends whole lines to a JSONL file; a torn last line, left by a killed writer, is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._cut_torn_line()
        except OSError as error:
            raise storage_error(path, error) from None

    def _cut_torn_line(self) -> None:
        content = read_plain(self.path)
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._descriptor, content.rfind(b"\n") + 1)

    def append(self, *values: Any) -> None:
        """Appends one line a value; on a full disk the file is cut back to its last whole line."""
        content = b"".join(json_line(value) for value in values)
        size = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise storage_error(self.path, error) from None

    def close(self) -> None:
        """Closes the file; what was appended is on disk."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


def read_lines(path: Path) -> Iterator[Any]:
    """Yields the whole lines of an append-only JSONL file of ours; a torn last line is left out. Raises: DataError."""
    try:
        content = read_plain(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n"), start=1):
        if not line:
            continue
        try:
            yield parse_json(line)
        except ValueError:
            raise DataError(f"{path}:{number}: not the JSON line that was written; the file was changed or damaged") from None


def digest(value: Any) -> str:
    """Returns the sha256 of a value's canonical JSON (keys sorted), or of bytes as they are."""
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return hashlib.sha256(value).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes. Raises: OSError."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object as JSON holds it, with the digest of itself as its last value."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return {**plain, OWN_SHA256: digest(plain)}


def is_as_sealed(value: Mapping[str, Any]) -> bool | None:
    """Returns whether an object still has the digest that `sealed` gave it; None where it never had one."""
    if OWN_SHA256 not in value:
        return None
    return bool(value[OWN_SHA256] == digest({key: each for key, each in value.items() if key != OWN_SHA256}))
