"""Log-probs of trained tokens from hidden states, without ever holding all logits.

The vocabulary projection is computed a chunk of tokens at a time. In the backward pass each chunk is computed again; where the
loss is a sum over tokens, its gradient is formed at once and each chunk is seen only once.
Shapes: N trained tokens, C of a chunk, H hidden width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from grpo_gsm8k.errors import ModelError

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}  # of float32 logits
MIN_CHUNK = 16

ChunkLoss = Callable[[torch.Tensor, slice], torch.Tensor]  # log-probs (C, float64) and which of the N they are → a scalar


@dataclass(frozen=True, slots=True)
class Head:
    """A language model's head: logits = softcap(scale · (hidden @ weightᵀ + bias)) / temperature.

    `weight_grad` and `bias_grad` (float32 or better, or None where they are not trained) are where the gradients are added up:
    a gradient of the size of the vocabulary is never made a second time.
    """

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    weight_grad_VH: torch.Tensor | None = None
    bias_grad_V: torch.Tensor | None = None

    def logits(self, hidden_CH: torch.Tensor, room_CV: torch.Tensor | None = None) -> torch.Tensor:
        """Returns (C, V), in float32 or better; `room_CV`, where it is given, is used up for them."""
        logits_CV = torch.mm(hidden_CH, self.weight_VH.T, out=None if room_CV is None else room_CV[: len(hidden_CH)])
        if self.bias_V is not None:
            logits_CV += self.bias_V
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        factor = self.scale if self.softcap is not None else self.scale / self.temperature
        if factor != 1.0:
            logits_CV *= factor
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return logits_CV

    def chunks(self, num: int) -> Iterator[slice]:
        """Yields slices of `num` tokens, each small enough for its logits to fit the chunk's memory."""
        size = self._chunk_size()
        for start in range(0, num, size):
            yield slice(start, min(start + size, num))

    def room(self, num: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns memory for the logits of any chunk of `num` tokens: using it again is faster than asking for more."""
        size = min(num, self._chunk_size())
        return torch.empty(size, len(self.weight_VH), dtype=dtype, device=self.weight_VH.device)

    def _chunk_size(self) -> int:
        memory = CHUNK_BYTES["cpu" if self.weight_VH.device.type == "cpu" else "cuda"]
        return max(MIN_CHUNK, memory // (4 * self.weight_VH.shape[0]))

    def backward(self, hidden_CH: torch.Tensor, logits_CV: torch.Tensor | None, dlogits_CV: torch.Tensor) -> torch.Tensor:
        """Adds up the gradients of weight and bias; returns that of `hidden_CH`. `dlogits_CV` is used up.

        `logits_CV` are needed where they are capped.
        """
        if self.softcap is not None:
            assert logits_CV is not None
            dlogits_CV *= 1 - (logits_CV * (self.temperature / self.softcap)).square_()
        if self.scale != self.temperature:
            dlogits_CV *= self.scale / self.temperature
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
    """Returns the natural-log probabilities (N) of the labels, and by choice the entropies (N, nats); both can be trained."""
    logprobs_N, entropy_N = _Logprobs.apply(hidden_NH, labels_N, head, entropy)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


@torch.no_grad()
def head_loss_backward(
    hidden_NH: torch.Tensor,
    labels_N: torch.Tensor,
    head: Head,
    loss: ChunkLoss,
    entropy: bool = False,
    entropy_weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Returns Σ over chunks of `loss` + Σ weights · entropies (float64 scalar), the entropies (N) and the gradient (N, H).

    The gradient is that at `hidden_NH`; those of the head are added up on the way. Nothing is recorded for autograd: the loss
    has to be a sum of one term a token, so that its gradient at a chunk's log-probs is known from those alone.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden_NH.device)
    dhidden_NH = torch.empty_like(hidden_NH)
    logprobs_N, entropy_N = _results(hidden_NH, labels_N, entropy or entropy_weights_N is not None)
    room_CV = head.room(len(labels_N), hidden_NH.dtype)
    spare_CV = None if entropy_N is None else head.room(len(labels_N), logprobs_N.dtype)
    for part in head.chunks(len(labels_N)):
        logits_CV = head.logits(hidden_NH[part], room_CV)
        capped_CV = None if head.softcap is None else logits_CV.clone()
        entropy_C = None if entropy_N is None else entropy_N[part]
        exps_CV, sum_C, _ = _normalise(logits_CV, labels_N[part], logprobs_N[part], entropy_C, spare_CV)
        value, weights_C = _value_and_gradient(loss, logprobs_N[part], part)
        total += value
        if entropy_weights_N is None:
            dlogits_CV = exps_CV.mul_((-weights_C / sum_C)[:, None])  # the exponentials serve the gradient too
        else:
            assert entropy_C is not None
            weights_of_entropy_C = entropy_weights_N[part].to(sum_C.dtype)
            total += (weights_of_entropy_C * entropy_C).sum(dtype=torch.float64)
            factor_CV = logits_CV.add_((entropy_C - sum_C.log())[:, None]).mul_(weights_of_entropy_C[:, None])
            dlogits_CV = factor_CV.add_(weights_C[:, None]).mul_(exps_CV).mul_((-1 / sum_C)[:, None])
        dlogits_CV.scatter_add_(1, labels_N[part][:, None], weights_C[:, None])
        dhidden_NH[part] = head.backward(hidden_NH[part], capped_CV, dlogits_CV)
    return total, entropy_N, dhidden_NH


class _Logprobs(torch.autograd.Function):
    """Log-probs and entropies whose backward computes the logits again, from the hidden states and the saved normalisers."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, labels_N: torch.Tensor, head: Head, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs_N, entropy_N = _results(hidden_NH, labels_N, entropy)
        lse_N = torch.empty_like(logprobs_N)
        room_CV = head.room(len(labels_N), hidden_NH.dtype)
        spare_CV = head.room(len(labels_N), logprobs_N.dtype) if entropy else None
        for part in head.chunks(len(labels_N)):
            logits_CV = head.logits(hidden_NH[part], room_CV)
            entropy_C = None if entropy_N is None else entropy_N[part]
            _, _, lse_N[part] = _normalise(logits_CV, labels_N[part], logprobs_N[part], entropy_C, spare_CV)
        ctx.save_for_backward(hidden_NH, labels_N, lse_N, entropy_N)
        ctx.set_materialize_grads(False)
        ctx.head = head
        return logprobs_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, weights_N: torch.Tensor | None, entropy_weights_N: torch.Tensor | None
    ) -> tuple[torch.Tensor, None, None, None]:
        hidden_NH, labels_N, lse_N, entropy_N = ctx.saved_tensors
        head: Head = ctx.head
        weights_N = torch.zeros_like(lse_N) if weights_N is None else weights_N
        dhidden_NH = torch.empty_like(hidden_NH)
        room_CV = head.room(len(labels_N), hidden_NH.dtype)
        for part in head.chunks(len(labels_N)):
            logits_CV = head.logits(hidden_NH[part], room_CV)
            shifted_CV = logits_CV - lse_N[part, None] if head.softcap is not None else logits_CV.sub_(lse_N[part, None])
            if entropy_weights_N is None:
                dlogits_CV = shifted_CV.exp_().mul_(-weights_N[part, None])
            else:
                probs_CV = shifted_CV.exp()
                factor_CV = shifted_CV.add_(entropy_N[part, None]).mul_(entropy_weights_N[part, None])
                dlogits_CV = factor_CV.add_(weights_N[part, None]).mul_(probs_CV).neg_()
            dlogits_CV.scatter_add_(1, labels_N[part, None], weights_N[part, None])
            dhidden_NH[part] = head.backward(hidden_NH[part], logits_CV, dlogits_CV)
        return dhidden_NH, None, None, None


