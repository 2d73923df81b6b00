"""What is checked before vLLM starts: no vLLM is needed for these."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_model
from transformers import Qwen2Config

from grpo_gsm8k.engines.vllm_setup import CPU_ENVIRONMENT, check_choices, lora_rank, resolve_dtype, set_environment
from grpo_gsm8k.errors import EngineError, InputError, ModelError


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is here")
def test_without_vllm_one_line_says_what_to_install(tmp_path: Path) -> None:
    from grpo_gsm8k.engines.vllm import VllmEngine

    with pytest.raises(EngineError, match=r"vllm is not installed; .*pip install 'grpo-gsm8k\[vllm\]'.*--engine transformers"):
        VllmEngine(str(make_model(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0.9, "auto"), "tp_size is 0"),
        ((1, 0.0, "auto"), "gpu_mem_util is 0.0"),
        ((1, 1.5, "auto"), "gpu_mem_util is 1.5"),
        ((1, 0.9, "bfloat61"), "did you mean 'bfloat16'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(arguments: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_choices(*arguments)


def test_the_users_environment_wins_and_the_rest_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", *CPU_ENVIRONMENT}:
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    got = set_environment(on_cpu=True)
    assert got == {
        "TORCHDYNAMO_DISABLE": "0",
        "VLLM_CPU_KVCACHE_SPACE": "7",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    assert all(os.environ[name] == value for name, value in got.items())


def test_on_cuda_nothing_of_the_cpu_build_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "1")
    assert set(set_environment(on_cpu=False)).isdisjoint({"TORCHDYNAMO_DISABLE", "VLLM_CPU_KVCACHE_SPACE"})


def test_a_float32_checkpoint_is_never_narrowed() -> None:
    assert resolve_dtype("auto", False, Qwen2Config(dtype="float32")) == "float32"
    assert resolve_dtype("auto", False, Qwen2Config(dtype="bfloat16")) == "bfloat16"
    assert resolve_dtype("auto", True, Qwen2Config(dtype="bfloat16")) == "float32"
    assert resolve_dtype("float16", True, Qwen2Config(dtype="bfloat16")) == "float16"


def write_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_an_adapters_rank_is_rounded_up_to_one_that_vllm_takes(tmp_path: Path) -> None:
    assert lora_rank(write_adapter(tmp_path, r=1)) == 1
    assert lora_rank(write_adapter(tmp_path, r=9)) == 16
    assert lora_rank(write_adapter(tmp_path, r=8, rank_pattern={"q_proj": 33})) == 64


def test_an_adapter_that_vllm_cannot_take_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a PEFT adapter folder"):
        lora_rank(tmp_path / "none")
    with pytest.raises(ModelError, match="is IA3: merge it first"):
        lora_rank(write_adapter(tmp_path, peft_type="IA3"))
    with pytest.raises(ModelError, match="modules_to_save"):
        lora_rank(write_adapter(tmp_path, modules_to_save=["lm_head"]))
    with pytest.raises(ModelError, match="has rank 1024; vllm takes up to 512"):
        lora_rank(write_adapter(tmp_path, r=1024))
