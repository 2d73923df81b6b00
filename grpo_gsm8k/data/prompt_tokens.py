"""Prompt text to the token ids that an engine is given for it, and which tokenizer made them.

A rendered prompt is text, and text does not say whether a tokenizer is to add its own special tokens (a BOS) to it.
`render_batch` knows its template: plain text gets them, a chat's text does not, because the chat template wrote them. Here
`special_tokens` says so: "auto" adds them unless the text begins with a special token already, which gives the ids of
`render_batch` for chats that open with a special token and for plain text; "add" and "none" are for anything else.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from grpo_gsm8k.errors import ConfigError, unknown_name
from grpo_gsm8k.runs.storage import digest

SPECIAL_TOKENS = ("auto", "add", "none")


def prompt_token_ids(tokenizer: Any, texts: Sequence[str], special_tokens: str = "auto") -> list[tuple[int, ...]]:
    """Returns the token ids of each prompt, however long it is (windows are the caller's business).

    Raises: ConfigError for another `special_tokens` than auto, add or none.
    """
    if special_tokens not in SPECIAL_TOKENS:
        raise ConfigError(unknown_name("special_tokens", special_tokens, SPECIAL_TOKENS))
    opening = tuple(special_token_texts(tokenizer)) if special_tokens == "auto" else ()
    wanted = [special_tokens == "add" or (special_tokens == "auto" and not text.startswith(opening)) for text in texts]
    found: dict[int, tuple[int, ...]] = {}
    for add in (False, True):
        chosen = [index for index, want in enumerate(wanted) if want is add]
        if chosen:
            encoded = tokenizer([texts[index] for index in chosen], add_special_tokens=add, verbose=False)["input_ids"]
            found |= {index: tuple(ids) for index, ids in zip(chosen, encoded, strict=True)}
    return [found[index] for index in range(len(texts))]


def special_token_texts(tokenizer: Any) -> dict[str, int]:
    """Returns the ids of the special tokens (those that decoding can skip) by their text."""
    added = {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in tokenizer.all_special_tokens}
    return {text: number for text, number in (added | named).items() if text}


def tokenizer_identity(tokenizer: Any, name: str) -> dict[str, Any]:
    """Returns what tells this tokenizer from another: its name for people, and digests.

    `sha256` is of everything that turns text into ids (vocabulary, merges, added tokens, normaliser …), so that equal digests
    mean equal ids; padding, truncation and where the files lie do not count. `chat_template_sha256` is of the chat template
    (None without). `eos_token_id` is the end token that a response ends with.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = json.loads(backend.to_str())
        how = {key: value for key, value in parts.items() if key not in ("truncation", "padding", "decoder", "version")}
    else:
        added = {str(number): token.content for number, token in tokenizer.added_tokens_decoder.items()}
        how = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "added_tokens": added}
    template = tokenizer.chat_template
    return {
        "name": name,
        "sha256": digest(how),
        "chat_template_sha256": digest(template if isinstance(template, dict) else str(template)) if template else None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def reads_back(tokenizer: Any, text: str, ids: Sequence[int]) -> bool:
    """Returns whether decoding `ids` gives `text`, special tokens that open the prompt and Unicode normal form aside."""
    read = unicodedata.normalize("NFC", tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    return read.endswith(unicodedata.normalize("NFC", text).lstrip(" "))


def text_hash(*texts: str) -> str:
    """Returns the first 8 hex digits of the sha256 of texts, each kept apart from the next."""
    joined = "\0".join(texts).encode("utf-8", errors="surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:8]
