"""A run's metrics.jsonl replayed into the files of a tracker; the same run exported twice gives one export."""

from __future__ import annotations

import csv
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.metrics import METRICS, WandbTracker
from grpo_gsm8k.runs.storage import digest, make_folder, parse_json, read_lines, read_plain, storage_error, write_text
from grpo_gsm8k.runs.tensorboard import FOLDER, EventFile

Row = Mapping[str, Any]


def read_metrics(run_path: Path) -> list[dict[str, Any]]:
    """Returns the whole rows of a run's metrics.jsonl. Raises: DataError where it is missing, unreadable, empty or damaged."""
    path = run_path / METRICS
    if not path.exists():
        raise DataError(f"{path} is missing: the run left no metrics to export")
    try:
        rows = list(read_lines(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    bad = [row for row in rows if not isinstance(row, dict) or not isinstance(row.get("step"), int)]
    if bad:
        raise DataError(f"{path} has a line that is no row of metrics ({str(bad[0])[:60]}); the file was changed")
    if not rows:
        raise DataError(f"{path} holds no whole row: the run left no metrics to export")
    return rows


def export_csv(run_path: Path, out: Path) -> Path:
    """Returns <out>/metrics.csv: one row a step in step order, the columns sorted after `step`, what a step lacks empty.

    Raises: DataError where a step has two values of one metric; StorageError.
    """
    steps: dict[int, dict[str, Any]] = {}
    for row in read_metrics(run_path):
        known = steps.setdefault(row["step"], {})
        twice = [key for key, value in row.items() if known.get(key, value) != value]
        if twice:
            raise DataError(f"{run_path / METRICS} has two values of {twice[0]} at step {row['step']}; the file was changed")
        known |= row
    columns = ["step", *sorted({key for row in steps.values() for key in row} - {"step"})]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(row for _, row in sorted(steps.items()))
    make_folder(out)
    write_text(out / "metrics.csv", text.getvalue())
    return out / "metrics.csv"


def export_tensorboard(run_path: Path, out: Path) -> Path:
    """Returns the event file under <out>/tensorboard, the same bytes each time; every event has the time of the run's creation.

    Raises: DataError; EnvironmentFailure where tensorboard is not installed; StorageError.
    """
    rows = read_metrics(run_path)
    created_s = _created(run_path).timestamp()
    events = EventFile(out / FOLDER, created_s)
    events.add(rows, created_s)
    events.close()
    return events.path


def export_wandb(run_path: Path, out: Path) -> Path:
    """Returns the folder of an offline W&B run under <out>/wandb, for `wandb sync`; an earlier export of the run is replaced.

    Its W&B id is a function of the run, so that it stays one run however often it is synced. Raises: DataError, StorageError.
    """
    rows = read_metrics(run_path)
    name, created = run_path.resolve().name, _created(run_path)
    run_id = digest([name, created.isoformat()])[:12]
    values = _config(run_path)
    make_folder(out / "wandb")
    target = out / "wandb" / f"offline-run-{created:%Y%m%d_%H%M%S}-{run_id}"
    project = str(values.get("wandb_project") or "grpo-gsm8k")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        tracker = WandbTracker(Path(folder), mode="offline", project=project, name=name, config=values, run_id=run_id)
        for row in rows:
            tracker.log(row["step"], {key: value for key, value in row.items() if key != "step"})
        tracker.close()
        (made,) = Path(folder).glob(f"wandb/offline-run-*-{run_id}")
        try:
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
        except OSError as error:
            raise storage_error(target, error) from None
    return target


EXPORTS: dict[str, Callable[[Path, Path], Path]] = {
    "wandb": export_wandb,
    "tensorboard": export_tensorboard,
    "csv": export_csv,
}


def _created(run_path: Path) -> datetime:
    written = str(read_status(run_path).get("created_at", ""))
    if not re.match(r"\d{4}-", written):
        raise DataError(f"{run_path / 'status.json'} does not say when the run was created; it was changed")
    try:
        return datetime.fromisoformat(written).astimezone(UTC)
    except ValueError as error:
        raise DataError(f"{run_path / 'status.json'} holds a time that cannot be read: {error}") from None


def _config(run_path: Path) -> dict[str, Any]:
    path = run_path / "config.json"
    try:
        values = parse_json(read_plain(path))["values"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} does not hold a config; it was changed")
    return values
