"""`metrics.jsonl` replayed for other tools: the same values, the same export each time, and what is refused."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.config import TrackerOptions
from grpo_gsm8k.errors import DataError, EnvironmentFailure
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.export import export_csv, export_tensorboard, export_wandb
from grpo_gsm8k.runs.metrics import MetricsWriter, open_trackers

ROWS: list[tuple[int, dict[str, float]]] = [
    (0, {"eval/accuracy": 0.25}),
    (1, {"train/loss": 1.5, "a/first": 3}),
    (2, {"train/loss": 1.25}),
    (1, {"eval/accuracy": 0.5}),  # an evaluation that came later than the step after its own
]
SCALARS = sorted((step, key, float(value)) for step, row in ROWS for key, value in row.items())


def make_run(folder: Path, **options: Any) -> RunDirectory:
    """A run that logged ROWS with the trackers that the options ask for."""
    run = RunDirectory.create(folder, "sft", ["sft"])
    run.start()
    run.write_json("config.json", {"values": {"wandb_project": "p"}, "sources": {}})
    trackers = open_trackers(run, TrackerOptions(**{"wandb": "disabled", **options}), name=None, config={})
    writer = MetricsWriter(run, trackers)
    for step, row in ROWS:
        writer.log(step, row)
    writer.close()
    run.finish("completed", None, 0)
    return run


def scalars_of(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard's own reader finds in a folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = folder.glob("events.out.tfevents.*")
    found = []
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
            found.append((event.step, value.tag, float(number)))
    return sorted(found)


def test_csv_has_a_row_a_step_and_sorted_columns(tmp_path: Path) -> None:
    path = export_csv(make_run(tmp_path).path, tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert text == "step,a/first,eval/accuracy,train/loss\n0,,0.25,\n1,3,0.5,1.5\n2,,,1.25\n"
    with path.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_a_step_with_two_values_of_one_metric_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.append("metrics.jsonl", {"step": 2, "train/loss": 9.0})
    with pytest.raises(DataError, match="two values of train/loss at step 2"):
        export_csv(run.path, tmp_path)


def test_tensorboard_written_live_holds_what_the_replay_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = make_run(tmp_path, tensorboard=True)
    assert scalars_of(run.path / "tensorboard") == SCALARS
    assert scalars_of(export_tensorboard(run.path, tmp_path / "out").parent) == SCALARS


def test_tensorboard_exported_twice_is_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = make_run(tmp_path)
    first = export_tensorboard(run.path, tmp_path / "out")
    content = first.read_bytes()
    assert export_tensorboard(run.path, tmp_path / "out") == first
    assert first.read_bytes() == content


def test_a_resumed_run_shows_no_step_twice_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = make_run(tmp_path, tensorboard=True)
    lines = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_bytes(b"".join(lines[:2]))  # as a resumption does, to its checkpoint's step
    options = TrackerOptions(wandb="disabled", tensorboard=True)
    writer = MetricsWriter(run, open_trackers(run, options, name=None, config={}))
    for step, row in ROWS[2:]:
        writer.log(step, row)
    writer.close()
    assert scalars_of(run.path / "tensorboard") == SCALARS


def test_tensorboard_that_is_not_installed_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'grpo-gsm8k\[tensorboard\]'"):
        export_tensorboard(run.path, tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_exported_twice_is_one_run_with_all_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = make_run(tmp_path)
    folder = export_wandb(run.path, tmp_path / "out")
    assert export_wandb(run.path, tmp_path / "out") == folder
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["wandb"]
    assert list((tmp_path / "out/wandb").iterdir()) == [folder]
    assert history_of(folder) == [{"step": step, **row} for step, row in ROWS]


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of an offline W&B run."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    rows = []
    for data in records_of(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def records_of(content: bytes) -> list[bytes]:
    """The records of a LevelDB log with W&B's header of 7 bytes: 32 KiB blocks of parts, each crc (4), length (2), type."""
    records, at, whole = [], 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<4xHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(whole)
            whole = b""
    return records


@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"a": 1}\n', b'{"step": 1\n{}\n'])
def test_metrics_that_are_empty_or_damaged_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(DataError) as refused:
        export_csv(run.path, tmp_path / "out")
    assert "metrics.jsonl" in str(refused.value)
    assert "\n" not in str(refused.value)
