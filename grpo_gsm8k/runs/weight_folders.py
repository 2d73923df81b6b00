"""Where a learner publishes weights for a sampling process: RAM-backed where that is big enough, else in the run directory.

A folder in RAM belongs to the processes that hold the lock on the file inside it: the trainer and its evaluator. The kernel
lets go of the lock when the last of them is dead, however it died and in whichever container; whoever then starts a run takes
the lock and removes the folder. The owner's pid and start time are in the name for people to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from grpo_gsm8k.errors import StorageError
from grpo_gsm8k.runs.directory import process_identity
from grpo_gsm8k.runs.storage import make_folder, storage_error

RAM = Path("/dev/shm")
PREFIX = "grpo_gsm8k-"
LOCK = "owner.lock"
IN_RUN = "published"


@dataclass(frozen=True)
class Place:
    """Where weights are published: the folder that holds them, whether it is in RAM, and why in one line."""

    base: Path
    in_ram: bool
    why: str


def choose_place(run_path: Path, weights_bytes: int, num_copies: int, ram: Path = RAM) -> Place:
    """Returns where `num_copies` copies of weights fit: `ram` where it can be written and has room, else the run directory.

    Files in RAM are memory, so half of what is available (to the machine and to this control group) is the most they take.
    """
    needed = weights_bytes * num_copies
    inside = run_path / IN_RUN
    if not ram.is_dir() or not os.access(ram, os.W_OK):
        return Place(inside, False, f"{ram} is not there or cannot be written")
    state = os.statvfs(ram)
    room = min(state.f_bavail * state.f_frsize, available_memory() // 2)
    shown = f"{num_copies} copies of {weights_bytes / 2**20:,.1f} MiB"
    if needed > room:
        return Place(
            inside, False, f"{shown} are more than the {room / 2**20:,.1f} MiB that {ram} and the memory have room for"
        )
    return Place(ram, True, f"{shown} fit into {ram}")


def available_memory() -> int:
    """Returns the bytes that this process may still take: of the machine, and of its control group where that has a limit."""
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().split("\n") if ":" in line)
        found = [int(rows["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in rows else found
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is "max", no control group is no file
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(found))


class WeightFolders:
    """One folder a published step, in a folder that is gone when its owners are."""

    def __init__(self, place: Place) -> None:
        """Makes the folder; in RAM, removes those of dead owners first. Raises: StorageError."""
        self.place = place
        self.lock_fd: int | None = None
        if place.in_ram:
            sweep(place.base)
            self.path, self.lock_fd = _claim(place.base)
        else:
            self.path = place.base
            shutil.rmtree(self.path, ignore_errors=True)  # of an earlier start of this run, which is over
            make_folder(self.path)

    def make(self, step: int, reader: str = "step") -> Path:
        """Returns the new, empty folder for the weights of `step`; each `reader` has its own. Raises: StorageError."""
        folder = self.path / f"{reader}-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        return folder

    def remove(self, step: int, reader: str = "step") -> None:
        """Removes the weights of `step` that `reader` had."""
        shutil.rmtree(self.path / f"{reader}-{step}", ignore_errors=True)

    def close(self) -> None:
        """Removes everything; safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None


def _claim(base: Path) -> tuple[Path, int]:
    """Makes a folder of our own and locks it; one that a sweep took from under us before it was locked is made again."""
    identity = process_identity()
    while True:
        try:
            path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{identity['pid']}-{identity['pid_start']}-", dir=base))
        except OSError as error:
            raise storage_error(base, error) from None
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_same_file(path / LOCK, descriptor):
                return path, descriptor
            os.close(descriptor)


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(base: Path = RAM) -> list[Path]:
    """Removes the folders under `base` whose owners are all dead, and returns them; those of other users are left alone."""
    removed = []
    for path in sorted(base.glob(f"{PREFIX}*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
                continue
            if _is_abandoned(path):
                removed.append(path)
    return removed


def _is_abandoned(path: Path) -> bool:
    """Removes the folder where nobody holds its lock, and returns whether it did."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR)
    except FileNotFoundError:  # its owner died, or is just about to make the file: then it makes another folder
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(
            f"cannot lock {path / LOCK}: {error.strerror}; remove the folder by hand if no run uses it"
        ) from None
    finally:
        os.close(descriptor)
