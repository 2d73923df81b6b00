"""What a run kept and what it was given: checkpoints against COMPLETE, config hashes, data files against data.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.checkpoints import COMPLETE, FOLDER, INDEX, step_folders
from grpo_gsm8k.runs.redact import REDACTED
from grpo_gsm8k.runs.storage import digest, file_sha256
from grpo_gsm8k.runs.verification import Hashes, Verification, counted


def check_config(found: Verification) -> None:
    """Reads the files that say what was run."""
    for name in ("config.json", "command.json"):
        value = found.object(name)
        if value is None and not (found.path / name).exists() and found.state in ("completed", "failed"):
            found.note(f"there is no {name}: the run ended before it was written, or it was removed")
        if value is not None and name == "config.json" and not isinstance(value.get("values"), dict):
            found.wrong(name, "has no values")


def check_checkpoints(found: Verification, hashes: Hashes) -> None:
    """Compares each checkpoint's files with its COMPLETE and with checkpoints.jsonl, and its state with config and data."""
    last = {str(row.get("path")): row for row in found.rows(INDEX) or []}
    kept = {path: row for path, row in last.items() if row.get("state") == "kept"}
    try:
        folders = {f"{FOLDER}/{item.path.name}": item.path for item in step_folders(found.path)}
    except OSError as error:
        found.wrong(FOLDER, f"cannot be read ({error.strerror or error})")
        return
    for name in sorted(kept.keys() - folders.keys()):
        found.wrong(name, f"is missing, and {INDEX} says that it is kept")
    for name, path in sorted(folders.items()):
        if not (path / COMPLETE).exists():
            if name in kept:
                found.wrong(f"{name}/{COMPLETE}", f"is missing, and {INDEX} says that the checkpoint is complete")
            else:
                found.note(f"{name} is half-written (no {COMPLETE}) and is not used")
            continue
        complete = found.object(f"{name}/{COMPLETE}")
        files = complete.get("files") if complete else None
        if not isinstance(files, dict):
            found.wrong(f"{name}/{COMPLETE}", "does not hold the hashes that were written")
            continue
        if name in kept and kept[name].get("sha256") != files:
            found.wrong(f"{name}/{COMPLETE}", f"has other hashes than {INDEX}")
        _check_files(found, name, files, hashes)
        _check_identity(found, f"{name}/trainer_state.json", hashes)
        _check_weights(found, f"{name}/trainer_state.json")
    if folders:
        found.checked.append(f"{counted(len(folders), 'checkpoint', 'checkpoints')} against {COMPLETE} and {INDEX}")


def _check_files(found: Verification, folder: str, files: Mapping[str, Any], hashes: Hashes) -> None:
    for name, sha256 in files.items():
        file = f"{folder}/{name}"
        if any(problem.file == file for problem in found.problems):
            continue  # said already, by the manifest
        try:
            if hashes.of(file) != sha256:
                found.wrong(file, f"was changed since the checkpoint was completed (sha256 {hashes.of(file)[:12]}…)")
        except FileNotFoundError:
            found.wrong(file, "is missing")
        except OSError as error:
            found.wrong(file, f"cannot be read ({error.strerror or error})")


def _check_identity(found: Verification, name: str, hashes: Hashes) -> None:
    state = found.object(name)
    config = found.object("config.json")
    if state is None or config is None:
        return
    values = config.get("values")
    changed = any(row.get("changes") or row.get("data_changes") for row in found.rows("resumed.jsonl") or [])
    expected = {"config_sha256": digest(values)}
    try:
        expected["data_sha256"] = hashes.of("data.json")
    except OSError as error:
        found.wrong("data.json", f"cannot be read ({error.strerror or error})")
    for key, value in expected.items():
        if key not in state or state[key] == value or (key == "config_sha256" and REDACTED in str(values)):
            continue
        file = "config.json" if key == "config_sha256" else "data.json"
        if changed:
            found.note(f"{name} is of another {file}; resumed.jsonl says what was changed, as allowed")
        else:
            found.wrong(file, f"is not the one that {name} was saved with ({key})")


def _check_weights(found: Verification, name: str) -> None:
    state = found.object(name) or {}
    for row in found.rows("ledger.jsonl") or []:
        if (
            "weights" in state
            and row.get("step") == state.get("step")
            and row.get("weights", state["weights"]) != state["weights"]
        ):
            found.wrong("ledger.jsonl", f"step {row['step']}: weights are not those that {name} was saved with")


def check_data(found: Verification, hashes: Hashes) -> None:
    """Compares the files that data.json names, where they are still there, with their recorded sha256."""
    data = found.object("data.json")
    rows = data.get("files") if data is not None else None
    if data is not None and (not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows)):
        found.wrong("data.json", "does not hold the list of files that was written")
        return
    num_checked, gone = 0, []
    for row in rows or []:
        for label, path, sha256 in _data_files(found, row):
            try:
                actual = _sha256(found.path, path, hashes)
            except FileNotFoundError:
                gone.append(label)
                continue
            except (OSError, ValueError) as error:
                found.wrong(label, f"cannot be read ({error})")
                continue
            num_checked += 1
            if actual != sha256:
                found.wrong(label, f"changed since the run (sha256 {actual[:12]}…, data.json has {str(sha256)[:12]}…)")
    if num_checked:
        found.checked.append(f"{counted(num_checked, 'file', 'files')} of data, model and template against data.json")
    if gone:
        found.note(f"data.json: {counted(len(gone), 'file is', 'files are')} not here to be checked ({', '.join(gone[:3])})")


def _data_files(found: Verification, row: Mapping[str, Any]) -> Iterator[tuple[str, Path, Any]]:
    """Yields (name, path, sha256) of what a row of data.json names as files."""
    sha256, path, source, files = (row.get(key) for key in ("sha256", "path", "source", "files"))
    if row.get("role") == "template" and (found.path / "template.txt").exists():
        yield "template.txt", found.path / "template.txt", sha256
    elif isinstance(path, str) and isinstance(sha256, str):
        own = found.path / Path(path).name
        is_own = Path(path).parent.name == found.path.resolve().name
        if is_own or (own.exists() and not _located(found, path).exists()):  # wherever the run was moved, and called whatever
            yield own.name, own, sha256
        else:
            yield path, _located(found, path), sha256
    elif isinstance(source, str) and isinstance(files, dict) and _located(found, source).is_dir():
        for name, each in files.items():
            yield f"{source}/{name}", _located(found, source) / name, each


def _located(found: Verification, path: str) -> Path:
    """Where a path that was relative to the run's working directory is now: by the recorded way there, else from here."""
    way = (found.object("command.json") or {}).get("cwd_from_run")
    from_run = found.path / way / path if isinstance(way, str) else Path(path)
    return from_run if from_run.exists() else Path(path)


def _sha256(run: Path, path: Path, hashes: Hashes) -> str:
    if path.parent == run:
        return hashes.of(path.name)
    if path.is_dir():
        raise FileNotFoundError(path)  # a folder of shards has a hash over theirs, which its own manifest checks
    return file_sha256(path)