def _results(hidden_NH: torch.Tensor, labels_N: torch.Tensor, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns room for log-probs and entropies (or None)."""
    dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    logprobs_N = torch.empty(len(labels_N), dtype=dtype, device=hidden_NH.device)
    return logprobs_N, torch.empty_like(logprobs_N) if entropy else None


def _normalise(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    logprobs_C: torch.Tensor,
    entropy_C: torch.Tensor | None,
    spare_CV: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Writes a chunk's log-probs and entropies, and uses up its logits; with `spare_CV` it leaves logits - their largest.

    Entropies are written where there is room for them, which takes as much again as the logits (`spare_CV`).
    Returns exp(logits - their largest) (C, V), the sums of those (C) and the normalisers log Σ exp logits (C).
    """
    chosen_C = logits_CV.gather(1, labels_C[:, None])[:, 0]
    largest_C = logits_CV.amax(-1)
    logits_CV.sub_(largest_C[:, None])
    exps_CV = torch.exp(logits_CV, out=logits_CV if spare_CV is None else spare_CV[: len(logits_CV)])
    sum_C = exps_CV.sum(-1)
    log_sum_C = sum_C.log()
    if entropy_C is not None:
        dot_C = torch.bmm(logits_CV[:, None, :], exps_CV[:, :, None])[:, 0, 0]
        torch.sub(log_sum_C, dot_C / sum_C, out=entropy_C)
    torch.sub(chosen_C - largest_C, log_sum_C, out=logprobs_C)
    return exps_CV, sum_C, largest_C + log_sum_C


def _value_and_gradient(loss: ChunkLoss, logprobs_C: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of a chunk (float64 scalar), and its gradient at the chunk's log-probs (C, of their precision)."""
    with torch.enable_grad():
        leaf_C = logprobs_C.double().requires_grad_()
        value = loss(leaf_C, part)
    (gradient_C,) = torch.autograd.grad(value, leaf_C)
    return value.detach().double(), gradient_C.to(logprobs_C.dtype)
