"""Which engine a run gets, and why; and the engine itself from plain arguments. Vendors are imported only when chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.errors import ConfigError, EngineError, unknown_name

ENGINE_NAMES = ("openai", "transformers", "vllm")
AUTO = "auto"
INSTALL_VLLM = "pip install 'grpo-gsm8k[vllm]' (a CUDA host), or use --engine transformers"


def vllm_is_importable() -> bool:
    """Returns whether a vLLM is installed, whatever its distribution is called (its CPU build has another name)."""
    return importlib.util.find_spec("vllm") is not None


def cuda_is_there() -> bool:
    """Returns whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def choose_engine(requested: str, *, has_cuda: bool, has_vllm: bool) -> tuple[str, str]:
    """Returns the engine's name and, in one line, why: "auto" is vllm where CUDA and vLLM are, else transformers.

    Raises: ConfigError for an unknown name; EngineError when vllm is asked for and not installed.
    """
    if requested == AUTO:
        if has_cuda and has_vllm:
            return "vllm", "auto: torch sees a CUDA device and vLLM is installed"
        if has_cuda:
            return "transformers", "auto: torch sees a CUDA device, but vLLM is not installed"
        return "transformers", "auto: torch sees no CUDA device"
    if requested not in ENGINE_NAMES:
        raise ConfigError(unknown_name("engine", requested, (AUTO, *ENGINE_NAMES)))
    if requested == "vllm" and not has_vllm:
        raise EngineError(f"engine vllm asked for, but vLLM is not installed: {INSTALL_VLLM}")
    return requested, "asked for"


def make_engine(
    requested: str,
    *,
    model_id: str,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
    batch_size: int | None = None,
    tp_size: int = 1,
    gpu_mem_util: float = 0.9,
    max_model_len: int | None = None,
    seed: int = 0,
    base_url: str | None = None,
    api: Literal["completions", "chat"] = "completions",
    concurrency: int = 32,
    max_retries: int = 6,
    timeout_s: float = 600.0,
    requests_per_minute: float | None = None,
    logprobs_mode: Literal["raw", "processed"] = "raw",
) -> tuple[Engine, str]:
    """Returns a live engine and why it was chosen; each engine takes the arguments that are its own.

    transformers: device, dtype, adapter, batch_size. vllm: dtype, adapter, tp_size, gpu_mem_util, max_model_len, seed. openai:
    base_url, api, concurrency, max_retries, timeout_s, requests_per_minute, logprobs_mode.
    Raises: ConfigError when something is asked for that the chosen engine cannot do; what the engine itself raises.
    """
    asked = {
        "base_url": base_url is not None,
        "adapter": adapter is not None,
        "batch_size": batch_size is not None,
        "max_model_len": max_model_len is not None,
        "tp_size": tp_size != 1,
        "device": device != AUTO,
        "dtype": dtype != "auto",
    }
    if requested == AUTO and device != AUTO:
        name, why = "transformers", f"auto: device {device} is named, and only transformers takes one"
    else:
        has_cuda = requested == AUTO and cuda_is_there()
        name, why = choose_engine(requested, has_cuda=has_cuda, has_vllm=vllm_is_importable())
    _refuse_what_does_not_apply(name, why, asked)
    if name == "openai":
        if base_url is None:
            raise ConfigError("engine openai needs the server's address: give --base-url (such as http://localhost:8000/v1)")
        from grpo_gsm8k.engines.openai import OpenAIEngine

        return OpenAIEngine(
            base_url,
            model_id,
            api=api,
            concurrency=concurrency,
            max_retries=max_retries,
            timeout_s=timeout_s,
            requests_per_minute=requests_per_minute,
            logprobs_mode=logprobs_mode,
        ), why
    if name == "vllm":
        from grpo_gsm8k.engines.vllm import VllmEngine

        return VllmEngine(
            model_id,
            tp_size=tp_size,
            gpu_mem_util=gpu_mem_util,
            dtype=dtype,
            max_model_len=max_model_len,
            revision=revision,
            adapter=adapter,
            seed=seed,
        ), why
    from grpo_gsm8k.engines.transformers import TransformersEngine

    return TransformersEngine(
        model_id, device=device, dtype=dtype, adapter=adapter, batch_size=batch_size, revision=revision
    ), why


_APPLIES: Mapping[str, frozenset[str]] = {
    "openai": frozenset({"base_url"}),
    "transformers": frozenset({"adapter", "batch_size", "device", "dtype"}),
    "vllm": frozenset({"adapter", "dtype", "max_model_len", "tp_size"}),
}


def _refuse_what_does_not_apply(name: str, why: str, asked: Mapping[str, Any]) -> None:
    """An option that the engine would ignore is an error, so that nobody believes that it was followed."""
    for option, given in asked.items():
        if given and option not in _APPLIES[name]:
            able = [engine for engine in ENGINE_NAMES if option in _APPLIES[engine]]
            raise ConfigError(f"{option} is given, but engine {name} ({why}) takes none; it belongs to {' and '.join(able)}")
