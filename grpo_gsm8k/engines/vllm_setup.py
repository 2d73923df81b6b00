"""What must hold before vLLM starts: checked, read and set without importing it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

from grpo_gsm8k.engines.adapters import read_adapter_config
from grpo_gsm8k.engines.loading import DTYPES, load_failure, quieten_transformers
from grpo_gsm8k.errors import EngineError, InputError, ModelError, unknown_name

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM takes for its largest rank

# In one process, which requests share a batch follows from the calls alone, not from timing.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
# Without TORCHDYNAMO_DISABLE the first CPU request waits for a C++ compiler; the KV cache is in GiB.
CPU_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def check_choices(tp_size: int, gpu_mem_util: float, dtype: str) -> bool:
    """Returns whether this is a CPU build, having checked what can be said before vLLM is imported."""
    if tp_size < 1:
        raise InputError(f"tp_size is {tp_size}; it must be 1 or more")
    if not 0 < gpu_mem_util <= 1:
        raise InputError(f"gpu_mem_util is {gpu_mem_util}; it must be above 0 and at most 1")
    if dtype not in DTYPES:
        raise ModelError(unknown_name("dtype", dtype, DTYPES))
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "vllm is not installed; on a CUDA host: pip install 'grpo-gsm8k[vllm]', else use --engine transformers"
        )
    on_cpu = torch.version.cuda is None and torch.version.hip is None
    if not on_cpu and not torch.cuda.is_available():
        raise EngineError("this vllm is a CUDA build, but torch sees no CUDA device; use --engine transformers")
    num_devices = 1 if on_cpu else torch.cuda.device_count()
    if tp_size > num_devices:
        raise EngineError(f"tp_size is {tp_size}, but torch sees {num_devices} device(s); use --tp-size {num_devices} or less")
    return on_cpu


def set_environment(on_cpu: bool) -> dict[str, str]:
    """Sets what vLLM reads from the environment, where the user has not, and returns what holds."""
    wanted = ENVIRONMENT | CPU_ENVIRONMENT if on_cpu else ENVIRONMENT
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    dynamo = sys.modules.get("torch._dynamo")
    if on_cpu and dynamo is not None and os.environ["TORCHDYNAMO_DISABLE"] == "1":
        dynamo.config.disable = True  # it has read the variable already
    return {name: os.environ[name] for name in sorted(wanted)}


def read_config(source: str, revision: str | None) -> Any:
    """Returns the model's config. Raises: ModelError, HubError."""
    from transformers import AutoConfig

    quieten_transformers()
    try:
        return AutoConfig.from_pretrained(source, revision=None if Path(source).is_dir() else revision)
    except Exception as error:
        raise load_failure("config", source, revision, error) from error


def resolve_dtype(dtype: str, on_cpu: bool, config: Any) -> str:
    """vLLM's own "auto" narrows a float32 checkpoint to 16 bits without a word; this never does."""
    if dtype != "auto":
        return dtype
    if on_cpu:
        return "float32"
    saved = config.get_text_config().dtype
    return "auto" if saved is None else str(saved).removeprefix("torch.")


def lora_rank(path: Path) -> int:
    """Returns the smallest of vLLM's rank limits that takes the LoRA adapter in `path`. Raises: ModelError."""
    config = read_adapter_config(path)
    kind, rank = config.get("peft_type"), config.get("r")
    if kind != "LORA" or not isinstance(rank, int) or config.get("modules_to_save"):
        raise ModelError(f"vllm takes LoRA adapters without modules_to_save only; {str(path)!r} is {kind}: merge it first")
    ranks = [rank, *(config.get("rank_pattern") or {}).values()]
    fitting = [limit for limit in LORA_RANKS if limit >= max(ranks)]
    if not fitting:
        raise ModelError(f"adapter {str(path)!r} has rank {max(ranks)}; vllm takes up to {LORA_RANKS[-1]}: merge it first")
    return fitting[0]
