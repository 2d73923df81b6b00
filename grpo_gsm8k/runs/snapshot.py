"""What the run saw of its world, written to `sys/`: machine, GPU, versions, packages, code, environment, determinism.

`python -m grpo_gsm8k.runs.snapshot FOLDER` writes the same into any folder: a container's entrypoint does so as it starts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from grpo_gsm8k.errors import HarnessError
from grpo_gsm8k.runs.container import container_kind, link_snapshot, read_image
from grpo_gsm8k.runs.determinism import Toggle
from grpo_gsm8k.runs.directory import RunDirectory, utc_now
from grpo_gsm8k.runs.git import read_git
from grpo_gsm8k.runs.redact import redact_environment, scrub
from grpo_gsm8k.runs.storage import make_folder, write_bytes, write_json, write_text

NVIDIA_QUERIES = {
    "list": ["-L"],
    "query": ["-q"],
    "topology": ["topo", "-m"],
    "nvlink": ["nvlink", "--status"],
    "mig": ["mig", "-lgi"],
}
STACK = (
    "torch transformers trl peft accelerate vllm datasets huggingface-hub tokenizers safetensors numpy pyarrow click rich "
    "wandb math-verify sympy reasoning-gym flash-attn triton"
).split()


def write_snapshot(run: RunDirectory, toggles: Sequence[Toggle]) -> str:
    """Writes `sys/` into the run directory and returns its name; on a resumed run it is `sys/start-<n>`, beside the first."""
    folder = run.path / "sys"
    number = 2
    while (folder / "system.json").exists():
        folder, number = run.path / "sys" / f"start-{number}", number + 1
    write_system(folder)
    link_snapshot(run.path, folder)
    name = str(folder.relative_to(run.path))
    write_toggles(run, toggles, name)
    return name


def write_system(folder: Path) -> None:
    """Writes into `folder` what can be seen without running anything of the stack. Raises: StorageError."""
    make_folder(folder)
    git = read_git()
    state = asdict(git)
    diff = state.pop("diff")
    clean = scrub(diff)
    write_json(folder / "git.json", {**state, "diff_redacted": clean != diff})
    if diff:
        write_bytes(folder / "dirty.diff", clean.encode("utf-8", errors="surrogateescape"))
    gpu = read_nvidia()
    write_json(folder / "system.json", read_system())
    write_json(folder / "nvidia.json", gpu)
    write_json(folder / "versions.json", read_versions(gpu))
    write_text(folder / "packages.txt", "\n".join(read_packages()) + "\n")
    write_json(folder / "env.json", redact_environment(dict(os.environ)))


def write_toggles(run: RunDirectory, toggles: Sequence[Toggle], folder: str) -> None:
    """Writes determinism.json: each toggle, what was asked, what was got, and whether they agree."""
    rows = [{**asdict(toggle), "held": toggle.held} for toggle in toggles]
    run.write_json(f"{folder}/determinism.json", rows)


def read_system() -> dict[str, Any]:
    """Returns time, OS, CPU, memory, disk, whether this is a container, and its image."""
    release = _release()
    disk = shutil.disk_usage(Path.cwd())
    return {
        "time": utc_now(),
        "host": platform.node(),
        "os": {
            "system": platform.system(),
            "release": platform.release(),
            "distribution": release.get("PRETTY_NAME"),
            "libc": "-".join(platform.libc_ver()),
        },
        "cpu": {
            "model": _cpu_model(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "flags": _cpu_flags(),
        },
        "memory_bytes": _memory(),
        "disk_bytes": {"total": disk.total, "free": disk.free},
        "container": container_kind(),
        "image": read_image(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": Path(sys.executable).name,
        },
    }


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _proc(path: str) -> str:
    file = Path(path)
    return file.read_text(errors="replace") if file.exists() else ""


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _proc("/proc/cpuinfo"), re.M)
    return found.group(1) if found else platform.processor()


def _cpu_flags() -> list[str]:
    """The instruction sets that decide which arithmetic kernels are taken."""
    found = re.search(r"^flags\s*:\s*(.+)$", _proc("/proc/cpuinfo"), re.M)
    return [flag for flag in (found.group(1).split() if found else []) if flag.startswith(("avx", "amx", "fma", "sse4"))]


def _memory() -> dict[str, int]:
    rows = dict(re.findall(r"^(MemTotal|MemAvailable|SwapTotal):\s*(\d+) kB", _proc("/proc/meminfo"), re.M))
    return {key: int(value) * 1024 for key, value in rows.items()}


def read_nvidia() -> dict[str, Any]:
    """Returns what nvidia-smi says (-L, -q, topo, nvlink, MIG), or that there is none."""
    if shutil.which("nvidia-smi") is None:
        return {"present": False, "why": "no nvidia-smi on the PATH"}
    answers: dict[str, Any] = {"present": True}
    for key, arguments in NVIDIA_QUERIES.items():
        try:
            done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30, errors="replace")
            answers[key] = {"exit_code": done.returncode, "output": scrub(done.stdout + done.stderr)}
        except (OSError, subprocess.TimeoutExpired) as error:
            answers[key] = {"exit_code": None, "output": f"{type(error).__name__}: {error}"}
    answers["present"] = answers["list"]["exit_code"] == 0 and "GPU" in answers["list"]["output"]
    return answers


def read_versions(gpu: dict[str, Any]) -> dict[str, Any]:
    """Returns the versions of the stack, and of CUDA, cuDNN, NCCL and the driver, without importing any of it."""
    versions: dict[str, Any] = {}
    installed = {found.key: found.version for found in reversed(read_distributions())}
    versions["stack"] = {name: installed.get(name) for name in STACK}
    query = gpu.get("query", {}).get("output", "")
    driver = re.search(r"Driver Version\s*:\s*(\S+)", query)
    versions["driver"] = driver.group(1) if driver else None
    driver_cuda = re.search(r"CUDA Version\s*:\s*(\S+)", query)
    versions["driver_cuda"] = driver_cuda.group(1) if driver_cuda else None
    versions["cuda"] = torch_cuda()
    versions["cudnn"] = _distribution_version("nvidia-cudnn")
    versions["nccl"] = _distribution_version("nvidia-nccl")
    return versions


def torch_cuda() -> str | None:
    """Returns the CUDA that torch was built for, or None; read from its version file, since importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda[^=\n]*=\s*'([^']+)'", (Path(spec.origin).parent / "version.py").read_text(), re.M)
    return found.group(1) if found else None


