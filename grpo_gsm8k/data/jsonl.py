r"""JSON Lines, read and written byte for byte.

Lines end at "\n" and nowhere else: GSM8K's train row 2381 holds U+2028, at which `str.splitlines` would cut it in two.
Rows are written as GSM8K was published (ASCII, other characters escaped), so that its own bytes can be reproduced.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.storage import digest, open_plain, read_plain, write_bytes

_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_file(path: Path) -> bytes:
    """Returns a data file's bytes. Raises: DataError when it is missing, a folder, or cannot be read."""
    try:
        return read_plain(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def parse_jsonl(content: bytes, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) for each line of `content`; `name` is what errors call it.

    Raises: DataError for empty content, and for a line that is empty, not UTF-8, not JSON or not an object.
    """
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise DataError(f"{name}: the file is empty; one JSON object a line is needed")
    for number, line in enumerate(lines, start=1):
        yield number, _parse_line(line, f"{name}:{number}")


def _parse_line(line: bytes, place: str) -> dict[str, Any]:
    if not line.strip():
        raise DataError(f"{place}: the line is empty; one JSON object a line is needed")
    if line.startswith(_BYTE_ORDER_MARKS):
        raise DataError(f"{place}: begins with a byte-order mark; save it as plain UTF-8")
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON that can be read ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: a JSON object is needed, and this is {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) for each line of a file. Raises: DataError with path and line."""
    return parse_jsonl(read_file(path), str(path))


def stream_jsonl(path: Path, digest_of_file: Any = None, *, skip: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) for each line after the first `skip`, holding one line in memory at a time.

    `digest_of_file` (a hashlib object) is fed every byte, the skipped lines' too. Raises: DataError as `read_jsonl`.
    """
    number = 0
    try:
        with open_plain(path) as file:  # a binary file's lines end at "\n" and nowhere else
            for number, line in enumerate(file, start=1):
                if digest_of_file is not None:
                    digest_of_file.update(line)
                if number > skip:
                    yield number, _parse_line(line.removesuffix(b"\n"), f"{path}:{number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if number == 0:
        raise DataError(f"{path}: the file is empty; one JSON object a line is needed")


def load_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, in order. Raises: DataError with path and line."""
    return [row for _, row in read_jsonl(path)]


def encode_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns the bytes that `write_jsonl` writes; for GSM8K's rows, the very bytes that were published."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Writes a file whole (temporary name, fsync, rename) and returns its sha256. Raises: StorageError."""
    content = encode_jsonl(rows)
    write_bytes(path, content)
    return digest(content)
