"""Models that cannot be trained packed are refused with the reason, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from architectures import SHAPE, SLIDING, build
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GptOssConfig,
    MambaConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from grpo_gsm8k.errors import ModelError
from grpo_gsm8k.learners.native import NativeLearner

SMALL_MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
REFUSED: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "state space": (
        lambda: MambaConfig(vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2),
        "does not look its attention up",
    ),
    "ALiBi": (
        lambda: BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4),
        "does not look its attention up",
    ),
    "attention sinks": (
        lambda: GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1),
        "needs 's_aux'",
    ),
    "linear attention": (
        lambda: Qwen3NextConfig(**SHAPE, **SMALL_MOE, **LINEAR, layer_types=["linear_attention", "full_attention"]),
        "cannot be trained packed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_model_that_cannot_be_packed_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=message):
        NativeLearner(AutoModelForCausalLM.from_config(make()))


def test_head_that_is_no_linear_map_is_refused() -> None:
    model = build("llama")
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings(), torch.nn.Tanh()))
    with pytest.raises(ModelError, match="head of LlamaForCausalLM is a Sequential"):
        NativeLearner(model)


def test_head_that_does_more_than_its_config_says_is_refused() -> None:
    model = build("granite")
    model.config.logits_scaling, model.logits_scaling = 3.0, 1.0
    forward = model.forward

    def shifted(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = shifted
    with pytest.raises(ModelError, match="its logits change by"):
        NativeLearner(model)


def test_layer_whose_window_is_not_handed_down_is_refused() -> None:
    model = build("qwen3")
    model.config.layer_types, model.config.sliding_window = list(SLIDING["layer_types"]), 6
    model.base_model.has_sliding_layers = True
    with pytest.raises(ModelError, match="0 is of type 'sliding_attention' with window None"):
        NativeLearner(model)
