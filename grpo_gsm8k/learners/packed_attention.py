"""Attention over sequences laid end to end, for any model that looks its attention up in transformers' registry.

On a CPU (and on CUDA in float32, or with soft-capping) each sequence is attended to by itself, which computes nothing across
sequences and needs no mask; on CUDA in half precision one variable-length flash kernel takes them all. A prefix and what
continues it are attended to at once under a mask where they are few tokens; otherwise each segment attends to the prefix's
keys and its own, a block of queries at a time.
Shapes: T tokens end to end, L tokens of one sequence, H query heads, K key/value heads, D their width; Q queries of a block, S
keys that reach to the last of them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from grpo_gsm8k.errors import ModelError

NAME = "grpo_gsm8k_packed"
MAX_FLASH_HEAD_DIM = 256
QUERY_BLOCK = 256  # keys after a block are not computed; smaller blocks cost more calls than they save
TREE_TOKENS = 256  # up to here one call, which computes what its mask hides too, is faster than one a segment


@dataclass
class PackedLayout:
    """Where the segments lie, and which one each continues (-1: none); handed down to every attention layer.

    What continues a segment follows it. `masks` are made once, by length and window; `tails` by window and dtype; `trees` by
    first segment, window and dtype.
    """

    lengths: tuple[int, ...]
    continues: tuple[int, ...]
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    tails: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)
    trees: dict[tuple[int, int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)
    ends_S1: torch.Tensor | None = None

    @cached_property
    def units(self) -> tuple[range, ...]:
        """The segments of each sequence by itself, or of each prefix and what continues it."""
        starts = [place for place, at in enumerate(self.continues) if at < 0]
        return tuple(range(start, end) for start, end in zip(starts, [*starts[1:], len(self.lengths)], strict=True))

    def num_tokens(self, unit: range) -> int:
        """Returns how many tokens the segments of a unit have."""
        return sum(self.lengths[unit.start : unit.stop])

    def cumulative(self, device: torch.device) -> torch.Tensor:
        """Returns (S + 1) int32: 0, then where each sequence ends."""
        if self.ends_S1 is None:
            self.ends_S1 = torch.tensor([0, *self.lengths], device=device).cumsum(0).to(torch.int32)
        return self.ends_S1

    def window_mask(self, length: int, window: int, device: torch.device) -> torch.Tensor:
        """Returns (L, L) bool, True where a query sees a key: itself and the `window` - 1 tokens before it."""
        key = (length, window)
        if key not in self.masks:
            ones_LL = torch.ones(length, length, dtype=torch.bool, device=device)
            self.masks[key] = ones_LL.tril().triu(1 - window)
        return self.masks[key]

    def tail_mask(self, num_queries: int, num_keys: int, window: int | None, like: torch.Tensor, boolean: bool) -> torch.Tensor:
        """Returns (Q, S), what the last Q of S tokens see: by `boolean` True for seen, else 0, and -inf for not (as `like`).

        All are views of one mask, because what a query sees depends on how far back a key is alone.
        """
        dtype = torch.bool if boolean else like.dtype
        rests = [(self.lengths[at], length) for at, length in zip(self.continues, self.lengths, strict=True) if at >= 0]
        most_before = max(prefix + (rest - 1) // QUERY_BLOCK * QUERY_BLOCK for prefix, rest in rests)
        if (window, dtype) not in self.tails:
            num_rows = min(QUERY_BLOCK, max(rest for _, rest in rests))
            seen_QS = torch.ones(num_rows, most_before + num_rows, dtype=torch.bool, device=like.device).tril(most_before)
            if window is not None:
                seen_QS = seen_QS.triu(most_before + 1 - window)
            self.tails[window, dtype] = _as_asked(seen_QS, dtype)
        first = most_before - (num_keys - num_queries)
        return self.tails[window, dtype][:num_queries, first : first + num_keys]

    def tree_mask(self, unit: range, window: int | None, like: torch.Tensor, boolean: bool) -> torch.Tensor:
        """Returns (L, L), what the tokens of a prefix and of what continues it see; True for seen or as in `tail_mask`."""
        dtype = torch.bool if boolean else like.dtype
        key = (unit.start, window, dtype)
        if key not in self.trees:
            lengths = self.lengths[unit.start : unit.stop]
            segment_L = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
            seen_LL = ((segment_L == 0) | (segment_L == segment_L[:, None])).tril_()
            if window is not None:
                position_L = torch.cat([torch.arange(length) + (lengths[0] if at else 0) for at, length in enumerate(lengths)])
                seen_LL &= position_L[:, None] - position_L < window
            self.trees[key] = _as_asked(seen_LL.to(like.device), dtype)
        return self.trees[key]


def _as_asked(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the mask itself as bool, or what is added to scores: 0 where it is True and -inf where not."""
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def register() -> str:
    """Registers the attention and its (absent) mask with transformers; returns the name to ask for."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_layout: PackedLayout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Returns the attention output (1, T, H, D) for `query` (1, H, T, D), `key` and `value` (1, K, T, D).

    Raises: ModelError when the layer asks for something that this attention would leave out.
    """
    if packed_layout is None:
        raise ModelError("the model does not hand keyword arguments down to its attention layers; it cannot be trained packed")
    _refuse_what_is_left_out(module, attention_mask, sliding_window, others)
    head_dim = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and softcap is None and value.shape[-1] == head_dim <= MAX_FLASH_HEAD_DIM:
        return _varlen(query, key, value, packed_layout, scaling, sliding_window), None
    sizes = [packed_layout.num_tokens(unit) for unit in packed_layout.units]
    parts = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for unit, (query_L, key_L, value_L) in zip(packed_layout.units, parts, strict=True):
        length = query_L.shape[2]
        if len(unit) > 1 and length > TREE_TOKENS:
            outputs += _unit_by_segments(query_L, key_L, value_L, packed_layout, unit, scaling, sliding_window, softcap)
            continue
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        mask_LL = None
        if len(unit) > 1:
            mask_LL = packed_layout.tree_mask(unit, window, query, boolean=softcap is not None)
        elif window is not None or softcap is not None:
            mask_LL = packed_layout.window_mask(length, window or length, query.device)
        outputs.append(_attend(query_L, key_L, value_L, mask_LL, scaling, softcap))
    return torch.cat([output.transpose(1, 2) for output in outputs], 1), None


