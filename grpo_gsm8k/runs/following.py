"""Following a run that is under way: the lines that its files gain, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.storage import digest, open_plain, parse_json, read_plain


class LineFollower:
    """Yields each whole line of a growing JSONL file once, also when the file is cut back or put in another order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = self._offset = 0
        self._seen: set[str] = set()

    def new_rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows that were added since the last call. Raises: DataError for a damaged file."""
        try:
            with open_plain(self._path) as file:
                inode = self._path.stat().st_ino
                size = file.seek(0, 2)
                if inode != self._inode or size < self._offset:  # resumed, or sorted at the run's end
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error.strerror or error}") from None
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n")[:-1]:
            if (key := digest(line)) in self._seen:
                continue
            self._seen.add(key)
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{self._path}: a line is not the JSON object that was written; the file was changed or damaged"
                )
            yield row


def count_completions(path: Path) -> dict[int, int]:
    """Returns how many completions of each evaluation under way are on disk, by step."""
    found = {}
    for file in path.glob("eval/step_*.partial.jsonl"):
        number = file.name.removeprefix("step_").removesuffix(".partial.jsonl")
        try:
            if number.isascii() and number.isdigit():
                found[int(number)] = read_plain(file).count(b"\n")
        except OSError:
            continue  # it is removed when the evaluation is done
    return found


def ending(path: Path) -> str | None:
    """Returns in words how a run ended, or None while it is under way. Raises: InputError where its status cannot be read."""
    status = read_status(path)
    if status.get("died"):
        return "died: its process is gone and left no last word"
    if status["state"] in ("created", "running"):
        return None
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return f"{status['state']}{reason}, exit code {status.get('exit_code')}, at {status.get('ended_at')}"
