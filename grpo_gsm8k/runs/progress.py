"""What a person sees while a run works: a bar with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_EVERY_S = 10.0


class Progress:
    """Shows how far a stage is; `update` is cheap and may be called for every item. Writes to stderr."""

    def __init__(self, label: str, total: int, *, done: int = 0, unit: str = "completions") -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._first, self._began, self._shown, self._note = done, time.monotonic(), time.monotonic(), ""
        self._printed: int | None = None
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = RichProgress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.total > 0 and self._printed != self.done:
            self._print()

    def update(self, done: int = 1, note: str = "") -> None:
        """Counts `done` more items; `note` is shown beside the rate."""
        self.done += done
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=f"{self._rate():.1f}/s {self._note}")
        elif time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._shown = time.monotonic()
            self._print()

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def _print(self) -> None:
        self._printed = self.done
        rate = self._rate()
        eta = f", ETA {(self.total - self.done) / rate:.0f} s" if rate > 0 and self.done < self.total else ""
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s{eta}"
        print(f"{line}  {self._note}".rstrip(), file=sys.stderr, flush=True)
