"""Log-probabilities of labels and the entropy of next-token distributions, in nats, from plain padded batches.

Shapes: B sequences, T positions, V tokens of the vocabulary. These form all logits at once and are meant for notebooks, tests
and small models; the learner has a packed path of its own that gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from grpo_gsm8k.errors import DataError


def compute_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Returns the entropy of softmax(logits) over the last dimension: (..., V) to (...), in nats.

    Computed in float32 or better. A logit of minus infinity (a token that cannot come) counts for nothing; so does its
    gradient. It is differentiable.
    Source: H(p) = logsumexp(z) - sum_v p_v z_v, written with log_softmax so that no large z cancels.
    """
    logprobs = F.log_softmax(_precise(logits), dim=-1)
    probs = logprobs.exp()
    return -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum(dim=-1)


def get_response_log_probs(
    model: Callable[..., Any],
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    return_token_entropy: bool = False,
    *,
    attention_mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Returns "log_probs" (B, T), in nats: log p(labels[b, t] | input_ids[b, :t + 1]) at every position, masked or not.

    `model` is a Hugging Face causal language model, or anything that gives `.logits` (B, T, V) of `input_ids` (B, T). With
    `return_token_entropy`, "token_entropy" (B, T) is there as well: of the whole next-token distribution, in nats, detached
    (it is for logging; train on `compute_entropy`). Batches padded on the right need no `attention_mask`, since a causal model
    never looks ahead; batches padded on the left do. Mask the result with `response_mask`: what stands at other positions is
    no part of the response. In float32 or better, whatever the model's precision.
    Raises: DataError when the shapes of `input_ids` and `labels` differ.
    Source: CS336 (Stanford), assignment 5, `get_response_log_probs`.
    """
    if input_ids.shape != labels.shape or input_ids.dim() != 2:
        shapes = f"{tuple(input_ids.shape)} and {tuple(labels.shape)}"
        raise DataError(f"input_ids and labels have the shapes {shapes}; both must be (batch, positions)")
    masks = {} if attention_mask is None else {"attention_mask": attention_mask}
    logits = _precise(model(input_ids, **masks).logits)
    found = {"log_probs": -F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)}
    if return_token_entropy:
        with torch.no_grad():
            found["token_entropy"] = torch.stack([compute_entropy(row) for row in logits])  # row by row: a batch less memory
    return found


def _precise(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