def _unit_by_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    unit: range,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> list[torch.Tensor]:
    """Returns the outputs of a prefix, and of what continues it in blocks of queries, in order."""
    lengths = list(layout.lengths[unit.start : unit.stop])
    queries, keys, values = (torch.split(tensor, lengths, 2) for tensor in (query, key, value))
    before = lengths[0]
    window = sliding_window if sliding_window is not None and sliding_window < before else None
    mask_LL = None if window is None and softcap is None else layout.window_mask(before, window or before, query.device)
    outputs = [_attend(queries[0], keys[0], values[0], mask_LL, scaling, softcap)]
    for query_L, own_key, own_value in zip(queries[1:], keys[1:], values[1:], strict=True):
        key_S, value_S = torch.cat([keys[0], own_key], 2), torch.cat([values[0], own_value], 2)
        for start in range(0, query_L.shape[2], QUERY_BLOCK):
            end = min(query_L.shape[2], start + QUERY_BLOCK)
            first = 0 if sliding_window is None else max(0, before + start + 1 - sliding_window)
            seen = slice(first, before + end)
            mask_QS = layout.tail_mask(end - start, before + end - first, sliding_window, query, boolean=softcap is not None)
            outputs.append(_attend(query_L[:, :, start:end], key_S[:, :, seen], value_S[:, :, seen], mask_QS, scaling, softcap))
    return outputs


def _no_mask(*_: Any, **__: Any) -> None:
    """Where the sequences end is in the layout; a mask would be T x T."""


def _refuse_what_is_left_out(
    module: torch.nn.Module, attention_mask: torch.Tensor | None, sliding_window: int | None, others: dict[str, Any]
) -> None:
    kind = type(module).__name__
    if others.get("dropout"):
        raise ModelError(f"{kind} asks for attention dropout of {others['dropout']}; set it to 0 in the model's config")
    for name in ("s_aux", "position_bias", "head_mask"):
        if others.get(name) is not None:
            raise ModelError(f"{kind} needs {name!r}, which packed attention does not compute; this model cannot be trained")
    causal = others.get("is_causal")
    if attention_mask is not None or not (getattr(module, "is_causal", True) if causal is None else causal):
        raise ModelError(f"{kind} is not plainly causal, and packed attention is; this model cannot be trained")
    layer_types = getattr(getattr(module, "config", None), "layer_types", None)
    layer_idx = getattr(module, "layer_idx", None)
    if layer_types and isinstance(layer_idx, int) and layer_idx < len(layer_types):
        layer_type = layer_types[layer_idx]
        if layer_type != ("full_attention" if sliding_window is None else "sliding_attention"):
            raise ModelError(
                f"{kind} {layer_idx} is of type {layer_type!r} with window {sliding_window}; "
                "packed attention takes full_attention without a window and sliding_attention with one"
            )


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Returns (1, H, L, D); without a mask, each token sees those before it and itself. Soft-capping takes a bool mask."""
    if softcap is not None:
        assert mask is not None
        return _soft_capped(query, key, value, mask, scaling, softcap)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _soft_capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask_LL: torch.Tensor, scaling: float | None, softcap: float
) -> torch.Tensor:
    """Gemma 2's attention: scores are bent towards ±softcap before the softmax, which no fused kernel of torch does."""
    key, value = _repeat_heads(key, value, query.shape[1])
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask_LL, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return weights @ value


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends_S1, longest = layout.cumulative(query.device), max(layout.lengths)
    grouped = query.shape[1] != key.shape[1]
    kwargs: dict[str, Any] = {}
    if grouped and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        kwargs["enable_gqa"] = True
    elif grouped:
        key, value = _repeat_heads(key, value, query.shape[1])
    query_THD, key_TKD, value_TKD = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    kwargs |= {"scale": scaling, "window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
    output: Any = varlen_attn(query_THD, key_TKD, value_TKD, ends_S1, ends_S1, longest, longest, **kwargs)
    return torch.unsqueeze(output, 0)


def _repeat_heads(key: torch.Tensor, value: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    repeats = num_heads // key.shape[1]
    return key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
