"""The decoding loop over a transformers model: one batch, prompts prefilled once per group, finished rows compacted away.

Shapes: B rows (completions being sampled), U distinct prompts, L padded prompt length, T new tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from grpo_gsm8k.engines.stops import StopStrings
from grpo_gsm8k.engines.token_choice import choose_tokens, draw_uniforms
from grpo_gsm8k.types import Completion, Sampling, StopReason

COMPACT_BELOW = 0.75  # the batch is compacted when no more than this share of its rows is still running
_SPARE_TOKENS = 64


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A full-attention cache layer that writes into spare room instead of copying everything at each token."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room_keys: Tensor | None = None
        self._room_values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns all keys and values so far, [B, heads, length, head_dim], the new ones appended."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        length = past + key_states.shape[-2]
        if self._room_keys is None or self._room_values is None or self._room_keys.shape[-2] < length:
            self._room_keys = _with_room(self.keys, key_states, past, length)
            self._room_values = _with_room(self.values, value_states, past, length)
        self._room_keys[:, :, past:length] = key_states
        self._room_values[:, :, past:length] = value_states
        self.keys = self._room_keys[:, :, :length]
        self.values = self._room_values[:, :, :length]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`, which may repeat."""
        super().batch_select_indices(indices)
        self._room_keys = self._room_values = None


def _with_room(old: Tensor | None, new: Tensor, past: int, length: int) -> Tensor:
    capacity = length + max(_SPARE_TOKENS, length // 4)
    room = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3])
    if old is not None and past:
        room[:, :, :past] = old
    return room


def make_cache(config: Any) -> tuple[DynamicCache, bool]:
    """Returns an empty cache for a model's config, and whether its rows can be repeated and dropped.

    Linear-attention and other layers with a state of their own are left to transformers and are not re-indexed.
    """
    cache = DynamicCache(config=config)
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    plain = (GrowingLayer, DynamicSlidingWindowLayer)
    return cache, all(type(layer) in plain for layer in cache.layers)


@dataclass(slots=True)
class Row:
    """One completion being sampled: where it belongs, what it has so far."""

    index: int
    prompt: tuple[int, ...]
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None

    def completion(self) -> Completion:
        """Returns the finished completion."""
        assert self.stop_reason is not None
        return Completion(tuple(self.token_ids), tuple(self.logprobs), self.stop_reason)


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a completion before `max_tokens`."""

    eos: frozenset[int]
    stops: StopStrings | None

    def reason(self, row: Row, max_tokens: int) -> StopReason | None:
        """Returns why `row` ends with its newest token, or None when it goes on."""
        if row.token_ids[-1] in self.eos:
            return "eos"
        if self.stops is not None and self.stops.completed_by(row.token_ids):
            return "stop"
        return "length" if len(row.token_ids) == max_tokens else None


@torch.inference_mode()
def decode_batch(
    model: Any, rows: Sequence[Row], sampling: Sampling, ending: Ending, on_finished: Callable[[Row], None]
) -> None:
    """Samples every row to its end, in place; `on_finished` is called with each as it finishes.

    Raises: FloatingPointError when the model gives a log-probability that is not a number.
    """
    device = model.device
    cache, indexable = make_cache(model.config)
    running = list(rows)
    uniforms_BT = None
    if sampling.temperature > 0:
        drawn = [draw_uniforms(row.seed, sampling.max_tokens) for row in running]
        uniforms_BT = torch.stack([torch.from_numpy(draw) for draw in drawn]).to(device)
    logits_BV, mask_BL, positions_B = _prefill(model, running, cache, indexable, sampling.max_tokens)
    prompt_length = mask_BL.shape[1] - sampling.max_tokens
    padded = not bool(mask_BL.all())
    for step in range(sampling.max_tokens):
        ids_B, logprobs_B = choose_tokens(logits_BV, sampling, None if uniforms_BT is None else uniforms_BT[:, step])
        _take(running, ids_B.tolist(), logprobs_B.tolist(), sampling, ending, on_finished)
        alive = [i for i, row in enumerate(running) if row.stop_reason is None]
        if not alive:
            return
        if indexable and len(alive) <= COMPACT_BELOW * len(running):
            keep = torch.tensor(alive, device=device)
            cache.batch_select_indices(keep)
            running = [running[i] for i in alive]
            ids_B, mask_BL, positions_B = ids_B[keep], mask_BL[keep], positions_B[keep]
            uniforms_BT = None if uniforms_BT is None else uniforms_BT[keep]
        logits_BV = model(
            input_ids=ids_B[:, None],
            attention_mask=mask_BL[:, : prompt_length + step + 1] if padded else None,
            position_ids=(positions_B + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]


def _prefill(
    model: Any, rows: Sequence[Row], cache: DynamicCache, indexable: bool, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the prompts, each distinct one once where rows of the cache can be repeated.

    Returns the last position's logits [B, V], the attention mask with room for the new tokens [B, L + max_tokens], and each
    row's prompt length [B].
    """
    prompts = list(dict.fromkeys(row.prompt for row in rows)) if indexable else [row.prompt for row in rows]
    length = max(len(prompt) for prompt in prompts)
    # Padding is masked out, so any token will do for it.
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length + max_tokens, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, length - len(prompt) :] = torch.tensor(prompt)
        mask[i, length - len(prompt) :] = 1
    ids_UL, mask_UL = ids.to(model.device), mask.to(model.device)
    positions_UL = (mask_UL[:, :length].cumsum(-1) - 1).clamp(min=0)
    out = model(
        input_ids=ids_UL,
        attention_mask=mask_UL[:, :length] if not bool(mask.all()) else None,
        position_ids=positions_UL,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits_UV, lengths_U = out.logits[:, -1], positions_UL[:, -1] + 1
    if len(prompts) == len(rows):
        return logits_UV, mask_UL, lengths_U
    place = {prompt: i for i, prompt in enumerate(prompts)}
    group_B = torch.tensor([place[row.prompt] for row in rows], device=model.device)
    cache.batch_select_indices(group_B)
    return logits_UV[group_B], mask_UL[group_B], lengths_U[group_B]


def _take(
    rows: Sequence[Row],
    ids: Sequence[int],
    logprobs: Sequence[float],
    sampling: Sampling,
    ending: Ending,
    on_finished: Callable[[Row], None],
) -> None:
    """Adds one token to each row that still runs, and ends those that it ends."""
    for row, token, logprob in zip(rows, ids, logprobs, strict=True):
        if row.stop_reason is not None:
            continue
        if logprob != logprob:
            raise FloatingPointError(f"the model gave NaN as the log-probability of new token {len(row.token_ids)}")
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        row.stop_reason = ending.reason(row, sampling.max_tokens)
        if row.stop_reason is not None:
            on_finished(row)
