"""Which engine is taken, and what is said of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_model

from grpo_gsm8k.engines.select import choose_engine, make_engine
from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.errors import ConfigError, EngineError

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="a vLLM is installed here")
without_cuda = pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="a CUDA device is here")


@pytest.mark.parametrize(
    ("has_cuda", "has_vllm", "name", "word"),
    [
        (True, True, "vllm", "vLLM is installed"),
        (True, False, "transformers", "vLLM is not installed"),
        (False, True, "transformers", "no CUDA device"),
        (False, False, "transformers", "no CUDA device"),
    ],
)
def test_auto_takes_vllm_only_where_cuda_and_vllm_are_and_says_why(has_cuda, has_vllm, name, word) -> None:
    chosen, why = choose_engine("auto", has_cuda=has_cuda, has_vllm=has_vllm)
    assert chosen == name
    assert word in why


@pytest.mark.parametrize("name", ["transformers", "openai", "vllm"])
def test_an_engine_asked_for_is_taken_even_without_cuda(name: str) -> None:
    assert choose_engine(name, has_cuda=False, has_vllm=True) == (name, "asked for")


def test_an_unknown_engine_is_told_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'transformers'") as caught:
        choose_engine("transformer", has_cuda=True, has_vllm=True)
    assert "auto, openai, transformers, vllm" in str(caught.value)


def test_vllm_asked_for_and_absent_says_what_to_install() -> None:
    with pytest.raises(EngineError, match=r"grpo-gsm8k\[vllm\]"):
        choose_engine("vllm", has_cuda=True, has_vllm=False)


@without_cuda
def test_auto_makes_a_live_transformers_engine(tmp_path: Path) -> None:
    engine, why = make_engine("auto", model_id=str(make_model(tmp_path)), batch_size=3)
    assert isinstance(engine, TransformersEngine)
    assert engine.capabilities.batch_size == 3
    assert "no CUDA device" in why


def test_auto_with_a_device_named_is_transformers_on_that_device(tmp_path: Path) -> None:
    engine, why = make_engine("auto", model_id=str(make_model(tmp_path)), device="cpu")
    assert engine.describe()["device"] == "cpu"
    assert "device cpu is named" in why


def test_an_option_that_the_engine_would_ignore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"base_url is given, but engine transformers .* belongs to openai"):
        make_engine("transformers", model_id="m", base_url="http://localhost:1/v1")
    with pytest.raises(ConfigError, match=r"adapter is given, but engine openai .* belongs to transformers and vllm"):
        make_engine("openai", model_id="m", base_url="http://localhost:1/v1", adapter=tmp_path)
    with pytest.raises(ConfigError, match="needs the server's address"):
        make_engine("openai", model_id="m")


@without_vllm
def test_naming_the_modules_of_choice_imports_no_vendor() -> None:
    code = (
        "import sys, grpo_gsm8k.engines.select, grpo_gsm8k.engines.loading, grpo_gsm8k.engines.scripted\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'httpx'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
