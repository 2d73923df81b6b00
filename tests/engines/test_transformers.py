"""The transformers engine, on tiny random models of each architecture."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conformance import CHECKS, Subject
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, EOS_ID, make_model

from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.errors import EngineError, InputError, ModelError, PromptError
from grpo_gsm8k.types import Completion, Prompt, Sampling


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(str(folder), device="cpu")


# Random models seldom end by themselves: with several tokens that end, rows finish at different times.
OFTEN_ENDING = [EOS_ID, *range(0, 240, 16)]


def random_prompts(count: int, seed: int = 0, longest: int = 30) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt(f"p{i}", tuple(rng.randrange(256) for _ in range(rng.randrange(3, longest)))) for i in range(count)]


def full_forward_logits(model: torch.nn.Module, prompt: Prompt, completion: Completion) -> torch.Tensor:
    """Logits [T, V] at the positions that gave the completion's tokens, from one pass without a cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt.token_ids + completion.token_ids]), use_cache=False).logits[0]
    return logits[len(prompt.token_ids) - 1 : -1]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_engine_conforms(check, engine: TransformersEngine) -> None:
    prompts = random_prompts(10)
    check(Subject(engine, prompts, lambda ids: engine.tokenizer.decode(ids, skip_special_tokens=True)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_plain_generate_and_a_full_forward(architecture: str, attention: str, tmp_path: Path) -> None:
    engine = TransformersEngine(
        str(make_model(tmp_path, architecture, eos_token_id=OFTEN_ENDING)), device="cpu", attention=attention
    )
    model = engine._live_model()
    prompts = random_prompts(14)
    prompts += prompts[3:6]
    out = engine.generate(prompts, Sampling(max_tokens=48), [0] * len(prompts))
    lengths = [len(c.token_ids) for c in out]
    assert len(set(lengths)) > 3, "rows end at different times, so that the batch is compacted"
    for prompt, completion in zip(prompts, out, strict=True):
        ids = torch.tensor([prompt.token_ids])
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False, pad_token_id=EOS_ID
        )
        assert completion.token_ids == tuple(plain[0, ids.shape[1] :].tolist())
        assert completion.stop_reason == ("eos" if completion.token_ids[-1] in OFTEN_ENDING else "length")
        logprobs = full_forward_logits(model, prompt, completion).log_softmax(-1)
        wanted = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert torch.tensor(completion.logprobs).sub(wanted).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_logprobs_are_those_of_the_processed_distribution(architecture: str, tmp_path: Path) -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    engine = TransformersEngine(str(make_model(tmp_path, architecture)), device="cpu", batch_size=16)
    prompts = [prompt for prompt in random_prompts(5, seed=1) for _ in range(4)]
    out = engine.generate(prompts, Sampling(temperature=0.7, top_p=0.9, top_k=20, max_tokens=32), range(len(prompts)))
    warp = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.9)])
    for prompt, completion in zip(prompts, out, strict=True):
        logprobs = warp(None, full_forward_logits(engine._live_model(), prompt, completion)).log_softmax(-1)
        wanted = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert torch.tensor(completion.logprobs).sub(wanted).abs().max() < 1e-5
    assert len({c.token_ids for c in out}) > len(prompts) // 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compaction_and_shared_prefill_change_no_token(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grpo_gsm8k.engines import decoding

    engine = TransformersEngine(str(make_model(tmp_path, architecture, eos_token_id=OFTEN_ENDING)), device="cpu")
    prompts = [prompt for prompt in random_prompts(4, seed=2) for _ in range(6)]
    sampling = Sampling(temperature=1.0, max_tokens=48)
    with_both = engine.generate(prompts, sampling, range(len(prompts)))
    make_cache = decoding.make_cache
    monkeypatch.setattr(decoding, "make_cache", lambda config: (make_cache(config)[0], False))
    without = engine.generate(prompts, sampling, range(len(prompts)))
    assert [c.token_ids for c in with_both] == [c.token_ids for c in without]
    assert len({len(c.token_ids) for c in with_both}) > 3


def test_each_distinct_prompt_is_prefilled_once(engine: TransformersEngine) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = engine._live_model().register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [prompt for prompt in random_prompts(3) for _ in range(8)]
    engine.generate(prompts, Sampling(temperature=1.0, max_tokens=4), range(24))
    hook.remove()
    assert shapes[0] == (3, max(len(p.token_ids) for p in prompts))
    assert all(shape[1] == 1 and shape[0] <= 24 for shape in shapes[1:])


