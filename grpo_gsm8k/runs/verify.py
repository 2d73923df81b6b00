"""What of a run directory is still what the run recorded: its files by hash, its numbers by what they are derived from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.catalog import clock_notes
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.manifest import LOG, MANIFEST, is_derived, is_hashed, walk
from grpo_gsm8k.runs.storage import read_plain
from grpo_gsm8k.runs.verification import UNKNOWN, Hashes, Verification, counted
from grpo_gsm8k.runs.verify_added import check_added
from grpo_gsm8k.runs.verify_content import UNLIKE, check_evaluations, check_lines, check_result, check_rollouts
from grpo_gsm8k.runs.verify_state import check_checkpoints, check_config, check_data
from grpo_gsm8k.runs.verify_training import check_rollout_metrics, check_training_metrics

STATUS = "status.json"
OWN_FILES = ("config.json", "command.json", MANIFEST)  # what tells a run directory from any other folder


def verify_run(path: Path) -> Verification:
    """Returns what is wrong with a run directory. Raises: InputError where it is none.

    A damaged status.json is one of the things that are wrong; then whatever does not follow from it is checked.
    """
    status: dict[str, Any] = {}
    state, damage = UNKNOWN, ""
    try:
        status = read_status(path)
        state = "died" if status.get("died") else str(status["state"])
    except InputError as error:
        if not any((path / name).exists() for name in (STATUS, *OWN_FILES)):
            raise
        damage = str(error).removeprefix(f"{path / STATUS}").strip(" :")
    found = Verification(path, state)
    if damage:
        found.wrong(STATUS, damage if (path / STATUS).exists() else "is missing")
    else:
        found.notes += clock_notes(status)
    hashes = Hashes(path)
    for check in (
        partial(_check_manifest, status=status, hashes=hashes),
        check_config,
        check_lines,
        partial(check_evaluations, hashes=hashes),
        check_rollouts,
        check_training_metrics,
        check_rollout_metrics,
        check_result,
        partial(check_checkpoints, hashes=hashes),
        partial(check_data, hashes=hashes),
        check_added,
    ):
        try:
            check(found)
        except (*UNLIKE, RecursionError) as error:  # a number too long to be written, values nested too deep
            found.wrong(".", f"a file holds what no run writes ({type(error).__name__}: {error}), so not all was checked")
    return found


def _check_manifest(found: Verification, status: Mapping[str, Any], hashes: Hashes) -> None:
    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, found.path) if error.filename else "."
        found.wrong(name, f"cannot be read ({error.strerror or error})")

    there = dict(walk(found.path, unreadable))
    recorded = status.get("manifest_sha256")
    if not (found.path / MANIFEST).exists():
        _without_manifest(found, recorded is not None)
        return
    manifest = found.object(MANIFEST)
    if manifest is None:
        found.note(f"{MANIFEST} cannot be used: files are checked as far as others say what they were")
        return
    found.manifest_sha256 = hashes.of(MANIFEST)
    if recorded is None:
        found.note(f"{STATUS} does not have the sha256 of {MANIFEST}")
    elif recorded != found.manifest_sha256:
        found.wrong(MANIFEST, f"changed since the run ended ({STATUS} has another sha256 of it)")
    if recorded is not None:
        _check_end(found, manifest, status)
    files = manifest.get("files")
    if not isinstance(files, dict):
        found.wrong(MANIFEST, "does not hold the list of files that was written")
        return
    for name, entry in files.items():
        if isinstance(entry, dict):
            _check_file(found, name, entry, hashes)
        else:
            found.wrong(MANIFEST, f"has no size and sha256 of {name}")
    added = [name for name in there if is_hashed(name) and name not in files]
    for name in added:
        found.wrong(name, f"was not there when the run ended ({MANIFEST} does not name it)")
    sizes = [entry.get("bytes") for entry in files.values() if isinstance(entry, dict)]
    total = sum(size for size in sizes if isinstance(size, int))
    found.checked.append(f"{len(files)} files, {total:,} bytes, against {MANIFEST}")
    if derived := sum(is_derived(name) for name in there):
        found.note(
            f"not in {MANIFEST}: {counted(derived, 'file', 'files')} made from these (report, audits, certificates, trackers)"
        )


def _check_end(found: Verification, manifest: Mapping[str, Any], status: Mapping[str, Any]) -> None:
    """The two files that are written to after the manifest: the last state, and the log as far as it was then written."""
    ended, log = manifest.get("ended"), manifest.get("log")
    for key, value in ended.items() if isinstance(ended, dict) else ():
        if status.get(key) != value:
            found.wrong(STATUS, f"{key} is {status.get(key)!r}, and {MANIFEST} has {value!r}, with which the run ended")
    if isinstance(log, dict):
        try:
            content = read_plain(found.path / LOG)
        except FileNotFoundError:
            found.wrong(LOG, "is missing")
        except OSError as error:
            found.wrong(LOG, f"cannot be read ({error.strerror or error})")
        else:
            if hashlib.sha256(content[: int(log["bytes"])]).hexdigest() != log["sha256"]:
                found.wrong(LOG, f"was changed: what it held when the run ended has another sha256 in {MANIFEST}")


def _without_manifest(found: Verification, once: bool) -> None:
    if once or found.state == "completed":
        found.wrong(MANIFEST, "is missing" if once else "is missing, and a completed run writes one")
    elif found.state == UNKNOWN:
        found.note(f"no {MANIFEST}, and no {STATUS} to say whether there was one; files are checked as far as others say")
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
    except (FileNotFoundError, NotADirectoryError):
        found.wrong(name, "is missing")
    except (OSError, ValueError) as error:
        found.wrong(name, f"cannot be read ({getattr(error, 'strerror', None) or error})")
