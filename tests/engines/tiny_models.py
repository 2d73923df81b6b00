"""Tiny models of random weights and a byte-level tokenizer, made in a folder as `save_pretrained` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EOS_ID = 256
VOCABULARY = 260

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}
ARCHITECTURES = ("qwen2", "qwen3", "llama", "gemma3")


def make_tokenizer(folder: Path) -> None:
    """Writes a tokenizer whose ids 0-255 are bytes and 256-258 are special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|end|>", "<|start|>", "<|other|>")])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>").save_pretrained(folder)


def make_model(folder: Path, architecture: str = "qwen2", *, seed: int = 0, tokenizer: bool = True, **changes: Any) -> Path:
    """Writes a random model (and tokenizer) into `folder` and returns it."""
    import torch
    import transformers

    shape = {**_SHAPE, **changes}
    if architecture == "gemma3":
        shape |= {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": False,  # tied, a random Gemma repeats its last token
        }
        config: Any = transformers.Gemma3TextConfig(**shape)
        make: Any = transformers.Gemma3ForCausalLM
    else:
        name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[architecture]
        config = getattr(transformers, f"{name}Config")(**shape)
        make = getattr(transformers, f"{name}ForCausalLM")
    torch.manual_seed(seed)
    make(config).save_pretrained(folder)
    if tokenizer:
        make_tokenizer(folder)
    return folder
