"""What of a run directory is still what the run recorded: its files by hash, its numbers by what they are derived from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.catalog import clock_notes
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.manifest import MANIFEST, is_derived, is_hashed, walk
from grpo_gsm8k.runs.verification import Hashes, Verification, counted
from grpo_gsm8k.runs.verify_content import check_evaluations, check_lines, check_result, check_rollouts
from grpo_gsm8k.runs.verify_state import check_checkpoints, check_config, check_data


def verify_run(path: Path) -> Verification:
    """Returns what is wrong with a run directory. Raises: InputError where it is none, or its status.json is damaged."""
    status = read_status(path)
    found = Verification(path, "died" if status.get("died") else str(status["state"]))
    found.notes += clock_notes(status)
    hashes = Hashes(path)
    _check_manifest(found, status, hashes)
    check_config(found)
    check_lines(found)
    check_evaluations(found)
    check_rollouts(found)
    check_result(found)
    check_checkpoints(found, hashes)
    check_data(found, hashes)
    return found


def _check_manifest(found: Verification, status: Mapping[str, Any], hashes: Hashes) -> None:
    try:
        there = dict(walk(found.path))
    except OSError as error:
        found.wrong(str(error.filename or "."), f"cannot be read ({error.strerror or error})")
        return
    manifest = found.object(MANIFEST)
    recorded = status.get("manifest_sha256")
    if manifest is None:
        _without_manifest(found, recorded is not None)
        return
    found.manifest_sha256 = hashes.of(MANIFEST)
    if recorded is None:
        found.note(f"status.json does not have the sha256 of {MANIFEST}")
    elif recorded != found.manifest_sha256:
        found.wrong(MANIFEST, "changed since the run ended (status.json has another sha256 of it)")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        found.wrong(MANIFEST, "does not hold the list of files that was written")
        return
    for name, entry in files.items():
        if name not in there:
            found.wrong(name, "is missing")
            continue
        _check_file(found, name, entry, hashes)
    added = [name for name in there if is_hashed(name) and name not in files]
    for name in added:
        found.wrong(name, f"was not there when the run ended ({MANIFEST} does not name it)")
    total = sum(entry["bytes"] for entry in files.values() if isinstance(entry.get("bytes"), int))
    found.checked.append(f"{len(files)} files, {total:,} bytes, against {MANIFEST}")
    if derived := sum(is_derived(name) for name in there):
        found.note(
            f"not in {MANIFEST}: {counted(derived, 'file', 'files')} made from these (report, audits, certificates, trackers)"
        )


def _without_manifest(found: Verification, once: bool) -> None:
    if once or found.state == "completed":
        found.wrong(MANIFEST, "is missing" if once else "is missing, and a completed run writes one")
    else:
        why = "is still running" if found.state in ("created", "running") else f"{found.state} before it was written"
        found.note(f"no {MANIFEST}: the run {why}; files are checked as far as others say what they were")


def _check_file(found: Verification, name: str, entry: Mapping[str, Any], hashes: Hashes) -> None:
    size, sha256 = entry.get("bytes"), str(entry.get("sha256"))
    try:
        actual = (found.path / name).stat().st_size
        if isinstance(size, int) and actual < size:
            found.wrong(name, f"was cut to {actual:,} of {size:,} bytes, or replaced")
        elif actual != size:
            found.wrong(name, f"has {actual:,} bytes and had {size:,}" if isinstance(size, int) else "has no size on record")
        elif hashes.of(name) != sha256:
            found.wrong(name, f"was changed (sha256 {hashes.of(name)[:12]}…, recorded {sha256[:12]}…)")
    except OSError as error:
        found.wrong(name, f"cannot be read ({error.strerror or error})")
