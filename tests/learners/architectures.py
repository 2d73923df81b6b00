"""Architectures built tiny, and the plain padded way to their gradients, which the packed way must give too.

Shapes: B sequences, T positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from grpo_gsm8k.algorithms.packing import PackedBatch
from grpo_gsm8k.tokenize import TokenSequence

VOCAB = 61
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
PLAIN = {key: value for key, value in SHAPE.items() if key != "head_dim"}
GPT2 = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2": lambda: Qwen2Config(**PLAIN, tie_word_embeddings=True),
    "qwen2 sliding": lambda: Qwen2Config(**PLAIN, **SLIDING, use_sliding_window=True, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**PLAIN, tie_word_embeddings=False),
    "gemma3 text": lambda: Gemma3TextConfig(**SHAPE, **SLIDING, query_pre_attn_scalar=8, final_logit_softcapping=8.0),
    "gemma2": lambda: Gemma2Config(**SHAPE, **SLIDING, attn_logit_softcapping=3.0, final_logit_softcapping=8.0),
    "mistral": lambda: MistralConfig(**PLAIN, sliding_window=5),
    "granite": lambda: GraniteConfig(**PLAIN, logits_scaling=3.0, attention_multiplier=0.3),
    "cohere": lambda: CohereConfig(**PLAIN, logit_scale=0.25),
    "gpt2": lambda: GPT2Config(**GPT2),
}
SOFT_CAPPED = ("gemma2",)  # transformers' sdpa leaves soft-capping out, its eager attention cannot pad in float64
PROMPT_LENGTHS = (3, 1, 9, 14, 6)
RESPONSE_LENGTHS = (5, 12, 1, 8, 17)


def build(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The same weights on every call; none of them is zero, so that no gradient is trivially right."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation="eager" if name in SOFT_CAPPED else "sdpa"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def sequences() -> list[TokenSequence]:
    """Prompts and responses of very different lengths; one has an untrained stretch amid its response and one after it."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for place, (prompt, response) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)):
        ids = torch.randint(3, VOCAB, (prompt + response,), generator=generator).tolist()
        trained = [False] * prompt + [True] * response
        if place == 4:
            trained[prompt + 3 : prompt + 6] = trained[-2:] = [False] * 3
            trained = trained[: prompt + response]
        found.append(TokenSequence(f"s{place}", tuple(ids), tuple(trained)))
    return found


def padded_loss(model: PreTrainedModel, examples: Sequence[TokenSequence]) -> torch.Tensor:
    """The mean negative log-likelihood of the trained tokens: one right-padded batch, all logits, transformers' attention."""
    if model.config._attn_implementation == "eager" and len(examples) > 1:
        parts = [padded_loss(model, [example]) * example.num_trained for example in examples]
        return torch.stack(parts).sum() / sum(example.num_trained for example in examples)
    width = max(len(example.token_ids) for example in examples)
    ids_BT = torch.tensor([[*example.token_ids, *[0] * (width - len(example.token_ids))] for example in examples])
    mask_BT = torch.tensor([[1] * len(example.token_ids) + [0] * (width - len(example.token_ids)) for example in examples])
    trained_BT = torch.tensor([[*example.trained, *[False] * (width - len(example.token_ids))] for example in examples])
    logits_BTV = model.eval()(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
    logprobs_BT = logits_BTV.log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
    return -logprobs_BT[trained_BT[:, 1:]].mean()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of each weight that has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight's gradient, relative to the norm of all of them together."""
    assert found.keys() == wanted.keys()
    norm = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    return max(((found[name] - wanted[name]).norm() / norm).item() for name in wanted)


@dataclass(frozen=True)
class Whole:
    """A loss given by a plain function of a micro-batch's log-probs: its gradient is formed by autograd."""

    function: Callable[[torch.Tensor, PackedBatch], torch.Tensor]
    separable: ClassVar[bool] = False

    def __call__(self, logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return self.function(logprobs_N, batch)

    def entropy_weights(self, batch: PackedBatch) -> torch.Tensor | None:
        return self.function.entropy_weights(batch) if hasattr(self.function, "entropy_weights") else None
