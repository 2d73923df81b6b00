"""What an evaluation worker is told: everything it needs, as JSON, since it is a process of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from grpo_gsm8k.errors import ConfigError, unknown_name
from grpo_gsm8k.loops.rollouts import RolloutLimits
from grpo_gsm8k.rewards.registry import GRADERS
from grpo_gsm8k.runs.determinism import MODES, environment
from grpo_gsm8k.types import Sampling

ENGINES = ("transformers", "vllm")  # those that take new weights while running
_THREAD_VARIABLES = frozenset({"OMP_NUM_THREADS", "MKL_NUM_THREADS"})


@dataclass(frozen=True)
class EnvEvalSpec:
    """An environment to evaluate: its name and options as `envs.registry.make_env` takes them, its template, its limits.

    `template` is a shipped name or a path, whose file must have `template_sha256`.
    """

    name: str
    template: str
    template_sha256: str
    limits: RolloutLimits
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EnvEvalSpec:
        """Returns the spec whose fields `values` holds as JSON."""
        return cls(**{**values, "limits": RolloutLimits(**values["limits"])})


@dataclass(frozen=True)
class EvalWorkerSpec:
    """An evaluation, its engine and its place.

    With `env`, the eval set is a JSONL of problems (data.rows.to_row), which the worker renders; the environment scores its
    rollouts and the engine makes its batches, so `graders` and `batch_size` must be left out. `sampling.max_tokens` is then
    that of the limits.

    `engine_arguments` are those of `engines.select.make_engine` after the name. `eval_examples` None is the whole eval set;
    `batch_size` None is the engine's own. `visible_devices` is the worker's CUDA_VISIBLE_DEVICES (None: as the trainer's; ""
    hides every GPU; see `visible_device`). Raises: ConfigError for what no worker can do.
    """

    run_path: str
    engine: str
    engine_arguments: Mapping[str, Any]
    eval_set_path: str
    eval_examples: int | None = None
    graders: tuple[str, ...] = ("numeric",)
    sampling: Sampling = field(default_factory=Sampling)
    num_samples: int = 1
    seed: int = 0
    batch_size: int | None = None
    num_threads: int = 1
    determinism: str = "strict"
    visible_devices: str | None = None
    env: EnvEvalSpec | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked before a process is started."""
        if self.engine not in ENGINES:
            raise ConfigError(
                f"an evaluation worker needs an engine that takes new weights: {unknown_name('engine', self.engine, ENGINES)}"
            )
        for name in self.graders:
            if name not in (*GRADERS, "gym"):
                raise ConfigError(unknown_name("grader", name, GRADERS))
        if self.env is not None and (self.graders or self.batch_size is not None):
            raise ConfigError("an environment scores its own rollouts in the engine's batches: graders and batch_size are none")
        if self.env is None and not self.graders:
            raise ConfigError(f"graders is empty: allowed is any of {', '.join(GRADERS)}")
        if self.determinism not in MODES:
            raise ConfigError(unknown_name("determinism mode", self.determinism, MODES))
        if self.num_threads < 1 or self.num_samples < 1:
            raise ConfigError("num_threads and num_samples of an evaluation worker must be 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvalWorkerSpec:
        """Returns the spec that `to_json` gave."""
        sampling = values["sampling"]
        return cls(
            **{
                **values,
                "graders": tuple(values["graders"]),
                "sampling": Sampling(**{**sampling, "stop": tuple(sampling["stop"])}),
                "env": None if values["env"] is None else EnvEvalSpec.from_json(values["env"]),
            }
        )

    def worker_environment(self, trainer: Mapping[str, str]) -> dict[str, str]:
        """Returns the worker's environment variables: the trainer's, with the worker's own threads, toggles and devices."""
        wanted = environment(self.determinism, self.num_threads)
        ours = {name: value for name, value in wanted.items() if name in _THREAD_VARIABLES or name not in trainer}
        if self.visible_devices is not None:
            ours["CUDA_VISIBLE_DEVICES"] = self.visible_devices
        # A waiting thread must not spin on a core that the learner computes on; a crash in C leaves its stack in the log.
        return {"OMP_WAIT_POLICY": "passive", "PYTHONFAULTHANDLER": "1", **trainer, **ours}


def visible_device(device: str, trainer: Mapping[str, str]) -> str:
    """Returns the CUDA_VISIBLE_DEVICES that leaves a worker the one `device` ("cpu" or "cuda:N") of those the trainer sees.

    Raises: ConfigError for another name, or for a device that CUDA_VISIBLE_DEVICES hides.
    """
    if device == "cpu":
        return ""
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise ConfigError(f"{device!r} is no device of an evaluation worker: allowed is cpu, cuda or cuda:N")
    index = int(found[1] or 0)
    listed = trainer.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return str(index)
    seen = [name.strip() for name in listed.split(",") if name.strip()]
    if index >= len(seen):
        raise ConfigError(
            f"{device} is not there: CUDA_VISIBLE_DEVICES shows {len(seen)} device(s); give cuda:N with N below that"
        )
    return seen[index]