def test_every_eos_of_the_generation_config_ends_a_completion(folder: Path, tmp_path: Path) -> None:
    prompts = random_prompts(6)
    free = TransformersEngine(str(folder), device="cpu").generate(prompts, Sampling(max_tokens=20), [0] * 6)
    other_eos = free[0].token_ids[4]
    changed = make_model(tmp_path)
    (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS_ID, other_eos]}))
    out = TransformersEngine(str(changed), device="cpu").generate(prompts, Sampling(max_tokens=20), [0] * 6)
    assert out[0].stop_reason == "eos"
    assert out[0].token_ids == free[0].token_ids[: free[0].token_ids.index(other_eos) + 1]


def test_a_request_that_does_not_fit_the_window_names_its_problem(engine: TransformersEngine) -> None:
    prompts = [Prompt("short", (1, 2, 3)), Prompt("train-17", (5,) * 200)]
    with pytest.raises(PromptError, match=r"'train-17': 200 prompt tokens and max_tokens 60 .* window of 256") as caught:
        engine.generate(prompts, Sampling(max_tokens=60), [0, 0], lambda *_: pytest.fail("nothing may be sampled"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"'strange'.*vocabulary of 260"):
        engine.generate([Prompt("strange", (1, 260))], Sampling(max_tokens=4), [0])
    with pytest.raises(PromptError, match="'empty'"):
        engine.generate([Prompt("empty", ())], Sampling(max_tokens=4), [0])


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_weights_sample_as_a_model_made_with_them(tied: bool, tmp_path: Path) -> None:
    first = make_model(tmp_path / "first", seed=1, tie_word_embeddings=tied)
    second = make_model(tmp_path / "second", seed=2, tie_word_embeddings=tied)
    prompts, sampling = random_prompts(4), Sampling(temperature=1.0, max_tokens=16)
    wanted = TransformersEngine(str(second), device="cpu").generate(prompts, sampling, range(4))
    engine = TransformersEngine(str(first), device="cpu")
    assert engine.generate(prompts, sampling, range(4)) != wanted
    engine.load_weights(second, version=7)
    assert engine.generate(prompts, sampling, range(4)) == wanted
    assert engine.describe()["weights_version"] == 7


def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    engine = TransformersEngine(str(make_model(tmp_path / "model", tie_word_embeddings=True)), device="cpu")
    good = load_file(tmp_path / "model" / "model.safetensors")
    prompts, sampling = random_prompts(3), Sampling(max_tokens=8)
    before = engine.generate(prompts, sampling, [0] * 3)
    bad = tmp_path / "bad"
    bad.mkdir()

    def refuse(tensors: dict[str, torch.Tensor], match: str) -> None:
        save_file(tensors, bad / "model.safetensors")
        with pytest.raises(ModelError, match=match):
            engine.load_weights(bad, version=1)

    name = "model.layers.1.mlp.up_proj.weight"
    noisy = {key: torch.randn_like(value) for key, value in good.items()}
    refuse({key: value for key, value in noisy.items() if key != name}, f"{name} missing")
    refuse({**noisy, "model.extra.weight": torch.zeros(1)}, "model.extra.weight")
    refuse({**noisy, name: torch.zeros(2, 2)}, r"\(2, 2\), not")
    refuse({**noisy, "lm_head.weight": torch.zeros(260, 32)}, "ties together")
    (bad / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        engine.load_weights(bad, version=1)
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor an index"):
        engine.load_weights(tmp_path, version=1)
    assert engine.generate(prompts, sampling, [0] * 3) == before
    assert engine.describe()["weights_version"] is None


def test_an_adapter_is_merged_into_the_model(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(3)
    lora = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "adapter")
    prompts, sampling = random_prompts(3), Sampling(max_tokens=12)
    engine = TransformersEngine(str(folder), device="cpu", adapter=tmp_path / "adapter")
    merged = lora.merge_and_unload()
    for prompt, completion in zip(prompts, engine.generate(prompts, sampling, [0] * 3), strict=True):
        wanted = full_forward_logits(merged, prompt, completion).argmax(-1)
        assert completion.token_ids == tuple(wanted.tolist())
    assert engine.describe()["adapter"] == str(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        TransformersEngine(str(folder), device="cpu", adapter=tmp_path)


def test_a_model_that_gives_nan_stops_with_the_reason(folder: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(str(folder), device="cpu")
    with torch.no_grad():
        engine._live_model().get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="NaN"):
        engine.generate(random_prompts(2), Sampling(max_tokens=4), [0, 0])


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = TransformersEngine(str(folder), device="cpu")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([], Sampling(), [])


def test_description_holds_what_was_really_got(engine: TransformersEngine) -> None:
    got = engine.describe()
    assert (got["device"], got["dtype"], got["attention"]) == ("cpu", "float32", "sdpa")
    assert (got["torch"], got["eos_token_ids"], got["window_tokens"]) == (torch.__version__, [EOS_ID], 256)
    json.dumps(got)
