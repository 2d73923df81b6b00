"""Reading what `prepare` left: splits checked against their manifest, and what a run records about its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_gsm8k.data.folders import read_manifest
from grpo_gsm8k.data.jsonl import read_file
from grpo_gsm8k.data.rows import parse_problems, read_rows
from grpo_gsm8k.errors import DataError, unknown_name
from grpo_gsm8k.runs.storage import digest, file_sha256
from grpo_gsm8k.types import Problem

MANIFEST = "manifest.json"
SNAPSHOT = "snapshot.json"
CREATED = "created.json"
SPLITS = ("train", "val", "test")


def manifest_of(out_dir: Path) -> dict[str, Any]:
    """Returns the manifest of a prepared folder. Raises: DataError when the folder was not prepared."""
    manifest = read_manifest(out_dir / MANIFEST)
    if manifest is None:
        raise DataError(f"{out_dir}: not prepared (no {MANIFEST}); run data prep with this folder as out_dir")
    return manifest


def load_split(out_dir: Path, split: str) -> list[Problem]:
    """Returns the problems of a split of a prepared folder, its bytes checked against the manifest.

    Raises: DataError when the folder was not prepared, has no such split, or the file is not the one that was prepared.
    """
    files = manifest_of(out_dir)["files"]
    if split not in files:
        raise DataError(f"{out_dir}: {unknown_name('split', split, files)}")
    path = out_dir / files[split]["path"]
    content = read_file(path)
    if digest(content) != files[split]["sha256"]:
        raise DataError(
            f"{path}: changed since it was prepared (sha256 differs from {MANIFEST}); restore it or prepare another folder"
        )
    return parse_problems(content, str(path))


def verify(out_dir: Path, snapshot_dir: Path | None = None) -> list[str]:
    """Returns one line for each file that is missing or not what the manifests say; an empty list means all is well.

    Raises: DataError when `out_dir` (or `snapshot_dir`, where given) holds no manifest.
    """
    found = changed_files(out_dir, manifest_of(out_dir)["files"].values())
    if snapshot_dir is not None:
        snapshot = read_manifest(snapshot_dir / SNAPSHOT)
        if snapshot is None:
            raise DataError(f"{snapshot_dir}: no raw snapshot (no {SNAPSHOT}); run data prep with this folder as snapshot_dir")
        found += changed_files(snapshot_dir, snapshot["files"])
    return found


def changed_files(folder: Path, files: Any) -> list[str]:
    """Returns one line for each of a manifest's files (path, sha256) in `folder` that is missing or has other bytes."""
    found = []
    for file in files:
        path = folder / file["path"]
        try:
            sha256 = file_sha256(path)
        except OSError as error:
            found.append(f"{path}: cannot be read ({error.strerror or error})")
            continue
        if sha256 != file["sha256"]:
            found.append(
                f"{path}: changed since it was prepared (sha256 {sha256[:12]}…, the manifest says {file['sha256'][:12]}…)"
            )
    return found


def data_record(out_dir: Path, splits: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Returns, for a run's data.json, one object a split used: file, source, revision asked, commit, rows, sha256, raw files.

    `splits` None means all. Raises: DataError as `manifest_of`, and for a split that is not there.
    """
    manifest = manifest_of(out_dir)
    source, files = manifest["source"], manifest["files"]
    records = []
    for split in files if splits is None else splits:
        if split not in files:
            raise DataError(f"{out_dir}: {unknown_name('split', split, files)}")
        records.append(
            {
                "dataset": manifest["dataset"],
                "split": split,
                "path": str(out_dir / files[split]["path"]),
                "rows": files[split]["rows"],
                "sha256": files[split]["sha256"],
                "source": source.get("repo") or source.get("generator") or source["kind"],
                "revision": source.get("revision"),
                "commit": source.get("commit"),
                "eval_n": manifest["split"]["eval_n"],
                "split_seed": manifest["split"]["seed"],
                "raw": manifest["raw"],
            }
        )
    return records


def file_record(path: Path) -> dict[str, Any]:
    """Returns, for a run's data.json, the object of a data file that no prep made. Raises: DataError."""
    rows = len(read_rows(path))
    source = {"source": "local", "revision": None, "commit": None}
    return {"dataset": None, "split": None, "path": str(path), "rows": rows, "sha256": digest(read_file(path)), **source}
