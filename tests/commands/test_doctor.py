"""`doctor`: each line, on machines made of stand-ins for what is not ours (nvidia-smi, torch, vLLM), and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_gsm8k.commands import doctor_checks as host
from grpo_gsm8k.commands import doctor_gpu
from grpo_gsm8k.commands.doctor_checks import Check, run_checks, worst
from grpo_gsm8k.commands.doctor_gpu import Accelerator, ask

DRIVER_REPORT = "Driver Version : {driver}\nCUDA Version : {cuda}\n"
GPU_TORCH = """
__version__ = "2.13.0"
class version: cuda = {cuda!r}
float32 = None
class Ones:
    def __matmul__(self, other): return self
    def sum(self): return {product}
def ones(*sizes, device): return Ones()
class cuda:
    device_count = staticmethod(lambda: {num_devices})
    mem_get_info = staticmethod(lambda number: ({free}, 80 * 2**30))
    get_device_name = staticmethod(lambda number: "NVIDIA H100")
"""


class Machine:
    """A folder of stand-ins: the only commands on the PATH, modules that come first for a new Python."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("cat", "sleep"):
            (folder / name).symlink_to(f"/bin/{name}")
        monkeypatch.setenv("PATH", str(folder))  # alone: a machine with a GPU has its nvidia-smi in /usr/bin
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def nvidia_smi(self, script: str) -> None:
        (self.folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "nvidia-smi").chmod(0o755)

    def driver(self, driver: str = "580.95.05", cuda: str = "13.0") -> None:
        self.nvidia_smi(f"cat <<'END'\n{DRIVER_REPORT.format(driver=driver, cuda=cuda)}END")

    def torch(self, num_devices: int = 1, cuda: str | None = "13.0", free: int = 79 * 2**30, product: float = 64.0**3) -> None:
        text = GPU_TORCH.format(num_devices=num_devices, cuda=cuda, free=free, product=product)
        (self.folder / "torch.py").write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def states(accelerator: Accelerator) -> dict[str, str]:
    checks = (accelerator.check_gpu, accelerator.check_driver, accelerator.check_torch, accelerator.check_memory)
    return {check.name: check.state for check in run_checks([("?", check) for check in checks])}


def test_a_machine_with_a_gpu_that_works_is_ok(machine: Machine) -> None:
    machine.driver()
    machine.torch()
    accelerator = Accelerator()
    assert states(accelerator) == {"gpu": "ok", "driver": "ok", "torch": "ok", "gpu memory": "ok"}
    assert accelerator.check_gpu().found == "1: NVIDIA H100"
    assert accelerator.check_driver().found == "580.95.05, for CUDA up to 13.0; torch was built for 13.0"
    assert accelerator.check_memory().found == "cuda:0 79.0 GiB of 80.0 GiB free"


def test_a_machine_without_a_gpu_is_warned_of_and_not_failed(machine: Machine) -> None:
    machine.torch(num_devices=0, cuda=None)
    accelerator = Accelerator()
    assert states(accelerator) == {"gpu": "warn", "driver": "ok", "torch": "ok", "gpu memory": "ok"}
    assert "tiny" in accelerator.check_gpu().found
    assert "--gpus all" in (accelerator.check_gpu().remedy or "")


def test_a_driver_older_than_torchs_cuda_fails_with_both_ways_out(machine: Machine) -> None:
    machine.driver("535.183.01", "12.2")
    machine.torch(num_devices=0)
    accelerator = Accelerator()
    check = accelerator.check_driver()
    assert (check.state, accelerator.check_gpu().state, accelerator.check_torch().state) == ("fail", "fail", "fail")
    assert check.found == "535.183.01, for CUDA up to 12.2, but torch was built for CUDA 13.0"
    assert check.remedy == "update the driver to one for CUDA 13, or install a torch built for CUDA 12"


