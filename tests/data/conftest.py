"""Fixtures of the data tests: a hub of our own, and small data sets for it."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

TRAIN = "main/train-00000-of-00001.parquet"
TEST = "main/test-00000-of-00001.parquet"


def _hub_server() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "hub_server.py"
    if "hub_server" not in sys.modules:
        spec = importlib.util.spec_from_file_location("hub_server", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["hub_server"] = module
        spec.loader.exec_module(module)
    return sys.modules["hub_server"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub server that HF_ENDPOINT names, an empty cache, and no waiting between retries."""
    with _hub_server().HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf_cache"))
        real = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: real(min(seconds, 0.01)))
        yield server


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Returns rows as the bytes of a parquet file."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Returns rows as the bytes of a JSONL file, as GSM8K was published."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def made_rows(num: int, first: int = 0) -> list[dict[str, Any]]:
    """Returns GSM8K-shaped rows, one with a line separator in it."""
    return [
        {"question": f"Ann has {n} pens and buys 2.\u2028How many?", "answer": f"{n}+2=<<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}"}
        for n in range(first, first + num)
    ]


@pytest.fixture
def gsm_files() -> dict[str, bytes]:
    """A small data set in the hub's layout: 40 training and 10 test rows."""
    return {TRAIN: as_parquet(made_rows(40)), TEST: as_parquet(made_rows(10, first=1000))}


@pytest.fixture
def parquet_bytes() -> Callable[[list[dict[str, Any]]], bytes]:
    return as_parquet


@pytest.fixture
def jsonl_bytes() -> Callable[[list[dict[str, Any]]], bytes]:
    return as_jsonl


@pytest.fixture
def rows_of() -> Callable[..., list[dict[str, Any]]]:
    return made_rows


@pytest.fixture
def local_gsm(tmp_path: Path) -> Path:
    """The rows of `gsm_files` as local JSONL."""
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(as_jsonl(made_rows(40)))
    (folder / "test.jsonl").write_bytes(as_jsonl(made_rows(10, first=1000)))
    return folder
