"""A data folder that is either whole or not there: filled under a lock, its manifest put in place last.

Files are made in a hidden folder inside the target and renamed one by one, the manifest at the end. A prep that was killed
leaves no manifest, only its mark (the lock file); the next one does the work again. Readers look at the manifest first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import DataError, StorageError
from grpo_gsm8k.runs.storage import make_folder, parse_json, read_plain, storage_error

LOCK = ".prep.lock"
_PARTIAL = ".partial-"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Returns a manifest, or None where there is none. Raises: DataError when it is not the JSON object it was."""
    try:
        manifest = parse_json(read_plain(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != 1 or not {"dataset", "source", "files"} <= manifest.keys():
        raise DataError(f"{path}: not a manifest of format 1; remove the folder to prepare it again")
    return manifest


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Returns the bytes of a manifest: the same value gives the same bytes on every machine."""
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def fill_folder(folder: Path, manifest_name: str, names: Iterable[str], make: Callable[[], dict[str, bytes]]) -> bool:
    """Fills a folder with the files (path → bytes) that `make` returns; False when its manifest was there already.

    `names` are all the paths that `make` may return. It is called under the lock, so that of several preps at once one
    works and the others find the work done. When it fails, what this call made is gone again.
    Raises: DataError when files would be overwritten that no prep of ours left; StorageError.
    """
    if (folder / manifest_name).exists():
        return False
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: this is a file; give a folder")
    if not (folder / LOCK).exists():
        for name in names:
            if (folder / name).exists() and not (folder / LOCK).exists():
                raise DataError(f"{folder}: holds {name} but no {manifest_name}, so no prep put it there; give another folder")
    try:
        with _locked(folder) as fresh:
            try:
                if (folder / manifest_name).exists():
                    return False
                for stale in folder.glob(f"{_PARTIAL}*"):
                    shutil.rmtree(stale)
                _put(folder, make(), manifest_name)
            except BaseException:
                if fresh:
                    (folder / LOCK).unlink()
                    with contextlib.suppress(OSError):  # it holds something of somebody else's
                        folder.rmdir()
                raise
    except OSError as error:
        raise storage_error(folder, error) from None
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock (the kernel gives it back when the holder dies); gives whether the lock file is new."""
    path = folder / LOCK
    while True:
        make_folder(folder)
        fresh = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _take(descriptor, folder)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):  # else its last holder removed it
                yield fresh
                return
        finally:
            os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise StorageError(f"{folder}: this file system takes no locks ({error.strerror}); give a folder on another") from None


def _put(folder: Path, files: dict[str, bytes], manifest_name: str) -> None:
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        for name, content in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in sorted(files, key=lambda name: name == manifest_name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).replace(folder / name)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
