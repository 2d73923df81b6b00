"""The engine over transformers: the default on a CPU, and right on any GPU.

Each row's randomness is addressed by (seed, position), so a completion does not depend on what else is in the batch, apart from
float rounding (padding changes the order of sums): the same batch gives the same bits again, another batch nearly so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from grpo_gsm8k.engines.decoding import Ending, Row, decode_batch
from grpo_gsm8k.engines.loading import context_window, eos_token_ids, load_model, load_tokenizer
from grpo_gsm8k.engines.protocol import Capabilities, OnCompletion
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.engines.stops import StopStrings
from grpo_gsm8k.engines.weights import copy_weights
from grpo_gsm8k.errors import EngineError, InputError
from grpo_gsm8k.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CACHE_BUDGET_BYTES = 4 << 30
_TYPICAL_TOKENS = 2048


class TransformersEngine:
    """Samples with our own decoding loop over a transformers model's forward."""

    def __init__(
        self,
        model_id: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
        batch_size: int | None = None,
        revision: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        attention: str | None = None,
    ) -> None:
        """`batch_size` None takes what fits a key-value cache of 4 GiB at 2,048 tokens (a power of two, 8 to 256): it follows
        from the model alone, never from what memory is free, so that two runs batch alike.

        Raises: ModelError, HubError, EngineError (no such device).
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
        self._tokenizer = tokenizer if tokenizer is not None else load_tokenizer(model_id, revision)
        self._model: PreTrainedModel | None = load_model(
            model_id, revision, device=device, dtype=dtype, adapter=adapter, attention=attention
        )
        self._asked = {"model_id": model_id, "revision": revision, "adapter": None if adapter is None else str(adapter)}
        self._eos = eos_token_ids(self._model, self._tokenizer)
        self._window = context_window(self._model)
        self._batch_size = batch_size if batch_size is not None else default_batch_size(self._model)
        self._weights_version: int | None = None
        self._description = self._describe_model(self._model)

    @property
    def name(self) -> str:
        """The engine's registered name."""
        return "transformers"

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            logprobs=True,
            weight_updates=True,
            per_request_seeds=True,
            token_ids=True,
            repeats=True,
            batch_size=self._batch_size,
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that prompts are to be rendered with."""
        return self._tokenizer

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Returns one completion a prompt, in order; batches are made of prompts of like length, repeats side by side.

        Raises: InputError before anything is sampled; EngineError when the device runs out of memory or the model gives NaN.
        """
        model = self._live_model()
        check_request(prompts, sampling, seeds, window=self._window)
        self._check_vocabulary(model, prompts)
        ending = Ending(self._eos, StopStrings(self._tokenizer, sampling.stop) if sampling.stop else None)
        done: dict[int, Completion] = {}

        def finish(row: Row) -> None:
            done[row.index] = row.completion()
            if on_completion is not None:
                on_completion(row.index, done[row.index])

        rows = [Row(i, prompt.token_ids, seed) for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))]
        rows.sort(key=lambda row: (len(row.prompt), row.prompt))
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            try:
                decode_batch(model, batch, sampling, ending, finish)
            except torch.OutOfMemoryError as error:
                raise EngineError(
                    f"out of memory with {len(batch)} completions at once on {model.device}; use a smaller batch size "
                    f"(now {self._batch_size}) or max_tokens (now {sampling.max_tokens})"
                ) from error
            except FloatingPointError as error:
                raise EngineError(f"{error}; the weights or the dtype ({model.dtype}) are broken") from error
        return [done[i] for i in range(len(prompts))]

    def load_weights(self, path: Path, version: int) -> None:
        """Takes the weights in `path` (a Hugging Face folder) and calls them `version`. Raises: ModelError, nothing changed."""
        copy_weights(self._live_model(), path)
        self._weights_version = version

    def describe(self) -> Mapping[str, Any]:
        """Returns what was really got."""
        return {**self._description, "weights_version": self._weights_version, "num_threads": torch.get_num_threads()}

    def close(self) -> None:
        """Frees the model; safe to call twice."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _live_model(self) -> PreTrainedModel:
        if self._model is None:
            raise EngineError("the transformers engine is closed; make a new one")
        return self._model

    def _check_vocabulary(self, model: PreTrainedModel, prompts: Sequence[Prompt]) -> None:
        """A token id out of range is a device-side assert on a GPU, after which nothing works: say it before."""
        size = embedding_rows(model)
        for prompt in prompts:
            if max(prompt.token_ids) >= size or min(prompt.token_ids) < 0:
                raise InputError(
                    f"problem {prompt.problem_id!r}: its prompt has token ids outside the model's vocabulary of {size}; "
                    "render it with the model's own tokenizer"
                )

    def _describe_model(self, model: PreTrainedModel) -> dict[str, Any]:
        place = model.device
        return {
            "engine": self.name,
            **self._asked,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "architecture": type(model).__name__,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "device": str(place),
            "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "batch_size": self._batch_size,
            "window_tokens": self._window,
            "eos_token_ids": sorted(self._eos),
        }


def embedding_rows(model: PreTrainedModel) -> int:
    """Returns how many token ids the model has embeddings for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def default_batch_size(model: PreTrainedModel) -> int:
    """Returns how many completions are sampled at once: a power of two from 8 to 256, from the model's shape alone."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    fits = _CACHE_BUDGET_BYTES // (token_bytes * _TYPICAL_TOKENS)
    return int(1 << (min(max(fits, 8), 256).bit_length() - 1))
