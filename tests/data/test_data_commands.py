"""`data prep` and `data verify` as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k import data_prep
from grpo_gsm8k.cli import main
from grpo_gsm8k.runs.directory import read_status

REPO = "openai/gsm8k"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".prep.lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("entry", [lambda arguments: main(["data", "prep", *arguments]), data_prep.main], ids=["cli", "module"])
def test_a_branch_of_the_hub_is_prepared_pinned_and_verified(
    hub: Any, gsm_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Callable[[list[str]], int]
) -> None:
    monkeypatch.chdir(tmp_path)
    commit = hub.commit(REPO, gsm_files)
    arguments = "--out-dir artifacts/gsm8k --eval-n 5 --seed 31415 --revision main --cache-dir cache".split()
    arguments += ["--snapshot-dir", "artifacts/gsm8k_hf_snapshot"]
    assert entry(arguments) == 0
    manifest = json.loads(Path("artifacts/gsm8k/manifest.json").read_bytes())
    assert manifest["source"] == {"kind": "hub", "repo": REPO, "revision": "main", "commit": commit}
    assert manifest["files"]["val"]["rows"] == 5
    before = contents(Path("artifacts/gsm8k")) | contents(Path("artifacts/gsm8k_hf_snapshot"))
    assert len(before) >= 7
    hub.commit(REPO, dict.fromkeys(gsm_files, b"moved"))
    assert entry(arguments) == 0
    assert contents(Path("artifacts/gsm8k")) | contents(Path("artifacts/gsm8k_hf_snapshot")) == before
    runs = sorted(Path("artifacts/runs").iterdir())
    assert [read_status(run)["state"] for run in runs] == ["completed", "completed"]
    assert json.loads((runs[0] / "data.json").read_bytes())["files"][0]["commit"] == commit


def test_another_split_into_the_same_folder_is_refused_with_what_differs(
    gsm8k_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prep", "--source", str(gsm8k_dir)]) == 0
    before = contents(Path("artifacts/gsm8k"))
    for arguments, says in (
        (["--eval-n", "800"], "split.eval_n: asked 800, there 512"),
        (["--seed", "1"], "split.seed: asked 1"),
    ):
        assert main(["data", "prep", "--source", str(gsm8k_dir), *arguments]) == 2
        assert says in capsys.readouterr().err
    assert contents(Path("artifacts/gsm8k")) == before


def test_verify_hashes_again_and_names_what_changed(
    gsm8k_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "verify", "artifacts/gsm8k"]) == 2
    assert "not prepared" in capsys.readouterr().err
    assert main(["data", "prep", "--source", str(gsm8k_dir)]) == 0
    assert main(["data", "verify", "artifacts/gsm8k", "--snapshot-dir", "artifacts/gsm8k_hf_snapshot"]) == 0
    file = Path("artifacts/gsm8k/val.jsonl")
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    assert main(["data", "verify", "artifacts/gsm8k"]) == 2
    assert "val.jsonl: changed since it was prepared" in capsys.readouterr().err


def test_a_branch_that_cannot_be_resolved_offline_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpo_gsm8k.data_prep", "--revision", "main"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env={"HF_HUB_OFFLINE": "1", "PATH": ""}
    )
    assert done.returncode == 1
    last = done.stderr.rstrip().split("\n")[-1]
    assert last.startswith("error: ")
    assert "main" in last and "--source" in last
    assert "Traceback" not in done.stderr
    (run,) = (tmp_path / "artifacts/runs").iterdir()
    assert read_status(run)["state"] == "failed"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["runs"]
