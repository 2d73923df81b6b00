"""The record of a verification: what is wrong, what was checked, what could not be; reads a run's files into it."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.storage import file_sha256, parse_json, read_plain

UNKNOWN = "state unknown"  # of a run whose status.json cannot be read


@dataclass(frozen=True)
class Problem:
    """Something that is not what the run recorded: the file (a path inside the run, where it is one of the run's) and what."""

    file: str
    what: str


@dataclass
class Verification:
    """The state of a run, what is wrong with its directory, what was checked, and what could not be or is odd."""

    path: Path
    state: str
    manifest_sha256: str | None = None
    problems: list[Problem] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, file: str, what: str) -> None:
        """Puts a problem on record, once."""
        if (problem := Problem(file, what)) not in self.problems:
            self.problems.append(problem)

    def note(self, said: str) -> None:
        """Puts something that is odd, or could not be checked, on record, once."""
        if said not in self.notes:
            self.notes.append(said)

    def object(self, name: str) -> dict[str, Any] | None:
        """Returns the JSON object in a file of the run; None where missing, None with a problem where damaged."""
        try:
            value = parse_json(read_plain(self.path / name))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.wrong(name, f"cannot be read ({error.strerror or error})")
            return None
        except ValueError:
            self.wrong(name, "is not the JSON that was written")
            return None
        if not isinstance(value, dict):
            self.wrong(name, "does not hold the JSON object that was written")
            return None
        return value

    def rows(self, name: str) -> list[dict[str, Any]] | None:
        """Returns the rows of a JSONL file, or None with a problem where a line is damaged; a torn last line is one."""
        try:
            content = read_plain(self.path / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.wrong(name, f"cannot be read ({error.strerror or error})")
            return None
        lines = content.split(b"\n")
        if torn := lines.pop():
            said = f"ends in {len(torn)} bytes of a torn line"
            if self.state in ("died", "running"):
                self.note(f"{name} {said}, which were being written")
            elif self.state == UNKNOWN:  # where there is a manifest, it says whether the file was cut
                self.note(f"{name} {said}")
            else:
                self.wrong(name, f"{said}: it was cut")
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("step", 0), int):
                self.wrong(name, f"line {number} is not the JSON object that was written")
                return None
            rows.append(row)
        return rows


class Hashes:
    """The sha256 of files of a run, each computed once."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        """Returns the sha256 of a file (a path inside the run). Raises: OSError."""
        if name not in self._known:
            path = self._run / name
            if "\0" in name:
                raise OSError(None, "no file can have this name")
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(None, "it is no plain file")
            self._known[name] = file_sha256(path)
        return self._known[name]


def counted(number: int, singular: str, plural: str) -> str:
    """Returns a number with the word that belongs to it."""
    return f"{number:,} {singular if number == 1 else plural}"
