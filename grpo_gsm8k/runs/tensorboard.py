"""TensorBoard event files made of metrics.jsonl: written live beside it, or afterwards; the same scalars either way."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import EnvironmentFailure
from grpo_gsm8k.runs.storage import make_folder, read_lines, storage_error

EVENTS = "events.out.tfevents.*.grpo-gsm8k"
FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Checks that the package is there. Raises: EnvironmentFailure."""
    if importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentFailure(
            "TensorBoard needs a package that is not installed: pip install 'grpo-gsm8k[tensorboard]', or do without it"
        )


class EventFile:
    """One event file; whatever event file of ours was in its folder is replaced."""

    def __init__(self, folder: Path, started_s: float) -> None:
        require_tensorboard()
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        make_folder(folder)
        self.path = folder / EVENTS.replace("*", f"{started_s:.0f}")
        try:
            for old in folder.glob(EVENTS):
                old.unlink()
            self._file = self.path.open("wb")
        except OSError as error:
            raise storage_error(self.path, error) from None
        self._writer = RecordWriter(self._file)
        self._write([Event(wall_time=started_s, file_version="brain.Event:2")])

    def add(self, rows: Iterable[Mapping[str, Any]], wall_time_s: float) -> None:
        """Appends the scalars of rows of metrics.jsonl. Raises: StorageError."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        events = []
        for row in rows:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items() if _is_scalar(key, value)]
            events.append(Event(wall_time=wall_time_s, step=row["step"], summary=Summary(value=values)))
        self._write(events)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, events: Sequence[Any]) -> None:
        try:
            for event in events:
                self._writer.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise storage_error(self.path, error) from None


def _is_scalar(key: str, value: Any) -> bool:
    return key != "step" and isinstance(value, int | float)


class TensorboardTracker:
    """TensorBoard as a sink: <run>/tensorboard holds what metrics.jsonl holds.

    The file begins as a copy of metrics.jsonl when the first row arrives; so a resumed run, whose rows after the checkpoint
    were cut away, shows no step twice.
    """

    def __init__(self, metrics: Path, folder: Path) -> None:
        require_tensorboard()
        self._metrics = metrics
        self._folder = folder
        self._events: EventFile | None = None

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Writes the metrics of a step, which metrics.jsonl already holds."""
        if self._events is None:
            self._events = EventFile(self._folder, time.time())
            self._events.add(read_lines(self._metrics), time.time())
        else:
            self._events.add([{"step": step, **metrics}], time.time())

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes nothing: TensorBoard has no tables, and eval/step_<n>.jsonl has the rows."""

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            self._events.close()