def test_a_minor_version_of_cuda_above_the_drivers_is_fine(machine: Machine) -> None:
    machine.driver(cuda="13.0")
    machine.torch(cuda="13.2")
    assert Accelerator().check_driver().state == "ok"


def test_a_cpu_build_of_torch_beside_a_gpu_fails(machine: Machine) -> None:
    machine.driver()
    machine.torch(num_devices=0, cuda=None)
    check = Accelerator().check_torch()
    assert check.state == "fail"
    assert check.found == "2.13.0, built for CPU: it sees no GPU, and there is a driver"


def test_hidden_gpus_are_named_by_the_variable_that_hides_them(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.driver()
    machine.torch(num_devices=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Accelerator().check_gpu().remedy == "CUDA_VISIBLE_DEVICES='' hides them: unset it"


def test_a_gpu_that_miscalculates_fails(machine: Machine) -> None:
    machine.driver()
    machine.torch(product=1.0)
    check = Accelerator().check_torch()
    assert (check.state, check.found) == ("fail", "2.13.0, built for CUDA 13.0: AssertionError: a product of ones is wrong")


@pytest.mark.parametrize(("free_gib", "state"), [(0.5, "fail"), (20, "warn"), (60, "ok")])
def test_memory_that_others_hold_is_told(machine: Machine, free_gib: float, state: str) -> None:
    machine.driver()
    machine.torch(free=int(free_gib * 2**30))
    assert Accelerator().check_memory().state == state


def test_an_nvidia_smi_that_fails_is_quoted(machine: Machine) -> None:
    machine.nvidia_smi("echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18")
    machine.torch(num_devices=0)
    accelerator = Accelerator()
    assert accelerator.check_gpu().found == "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"
    assert (accelerator.check_gpu().state, accelerator.check_driver().state) == ("fail", "fail")


def test_an_nvidia_smi_that_hangs_is_given_up_with_its_children(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.nvidia_smi(f"sleep 300 & echo $! > {machine.folder}/child; wait")
    machine.torch(num_devices=0)
    monkeypatch.setattr(doctor_gpu, "NVIDIA_TIMEOUT_S", 0.5)
    started = time.monotonic()
    check = Accelerator().check_gpu()
    assert (check.state, check.found) == ("fail", "nvidia-smi: no answer within 0.5 s")
    assert time.monotonic() - started < 5
    child = int((machine.folder / "child").read_text())
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() - started < 10, "the hanging command's child is still running"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "ImportError: libcudart.so.13: cannot open"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_one_failed_line(machine: Machine, module: str, said: str) -> None:
    (machine.folder / "torch.py").write_text(module)
    check = Accelerator().check_torch()
    assert check.state == "fail"
    assert check.found.startswith(f"import torch: {said}")


@pytest.mark.parametrize(("gpu", "state"), [(True, "fail"), (False, "warn")])
def test_a_broken_vllm_fails_where_there_is_a_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, gpu: bool, state: str
) -> None:
    if gpu:
        machine.driver()
    machine.torch(num_devices=int(gpu))
    (machine.folder / "vllm.py").write_text("raise ImportError('undefined symbol: cutlass')")
    monkeypatch.syspath_prepend(machine.folder)
    check = Accelerator().check_vllm()
    assert (check.state, check.found) == (state, "import vllm: ImportError: undefined symbol: cutlass")


def test_a_check_that_breaks_is_a_line_and_the_next_one_is_still_made() -> None:
    def broken() -> Check:
        raise PermissionError(13, "Permission denied", "/cache")

    first, second = run_checks([("hub cache", broken), ("python", host.check_python)])
    assert (first.name, first.state) == ("hub cache", "fail")
    assert first.found == "could not be checked: PermissionError: [Errno 13] Permission denied: '/cache'"
    assert second.state == "ok"


def test_a_secret_in_what_was_found_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    (check,) = run_checks([("x", lambda: Check("x", "fail", "at correct-horse-battery", "with hf_abcdefghijklmnopqrstuv"))])
    assert (check.found, check.remedy) == ("at [redacted]", "with [redacted]")


def test_the_worst_line_decides() -> None:
    ok, warn, fail = (Check("x", state, "") for state in ("ok", "warn", "fail"))
    assert [worst([]), worst([ok]), worst([ok, warn]), worst([fail, warn])] == ["ok", "ok", "warn", "fail"]


def test_a_toggle_in_the_environment_that_a_strict_run_would_not_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "TOKENIZERS_PARALLELISM", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    assert host.check_determinism().state == "ok"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    check = host.check_determinism()
    assert (check.state, check.remedy) == ("warn", "unset NVIDIA_TF32_OVERRIDE")
    assert check.found == "kept in place of strict ones: NVIDIA_TF32_OVERRIDE=1"


def test_a_wandb_mode_that_nothing_reads_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    check = host.check_wandb()
    assert (check.state, check.remedy) == ("warn", "the option decides: --wandb online")
    assert check.found == "offline by default, no key; WANDB_MODE=online is not read"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password correct-horse")
    assert "a key is there" in host.check_wandb().found


def test_too_little_shared_memory_names_the_docker_option(tmp_path: Path) -> None:
    check = host.check_shared_memory(tmp_path / "none")
    assert (check.state, check.remedy) == ("warn", "give the container one: docker run --shm-size 8g")
    assert host.check_shared_memory(tmp_path).state == "ok"


def test_a_cache_and_runs_under_a_file_fail_with_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    check = host.check_hub_cache()
    assert (check.state, check.remedy) == ("fail", "set HF_HOME to a folder of yours")
    check = host.check_disk(tmp_path / "file" / "artifacts")
    assert (check.state, check.found) == ("fail", f"{tmp_path / 'file'} cannot be written")


def run_doctor(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the real command with a quick torch (the stand-in), so that only what is ours takes time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_", "HUGGING"))}
    command = [sys.executable, "-m", "grpo_gsm8k.cli", "doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**kept, "PYTHONPATH": f"{folder}:{Path.cwd()}", **environment}
    )


def test_the_command_says_every_line_with_a_remedy_and_no_secret(machine: Machine, tmp_path: Path) -> None:
    machine.torch(num_devices=0, cuda=None)
    done = run_doctor(tmp_path, "--artifacts-dir", str(tmp_path), HF_HOME=str(tmp_path / "hf"), HF_TOKEN="hf_" + "a" * 30)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok", "warn", "fail"))]
    assert [line[6:19].strip() for line in lines] == [
        *("python", "gpu", "driver", "torch", "gpu memory", "vllm", "determinism", "shared memory", "disk"),
        *("hub token", "hub cache", "wandb", "container"),
    ]
    assert "in HF_TOKEN" in done.stdout
    assert "aaaa" not in done.stdout + done.stderr
    assert done.stdout.count("→") == sum(line.startswith("warn") for line in lines)
    assert not (tmp_path / "hf").exists(), "doctor changes nothing"


def test_a_failed_line_ends_with_exit_code_1_and_json_stays_json(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no such file')")
    done = run_doctor(tmp_path, "--json", HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    said = json.loads(done.stdout)
    found = {check["name"]: check for check in said["checks"]}
    assert (done.returncode, said["worst"], found["torch"]["state"]) == (1, "fail", "fail")
    assert done.stderr == "error: this machine is not fit for runs: torch\n"
    assert (found["hub cache"]["state"], found["hub token"]["state"]) == ("warn", "warn")
    assert all(check["remedy"] for check in said["checks"] if check["state"] != "ok")


def test_a_command_that_is_not_there_is_said_without_a_traceback() -> None:
    answer = ask(["/nonexistent/nvidia-smi"], 1.0)
    assert (answer.code, answer.trouble) == (None, "cannot be started: No such file or directory")
