"""Tokenizers of the training-data tests: the tiny one, and one that puts a BOS before what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.engines.loading import load_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    """A fresh tiny tokenizer, so that a test may change it."""
    return load_tokenizer("tiny")


@pytest.fixture
def bos_tokenizer() -> Any:
    """The tiny vocabulary with a BOS that the tokenizer adds, and a chat template that writes it, as Llama's does."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(load_tokenizer("tiny").backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as a JSONL file and returns its path."""

    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
