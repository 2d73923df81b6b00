"""Attention over sequences laid end to end, for any model that looks its attention up in transformers' registry.

On a CPU (and on CUDA in float32, or with soft-capping) each sequence is attended to by itself, which computes nothing across
sequences and needs no mask; on CUDA in half precision one variable-length flash kernel takes them all.
Shapes: T tokens end to end, L tokens of one sequence, H query heads, K key/value heads, D their width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from grpo_gsm8k.errors import ModelError

NAME = "grpo_gsm8k_packed"
MAX_FLASH_HEAD_DIM = 256


@dataclass(slots=True)
class PackedLayout:
    """Where the sequences lie; handed down to every attention layer. `masks` are made once, by length and window."""

    lengths: tuple[int, ...]
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    ends_S1: torch.Tensor | None = None

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
    lengths = list(packed_layout.lengths)
    head_dim = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and softcap is None and value.shape[-1] == head_dim <= MAX_FLASH_HEAD_DIM:
        return _varlen(query, key, value, packed_layout, scaling, sliding_window), None
    queries, keys, values = (torch.split(tensor, lengths, 2) for tensor in (query, key, value))
    outputs = []
    for length, query_L, key_L, value_L in zip(lengths, queries, keys, values, strict=True):
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        mask_LL = None if window is None else packed_layout.window_mask(length, window, query.device)
        if softcap is not None:
            if mask_LL is None:
                mask_LL = packed_layout.window_mask(length, length, query.device)
            outputs.append(_soft_capped(query_L, key_L, value_L, mask_LL, scaling, softcap))
        else:
            outputs.append(_one_sequence(query_L, key_L, value_L, mask_LL, scaling))
    return torch.cat([output.transpose(1, 2) for output in outputs], 1), None


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


def _one_sequence(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask_LL: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask_LL,
        is_causal=mask_LL is None,
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
