"""Determinism: what is asked for, what was really got, and randomness that is addressed instead of consumed.

Toggles are environment variables that must stand before torch is imported (`ensure_environment` starts the process again
where PYTHONHASHSEED is not as asked), and settings of the torch module, which is passed in: this layer never imports torch.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from dataclasses import dataclass
from typing import Any

from grpo_gsm8k.runs.container import chosen_by_image

MODES = ("strict", "fast")
SEED_BITS = 48
_RESTARTED = "GRPO_GSM8K_RESTARTED"
_HASH_SEED_AT_START = os.environ.get("PYTHONHASHSEED", "random")  # later changes of the variable change nothing


@dataclass(frozen=True)
class Toggle:
    """One determinism toggle: what was asked for, what is in force, and who decided ("harness", "image" or "environment")."""

    name: str
    asked: str
    got: str
    decided_by: str = "harness"

    @property
    def held(self) -> bool:
        """Whether what was got is what was asked for."""
        return self.asked in (self.got, "as is")


def derive_seed(run_seed: int, step: int, problem_id: str, sample_index: int) -> int:
    """Returns the 48-bit seed of one sample: a function of its address alone, so order, batch and resumption cannot matter."""
    address = f"{run_seed}\x1f{step}\x1f{problem_id}\x1f{sample_index}".encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(address, digest_size=SEED_BITS // 8).digest(), "big")


def environment(mode: str, num_threads: int) -> dict[str, str]:
    """Returns the variables that must stand before torch is imported."""
    threads = str(num_threads)
    toggles = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if mode == "strict":
        toggles |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0"}
    return toggles


def ensure_environment(mode: str, num_threads: int, *, may_restart: bool) -> list[Toggle]:
    """Sets what is not set, and returns each toggle asked and got; a value that the user's environment holds is kept.

    PYTHONHASHSEED works only from the start of a process: where it differs and `may_restart`, the process is replaced by
    itself (same interpreter, same arguments) with the variables in place.
    """
    asked = environment(mode, num_threads)
    owned = {name for name in asked if name in os.environ} - set(os.environ.get(_RESTARTED, "").split(","))
    owned -= {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}  # an option of ours sets these; the option is where to change them
    if (
        may_restart
        and _RESTARTED not in os.environ
        and _hash_seed() != os.environ.get("PYTHONHASHSEED", asked["PYTHONHASHSEED"])
    ):
        ours = {name: value for name, value in asked.items() if name not in owned}
        fresh = {**os.environ, **ours, _RESTARTED: ",".join(ours)}
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], fresh)
    by_image = chosen_by_image()

    def decider(name: str) -> str:
        return "image" if name in by_image else "environment"

    toggles = []
    for name, value in asked.items():
        if name not in owned:
            os.environ[name] = value
        got = os.environ[name] if name != "PYTHONHASHSEED" else _hash_seed()
        toggles.append(Toggle(name, value, got, decider(name) if name in owned else "harness"))
    # What only strict mode asks for works in fast mode too, where it stands.
    unasked = environment("strict", num_threads).keys() - asked.keys()
    toggles += [Toggle(name, "as is", os.environ[name], decider(name)) for name in sorted(unasked) if name in os.environ]
    return toggles


def _hash_seed() -> str:
    """Returns the hash seed this process really runs with: "0" where hashing is not randomised."""
    if sys.flags.hash_randomization == 0:
        return "0"
    return "random" if sys.flags.ignore_environment else _HASH_SEED_AT_START


def seed_python(seed: int) -> None:
    """Seeds Python's and NumPy's global generators, for libraries that draw from them."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def configure_torch(torch: Any, mode: str, seed: int, num_threads: int) -> list[Toggle]:
    """Seeds and pins the torch module that is passed in, and returns each toggle asked and got."""
    strict = mode == "strict"
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.deterministic = strict
    torch.backends.cudnn.benchmark = not strict
    if strict:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    got: dict[str, tuple[Any, Any]] = {
        "torch.num_threads": (num_threads, torch.get_num_threads()),
        "torch.use_deterministic_algorithms": (strict, torch.are_deterministic_algorithms_enabled()),
        "torch.backends.cudnn.deterministic": (strict, torch.backends.cudnn.deterministic),
        "torch.backends.cudnn.benchmark": (not strict, torch.backends.cudnn.benchmark),
        "torch.backends.cuda.matmul.allow_tf32": (False if strict else "as is", torch.backends.cuda.matmul.allow_tf32),
        "torch.backends.cudnn.allow_tf32": (False if strict else "as is", torch.backends.cudnn.allow_tf32),
        "torch.initial_seed": (seed, torch.initial_seed()),
    }
    return [Toggle(name, str(asked), str(value)) for name, (asked, value) in got.items()]
