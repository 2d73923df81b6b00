"""manifest.json: what a run's files were when it ended: sha256 and size of each, the last state, and the log as far as it was
written. status.json has the sha256 of the manifest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.storage import file_sha256, parse_json, read_plain, write_json

MANIFEST, LOG = "manifest.json", "run.log"
# Written after the manifest: the last state, the log, and what says so itself.
STILL_WRITTEN = frozenset({MANIFEST, "status.json", LOG, ".lock", ".reserve"})
# Made from the run's own files, at its end or by a later command, so the manifest cannot have them. report.html can be made
# again; labels that people gave, and certificates, cannot: those have a digest of their own, which verify checks.
DERIVED_FILES = frozenset({"report.html"})
DERIVED_FOLDERS = ("audit/", "certificates/", "tensorboard/", "wandb/")


def write_manifest(run: Path, ended: Mapping[str, Any]) -> str:
    """Returns the sha256 of manifest.json, which it writes; what a checkpoint's COMPLETE says is not computed again.

    `ended`: what status.json will say of the end, which it does not have yet.

    Raises: StorageError; OSError where a file of the run cannot be read.
    """
    known = _completed(run)
    files = {}
    for name, status in walk(run):
        if is_hashed(name) and stat.S_ISREG(status.st_mode):
            sha256 = known.get(name) or file_sha256(run / name)
            files[name] = {"bytes": status.st_size, "sha256": sha256}
    record: dict[str, Any] = {"format": 1, "ended": dict(ended), "files": files}
    if (run / LOG).exists():
        record["log"] = {"bytes": (run / LOG).stat().st_size, "sha256": file_sha256(run / LOG)}
    write_json(run / MANIFEST, record)
    return file_sha256(run / MANIFEST)


def is_hashed(name: str) -> bool:
    """Returns whether the manifest has to name this file (a path inside the run)."""
    return name not in STILL_WRITTEN and not is_derived(name)


def is_derived(name: str) -> bool:
    """Returns whether this file (a path inside the run) is made from others of the run, or added by a later command."""
    return name in DERIVED_FILES or name.startswith(DERIVED_FOLDERS)


def _raise(error: OSError) -> None:
    raise error


def walk(run: Path, on_error: Callable[[OSError], None] = _raise) -> Iterator[tuple[str, os.stat_result]]:
    """Yields (path inside the run, its own status) of whatever is no folder, sorted.

    A folder that cannot be read is told to `on_error`. Raises: by default that OSError.
    """
    found = []
    for folder, folders, names in os.walk(run, onerror=on_error):
        inside = Path(folder).relative_to(run)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(inside / name).as_posix() for name in (*names, *links)]
    for name in sorted(found):
        try:
            yield name, (run / name).lstat()
        except FileNotFoundError:
            continue  # a run that is under way renames and removes


def _completed(run: Path) -> Mapping[str, str]:
    """The hashes of checkpoints' files by path inside the run, as they were when each checkpoint was completed."""
    known: dict[str, str] = {}
    for complete in run.glob("checkpoints/step-*/COMPLETE"):
        try:
            files: Any = parse_json(read_plain(complete))["files"]
            known |= {f"{complete.parent.relative_to(run).as_posix()}/{name}": str(sha256) for name, sha256 in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # verify names it; its files are hashed as they are
    return known
