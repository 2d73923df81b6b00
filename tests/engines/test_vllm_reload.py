"""Hot weights: after a reload, vLLM computes with every tensor of the new weights."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here (make test-vllm)"),
]


def test_each_tensor_changed_in_turn_changes_the_logprobs_as_in_transformers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from grpo_gsm8k.data.word_problems import generate
    from grpo_gsm8k.engines.transformers import TransformersEngine
    from grpo_gsm8k.engines.vllm import VllmEngine
    from grpo_gsm8k.models import tiny_path
    from grpo_gsm8k.prompts import render_batch
    from grpo_gsm8k.types import Sampling

    vllm, plain = VllmEngine("tiny"), TransformersEngine("tiny", device="cpu")
    prompts = render_batch(plain.tokenizer, generate("val", 6, 0), template="question")
    sampling, seeds = Sampling(max_tokens=8), [0] * 6
    base = load_file(tiny_path() / "model.safetensors")
    folder = tmp_path / "published"
    shutil.copytree(tiny_path(), folder)
    first = vllm.generate(prompts, sampling, seeds)
    generator = torch.Generator().manual_seed(0)
    try:
        for version, name in enumerate([*base, None], start=1):
            changed = {key: value.clone() for key, value in base.items()}
            if name is not None:
                changed[name] += 0.05 * torch.randn(changed[name].shape, generator=generator)
            save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
            for engine in (vllm, plain):
                engine.load_weights(folder, version)
            ours, theirs = vllm.generate(prompts, sampling, seeds), plain.generate(prompts, sampling, seeds)
            assert [one.token_ids for one in ours] == [one.token_ids for one in theirs], name
            for one, other in zip(ours, theirs, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5), name
            if name is not None:
                assert [one.logprobs for one in ours] != [one.logprobs for one in first], f"{name} changed nothing"
    finally:
        vllm.close()
        plain.close()
