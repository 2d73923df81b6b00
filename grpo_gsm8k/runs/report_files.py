"""The files of a run directory as the report reads them: what is missing or torn becomes a note, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.storage import open_plain, parse_json, read_plain


class RunFiles:
    """The files of one run directory; what is missing or torn becomes a note on the page."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.notes: list[str] = []

    def has(self, name: str) -> bool:
        """Returns whether the file is there; what need not be there is asked for, and not noted."""
        return (self.run_dir / name).exists()

    def json(self, name: str) -> Any:
        """Returns the parsed file, or {} with a note."""
        try:
            return parse_json(read_plain(self.run_dir / name))
        except FileNotFoundError:
            self.notes.append(f"{name} is missing")
        except (OSError, ValueError) as error:
            self.notes.append(f"{name} cannot be read: {error}")
        return {}

    def object(self, name: str) -> dict[str, Any]:
        """Returns the parsed JSON object, or {} with a note."""
        value = self.json(name)
        if isinstance(value, dict):
            return value
        self.notes.append(f"{name} does not hold a JSON object")
        return {}

    def text(self, name: str) -> str:
        """Returns the file's text, or "" with a note."""
        try:
            return read_plain(self.run_dir / name).decode("utf-8", errors="replace")
        except OSError as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
            self.notes.append(f"{name} {why}")
        return ""

    def count_lines(self, name: str) -> int:
        """Returns the number of whole lines, 0 with a note where the file is missing."""
        return self.text(name).count("\n")

    def rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yields the whole rows of a JSONL file, one in memory at a time; others become a note."""
        name = path.relative_to(self.run_dir)
        try:
            file = open_plain(path)
        except OSError as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
            self.notes.append(f"{name} {why}")
            return
        with file:
            for number, line in enumerate(file, start=1):
                try:
                    row = parse_json(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                else:
                    torn = "was being written when the run ended" if not line.endswith(b"\n") else "is not a JSON object"
                    self.notes.append(f"{name}: line {number} {torn} and is left out")

    def steps(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (step, row) of a JSONL file that has a step in each row; a row without one becomes a note."""
        for row in self.rows(self.run_dir / name):
            if isinstance(row.get("step"), int):
                yield row["step"], row
            else:
                self.notes.append(f"{name}: a row without a step is left out")


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns (dotted key, value) for every leaf of nested objects, in their order."""
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in flatten(inner, f"{prefix}.{key}" if prefix else str(key))]
