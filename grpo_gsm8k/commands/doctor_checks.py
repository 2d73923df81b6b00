"""What one check of `doctor` says, and the checks of the host: Python, determinism, memory, disk, hub, W&B, container."""

from __future__ import annotations

import netrc
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpo_gsm8k.config import TrackerOptions
from grpo_gsm8k.runs.container import container_kind, image_digest
from grpo_gsm8k.runs.determinism import environment
from grpo_gsm8k.runs.redact import scrub

State = Literal["ok", "warn", "fail"]
STATES: tuple[State, ...] = ("ok", "warn", "fail")  # from best to worst
GIB = 2**30
SHARED_MEMORY_BYTES = GIB  # docker gives 64 MiB unless told otherwise; NCCL and worker processes take more
DISK_FAIL_BYTES, DISK_WARN_BYTES = GIB, 20 * GIB  # a tiny run; one checkpoint of a 1.5B model with its optimiser


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: what was looked at, how it stands, what was found, and what to do where it is not ok."""

    name: str
    state: State
    found: str
    remedy: str | None = None


def run_checks(checks: Iterable[tuple[str, Callable[[], Check]]]) -> Iterator[Check]:
    """Yields each check's line as soon as it is known, without secrets; a check that breaks is a failed line of its own."""
    for name, check in checks:
        try:
            done = check()
        except Exception as error:  # whatever is broken in this machine, the other lines are still wanted
            why = " ".join(str(error).split())
            done = Check(name, "fail", f"could not be checked: {type(error).__name__}: {why}", "repair what is named here")
        yield Check(done.name, done.state, scrub(done.found), None if done.remedy is None else scrub(done.remedy))


def worst(checks: Iterable[Check]) -> State:
    """Returns the worst state there is; "ok" where there are no checks."""
    return max((check.state for check in checks), key=STATES.index, default="ok")


def check_python() -> Check:
    """Returns whether this Python is one that the package supports."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11 or 3.12")


def check_determinism() -> Check:
    """Returns whether the environment holds a value that a strict run keeps and that differs from what it would set."""
    threads = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}  # --num_threads sets these, whatever the environment says
    asked = {name: value for name, value in environment("strict", 1).items() if name not in threads}
    other = [name for name, value in asked.items() if os.environ.get(name, value) != value]
    if not other:
        given = sum(name in os.environ for name in asked)
        return Check(
            "determinism", "ok", f"strict toggles hold: {given} from the environment, {len(asked) - given} set by each run"
        )
    found = ", ".join(f"{name}={os.environ[name]}" for name in other)
    return Check("determinism", "warn", f"kept in place of strict ones: {found}", f"unset {' '.join(other)}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Returns whether processes have room for what they share."""
    if not folder.is_dir():
        return Check("shared memory", "warn", f"no {folder}", "give the container one: docker run --shm-size 8g")
    size = shutil.disk_usage(folder).total
    if size >= SHARED_MEMORY_BYTES:
        return Check("shared memory", "ok", f"{gib(size)} at {folder}")
    remedy = "vLLM on several GPUs needs more: docker run --shm-size 8g, or --ipc host"
    return Check("shared memory", "warn", f"{gib(size)} at {folder}", remedy)


def check_disk(artifacts: Path) -> Check:
    """Returns whether runs can be written to the artifacts folder, and how much."""
    folder = _existing(artifacts)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        remedy = "give --artifacts-dir a folder you may write; in a container: --user $(id -u):$(id -g) and a volume of yours"
        return Check("disk", "fail", f"{folder.resolve()} cannot be written", remedy)
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} free for runs at {artifacts.resolve()}"
    remedy = "a checkpoint of a 1.5B model takes about 20 GiB, the tiny model's megabytes: free some, or see --artifacts-dir"
    if free < DISK_WARN_BYTES:
        return Check("disk", "fail" if free < DISK_FAIL_BYTES else "warn", found, remedy)
    if (lost := _lost_with_container(folder)) is not None:
        return Check("disk", "warn", f"{found}, {lost}", 'mount a volume there: docker run -v "$PWD":/workspace')
    return Check("disk", "ok", found)


def check_hub_auth() -> Check:
    """Returns where a Hugging Face token comes from, if there is one; it is neither shown nor sent."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return Check("hub token", "ok", f"in {name} (not sent to the hub to be tried)")
    file = Path(constants.HF_TOKEN_PATH)
    if file.is_file() and file.read_text(errors="replace").strip():
        return Check("hub token", "ok", f"in {file} (not sent to the hub to be tried)")
    remedy = "public models and data need none; for gated or private ones set HF_TOKEN, or run hf auth login"
    return Check("hub token", "warn", "none", remedy)


def check_hub_cache() -> Check:
    """Returns whether the hub's cache can be written, what it holds, and whether the hub may be asked at all."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    folder = _existing(cache)
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Check("hub cache", "fail", f"{folder} cannot be read and written", "set HF_HOME to a folder of yours")
    names = [entry.name for entry in cache.iterdir()] if cache.is_dir() else []
    models, data = (sum(name.startswith(kind) for name in names) for kind in ("models--", "datasets--"))
    found = f"{models} models and {data} data sets at {cache}, {gib(shutil.disk_usage(folder).free)} free"
    if constants.HF_HUB_OFFLINE:
        found += ", offline (HF_HUB_OFFLINE)"
        if not models + data:
            remedy = "unset HF_HUB_OFFLINE, or fill the cache first; --model_id tiny needs nothing"
            return Check("hub cache", "warn", found, remedy)
    if (lost := _lost_with_container(folder)) is not None:
        return Check("hub cache", "warn", f"{found}, {lost}", "set HF_HOME to a folder on a volume")
    return Check("hub cache", "ok", found)


def check_wandb() -> Check:
    """Returns the mode of Weights & Biases that runs take, and whether there is a key for going online."""
    mode = TrackerOptions().wandb
    key = "a key is there" if _has_wandb_key() else "no key"
    found = f"{mode} by default, {key}"
    wanted = os.environ.get("WANDB_MODE")
    if wanted not in (None, "", mode):
        remedy = f"the option decides: --wandb {wanted}" if wanted in ("online", "disabled") else "unset it; see --wandb"
        return Check("wandb", "warn", f"{found}; WANDB_MODE={wanted} is not read", remedy)
    if not _has_wandb_key():
        found += " (--wandb online would need WANDB_API_KEY or wandb login)"
    return Check("wandb", "ok", found)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].split("/")[0]
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False  # a file that nobody can read gives no key


def check_container() -> Check:
    """Returns whether this is a container, and whether runs will say of which image."""
    kind = container_kind()
    if kind is None:
        return Check("container", "ok", "none")
    digest, source = image_digest()
    if digest is not None:
        return Check("container", "ok", f"{kind}, image {digest} (from {source})")
    remedy = "docker run -e IMAGE_DIGEST=\"$(docker image inspect -f '{{index .RepoDigests 0}}' IMAGE)\" …"
    return Check("container", "warn", f"{kind}; runs will not say of which image (no IMAGE_DIGEST)", remedy)


def gib(num_bytes: float) -> str:
    """Returns a number of bytes in GiB, as a person reads it."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"


def _existing(path: Path) -> Path:
    """Returns the path, or the nearest above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _lost_with_container(folder: Path) -> str | None:
    """Returns a clause where a folder lies in a container's own layer, so that it goes when the container does."""
    if container_kind() is None:
        return None
    mount = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.is_mount())
    return "lost with the container" if mount == Path("/") else None
