"""Log-probs of trained tokens from hidden states, without ever holding all logits.

The vocabulary projection is computed a chunk of tokens at a time. In the backward pass each chunk is computed again; where the
weights of the log-probs in the loss are known beforehand, the gradient is formed at once and each chunk is seen only once.
Shapes: N trained tokens, C of a chunk, H hidden width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from grpo_gsm8k.errors import ModelError

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}  # of float32 logits
MIN_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Head:
    """A language model's head: logits = softcap(scale · (hidden @ weightᵀ + bias)).

    `weight_grad` and `bias_grad` (float32 or better, or None where they are not trained) are where the gradients are added up:
    a gradient of the size of the vocabulary is never made a second time.
    """

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    weight_grad_VH: torch.Tensor | None = None
    bias_grad_V: torch.Tensor | None = None

    def logits(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        """Returns (C, V), in float32 or better."""
        logits_CV = hidden_CH @ self.weight_VH.T
        if self.bias_V is not None:
            logits_CV += self.bias_V
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self.scale != 1.0:
            logits_CV *= self.scale
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def chunks(self, num: int) -> Iterator[slice]:
        """Yields slices of `num` tokens, each small enough for its logits to fit the chunk's memory."""
        memory = CHUNK_BYTES["cpu" if self.weight_VH.device.type == "cpu" else "cuda"]
        size = max(MIN_CHUNK, memory // (4 * self.weight_VH.shape[0]))
        for start in range(0, num, size):
            yield slice(start, min(start + size, num))

    def backward(self, hidden_CH: torch.Tensor, logits_CV: torch.Tensor, dlogits_CV: torch.Tensor) -> torch.Tensor:
        """Adds up the gradients of weight and bias; returns that of `hidden_CH`. `dlogits_CV` is used up."""
        if self.softcap is not None:
            dlogits_CV *= 1 - (logits_CV / self.softcap).square_()
        if self.scale != 1.0:
            dlogits_CV *= self.scale
        if self.bias_grad_V is not None:
            self.bias_grad_V.add_(dlogits_CV.sum(0))
        dlogits_CV = dlogits_CV.to(self.weight_VH.dtype)
        if self.weight_grad_VH is not None:
            if self.weight_grad_VH.dtype == dlogits_CV.dtype:
                self.weight_grad_VH.addmm_(dlogits_CV.T, hidden_CH)
            else:
                self.weight_grad_VH.add_(dlogits_CV.T @ hidden_CH)
        return dlogits_CV @ self.weight_VH


def head_of(model: PreTrainedModel) -> Head:
    """Returns the model's head, without places for gradients.

    Raises: ModelError when the head is no linear map.
    """
    layer: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"the head of {type(model).__name__} is a {type(layer).__name__}; only a linear head can be trained")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def head_logprobs(
    hidden_NH: torch.Tensor, labels_N: torch.Tensor, head: Head, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the natural-log probabilities (N) of the labels, and the entropies (N, nats, without gradient)."""
    logprobs_N, entropy_N = _Logprobs.apply(hidden_NH, labels_N, head, entropy)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


@torch.no_grad()
def head_logprobs_backward(
    hidden_NH: torch.Tensor, labels_N: torch.Tensor, head: Head, weights_N: torch.Tensor, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Returns log-probs and entropies as `head_logprobs`, and the gradient (N, H) of Σ weights · log-probs at `hidden_NH`.

    The gradients of the head are added up on the way. Nothing is recorded for autograd.
    """
    logprobs_N, entropy_N, dhidden_NH = _results(hidden_NH, labels_N, head, entropy, with_gradient=True)
    for part in head.chunks(len(labels_N)):
        logits_CV = head.logits(hidden_NH[part])
        lse_C = _normalise(logits_CV, labels_N[part], logprobs_N[part], None if entropy_N is None else entropy_N[part])
        dlogits_CV = _logit_gradient(logits_CV, lse_C, labels_N[part], weights_N[part], keep=head.softcap is not None)
        dhidden_NH[part] = head.backward(hidden_NH[part], logits_CV, dlogits_CV)
    return logprobs_N, entropy_N, dhidden_NH


class _Logprobs(torch.autograd.Function):
    """Log-probs whose backward computes the logits again, from the hidden states and the saved normalisers."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, labels_N: torch.Tensor, head: Head, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs_N, entropy_N, lse_N = _results(hidden_NH, labels_N, head, entropy, with_gradient=False)
        for part in head.chunks(len(labels_N)):
            logits_CV = head.logits(hidden_NH[part])
            lse_N[part] = _normalise(
                logits_CV, labels_N[part], logprobs_N[part], None if entropy_N is None else entropy_N[part]
            )
        ctx.save_for_backward(hidden_NH, labels_N, lse_N)
        ctx.head = head
        if entropy_N is not None:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, weights_N: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor, None, None, None]:
        hidden_NH, labels_N, lse_N = ctx.saved_tensors
        head: Head = ctx.head
        dhidden_NH = torch.empty_like(hidden_NH)
        for part in head.chunks(len(labels_N)):
            logits_CV = head.logits(hidden_NH[part])
            dlogits_CV = _logit_gradient(logits_CV, lse_N[part], labels_N[part], weights_N[part], keep=head.softcap is not None)
            dhidden_NH[part] = head.backward(hidden_NH[part], logits_CV, dlogits_CV)
        return dhidden_NH, None, None, None


def _results(
    hidden_NH: torch.Tensor, labels_N: torch.Tensor, head: Head, entropy: bool, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Returns room for log-probs, entropies (or None) and, by choice, the gradient at the hidden states or the normalisers."""
    dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    logprobs_N = torch.empty(len(labels_N), dtype=dtype, device=hidden_NH.device)
    third = torch.empty_like(hidden_NH) if with_gradient else torch.empty_like(logprobs_N)
    return logprobs_N, torch.empty_like(logprobs_N) if entropy else None, third


def _normalise(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, logprobs_C: torch.Tensor, entropy_C: torch.Tensor | None
) -> torch.Tensor:
    """Writes a chunk's log-probs and entropies; returns its normalisers log Σ exp (C)."""
    lse_C = logits_CV.logsumexp(-1)
    torch.sub(logits_CV.gather(1, labels_C[:, None])[:, 0], lse_C, out=logprobs_C)
    if entropy_C is not None:
        torch.sub(lse_C, ((logits_CV - lse_C[:, None]).exp_() * logits_CV).sum(-1), out=entropy_C)
    return lse_C


def _logit_gradient(
    logits_CV: torch.Tensor, lse_C: torch.Tensor, labels_C: torch.Tensor, weights_C: torch.Tensor, keep: bool
) -> torch.Tensor:
    """Returns the gradient of Σ weights · log-probs at the logits: weight · (one-hot − softmax); in place unless `keep`."""
    weights_C1 = weights_C[:, None].to(logits_CV.dtype)
    dlogits_CV = logits_CV - lse_C[:, None] if keep else logits_CV.sub_(lse_C[:, None])
    dlogits_CV.exp_().mul_(-weights_C1)
    return dlogits_CV.scatter_add_(1, labels_C[:, None], weights_C1)