def _distribution_version(prefix: str) -> str | None:
    return next((found.version for found in read_distributions() if found.key.startswith(prefix)), None)


def read_packages() -> list[str]:
    """Returns every installed distribution as `name==version`, or `name @ url` where it came from a folder or a repository."""
    lines = set()
    for found in read_distributions():
        url = json.loads(found.origin).get("url", "") if found.origin else ""
        where = f" @ {'editable' if 'editable' in found.origin else Path(url).name}" if url else ""
        lines.add(f"{found.name}=={found.version}{where}")
    return scrub("\n".join(sorted(lines, key=str.lower))).split("\n")


class Distribution(NamedTuple):
    """An installed distribution: name and version as it says them, and its direct_url.json, "" where it has none."""

    name: str
    version: str
    origin: str

    @property
    def key(self) -> str:
        """The name by which it is looked up."""
        return re.sub(r"[-_.]+", "-", self.name).lower()


@cache
def read_distributions() -> tuple[Distribution, ...]:
    """Returns what is installed; of two of a name the first is the one that is imported.

    The metadata's head is read here: parsing the whole of it as the e-mail that it is takes as long as importing NumPy.
    """
    installed = []
    for item in importlib.metadata.distributions():
        head = (item.read_text("METADATA") or item.read_text("PKG-INFO") or "").partition("\n\n")[0]
        name, version = (re.search(rf"^{field}:[ \t]*(\S+)", head, re.M) for field in ("Name", "Version"))
        if name is not None and version is not None:
            installed.append(Distribution(name[1], version[1], item.read_text("direct_url.json") or ""))
    return tuple(installed)


def main(arguments: Sequence[str]) -> int:
    """Writes the snapshot into the folder named and returns the exit code; what goes wrong is said in one line."""
    if len(arguments) != 1:
        print("usage: python -m grpo_gsm8k.runs.snapshot FOLDER", file=sys.stderr)
        return 2
    try:
        write_system(Path(arguments[0]))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
