"""The checks of `doctor` that ask other processes: GPU, driver, torch and its CUDA, free GPU memory, vLLM.

Each question is a process with a limit of its own, so that what hangs or crashes there (a driver, an import) is a line here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from grpo_gsm8k.commands.doctor_checks import GIB, Check, gib
from grpo_gsm8k.runs.snapshot import read_versions

NVIDIA_TIMEOUT_S, TORCH_TIMEOUT_S, VLLM_TIMEOUT_S = 15.0, 90.0, 180.0  # a first import from a slow volume takes a minute
FREE_SHARE = 0.5  # of a GPU's memory; below it somebody else is at work there
NO_GPU = "none: runs go on the CPU, where the tiny model is the one to take (--model_id tiny)"
ASK_TORCH = """
import json, torch
said = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": [], "trouble": None}
try:
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        assert float((ones @ ones).sum()) == 64.0**3, "a product of ones is wrong"
        name = torch.cuda.get_device_name(number)
        said["devices"].append({"name": name, "free": free, "total": total})
except Exception as error:
    said["trouble"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
ASK_VLLM = "import vllm; from vllm import LLM, SamplingParams; print(vllm.__version__)"


@dataclass(frozen=True)
class Answer:
    """What a process said: its exit code (None: it was stopped at its limit, or could not start) and its output."""

    code: int | None
    output: str
    errors: str

    @property
    def trouble(self) -> str:
        """The last line of what went wrong."""
        said = (self.errors.strip() or self.output.strip()).splitlines()
        if self.code is not None and self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return " ".join(said[-1].split()) if said else f"exit code {self.code}"


def ask(command: Sequence[str], timeout_s: float) -> Answer:
    """Returns what a command said within its limit; past it the command's whole group is killed and not waited for."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"cannot be started: {error.strerror or error}")
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"no answer within {timeout_s:g} s")
    finally:
        if process.poll() is None:  # over its limit, or we were interrupted; a process stuck in a driver cannot be waited for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Answer(process.returncode, output, errors)


class Accelerator:
    """What nvidia-smi, torch and vLLM say of this machine's GPUs, each asked once, when first wanted."""

    @cached_property
    def driver(self) -> Answer | None:
        """nvidia-smi's report; None where there is no nvidia-smi."""
        if shutil.which("nvidia-smi") is None:
            return None
        return ask(["nvidia-smi", "-q"], NVIDIA_TIMEOUT_S)

    @cached_property
    def versions(self) -> dict[str, Any]:
        """The versions of the stack, and of the driver as far as nvidia-smi says."""
        return read_versions({"query": {"output": self.driver.output if self.driver else ""}})

    @cached_property
    def torch(self) -> Answer:
        """The answer of a process that imported torch and multiplied on every device."""
        return ask([sys.executable, "-c", ASK_TORCH], TORCH_TIMEOUT_S)

    @cached_property
    def torch_said(self) -> dict[str, Any] | None:
        """What torch said, as JSON; None where it did not come so far."""
        if self.torch.code != 0:
            return None
        said = json.loads(self.torch.output.strip().splitlines()[-1])
        assert isinstance(said, dict)
        return said

    @property
    def devices(self) -> list[dict[str, Any]]:
        """The devices on which torch could calculate."""
        return self.torch_said["devices"] if self.torch_said else []

    @property
    def is_there(self) -> bool:
        """Whether the machine has a GPU, as far as anything says so."""
        return self.driver is not None or bool(self.devices)

    def check_gpu(self) -> Check:
        """Returns whether there is a GPU that answers."""
        if self.driver is None and not self.devices:
            return Check(
                "gpu", "warn", NO_GPU, "where the machine has one: install its driver; in a container: docker run --gpus all"
            )
        if self.driver is not None and self.driver.code != 0:
            remedy = (
                "reload the driver, or restart the machine; in a container, check that host and nvidia-container-toolkit agree"
            )
            return Check("gpu", "fail", f"nvidia-smi: {self.driver.trouble}", remedy)
        names = [device["name"] for device in self.devices]
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if not names:
            remedy = "see the torch line" if hidden is None else f"CUDA_VISIBLE_DEVICES={hidden!r} hides them: unset it"
            return Check("gpu", "fail", "the driver answers, but torch can use no GPU", remedy)
        return Check("gpu", "ok", f"{len(names)}: {', '.join(names)}")

    def check_driver(self) -> Check:
        """Returns whether the driver is new enough for the CUDA that torch was built for."""
        if self.driver is None:
            return Check("driver", "ok", "no nvidia-smi to ask" if self.devices else "none needed without a GPU")
        driver, newest = self.versions["driver"], self.versions["driver_cuda"]
        built = self.torch_said["cuda"] if self.torch_said else self.versions["cuda"]
        if driver is None:
            return Check("driver", "fail", f"nvidia-smi: {self.driver.trouble}", "see the gpu line")
        found = f"{driver}, for CUDA up to {newest or 'an unknown version'}"
        if built is None or newest is None or _major(newest) >= _major(built):
            return Check("driver", "ok", found if built is None else f"{found}; torch was built for {built}")
        remedy = f"update the driver to one for CUDA {_major(built)}, or install a torch built for CUDA {_major(newest)}"
        return Check("driver", "fail", f"{found}, but torch was built for CUDA {built}", remedy)

    def check_torch(self) -> Check:
        """Returns whether torch can be imported, and calculates on the GPU where there is one."""
        if self.torch_said is None:
            return Check(
                "torch", "fail", f"import torch: {self.torch.trouble}", "install again: make setup, or pip install -e ."
            )
        said = self.torch_said
        found = f"{said['version']}, built for " + ("CPU" if said["cuda"] is None else f"CUDA {said['cuda']}")
        if said["trouble"] is not None:
            remedy = (
                "a GPU that this torch was not built for, or that is in use exclusively; see nvidia-smi and the driver line"
            )
            return Check("torch", "fail", f"{found}: {' '.join(said['trouble'].split())}", remedy)
        if self.driver is not None and not self.devices:
            remedy = "see the gpu and driver lines" if said["cuda"] else "install a torch built for CUDA (requirements, README)"
            return Check("torch", "fail", f"{found}: it sees no GPU, and there is a driver", remedy)
        return Check("torch", "ok", found + (", calculates on every GPU" if self.devices else ""))

    def check_memory(self) -> Check:
        """Returns how much of each GPU's memory is free."""
        if not self.devices:
            return Check("gpu memory", "ok", "see the gpu line" if self.is_there else "none needed without a GPU")
        parts = [f"{gib(device['free'])} of {gib(device['total'])} free" for device in self.devices]
        found = "; ".join(f"cuda:{number} {part}" for number, part in enumerate(parts))
        least = min(device["free"] for device in self.devices)
        share = min(device["free"] / device["total"] for device in self.devices)
        remedy = "end what holds it (nvidia-smi shows which process), or ask for less: --gpu_mem_util"
        if least < GIB or share < FREE_SHARE:
            return Check("gpu memory", "fail" if least < GIB else "warn", found, remedy)
        return Check("gpu memory", "ok", found)

    def check_vllm(self) -> Check:
        """Returns whether vLLM can be imported; without a GPU it is not missed."""
        if importlib.util.find_spec("vllm") is None:
            if not self.is_there:
                return Check("vllm", "ok", "not installed; --engine transformers serves without a GPU")
            remedy = "pip install 'grpo-gsm8k[vllm]' for speed; --engine transformers works without"
            return Check("vllm", "warn", "not installed", remedy)
        answer = ask([sys.executable, "-c", ASK_VLLM], VLLM_TIMEOUT_S)
        if answer.code == 0:
            return Check("vllm", "ok", f"{answer.output.strip().splitlines()[-1]}, imports")
        remedy = "install the version of requirements beside this torch; --engine transformers works without"
        return Check("vllm", "fail" if self.is_there else "warn", f"import vllm: {answer.trouble}", remedy)


def _major(version: str) -> int:
    return int(version.split(".")[0])
