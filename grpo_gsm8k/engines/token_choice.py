"""One token out of each row of logits: the processed distribution, and inverse-CDF sampling from given uniforms.

Shapes: B rows of a batch, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grpo_gsm8k.types import Sampling

_BLOCK = 64


def draw_uniforms(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns `count` float64 uniforms in [0, 1); the i-th depends on (seed, i) alone.

    Source: Philox4x64, Salmon et al. 2011, through numpy.
    """
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def choose_tokens(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the token ids [B] and their natural-log probabilities [B] (float32) under the distribution sampled from.

    At temperature 0 the token is the argmax (the lowest id of a tie) and the log-prob that of the plain softmax.
    """
    if uniforms_B is None:
        logprobs_BV = torch.log_softmax(logits_BV.float(), -1)
        ids_B = logits_BV.argmax(-1)
    else:
        logprobs_BV = torch.log_softmax(processed_logits(logits_BV, sampling), -1)
        ids_B = inverse_cdf(logprobs_BV.exp(), uniforms_B)
    logprobs_B = logprobs_BV.gather(-1, ids_B[:, None]).squeeze(-1)
    return ids_B, logprobs_B


def processed_logits(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Returns float32 logits with temperature, then top-k, then top-p applied; what is ruled out is -inf.

    Ties with the k-th largest are kept. top-p keeps the smallest set of most likely tokens whose mass reaches `top_p`.
    """
    logits_BV = logits_BV.float() / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        floor_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        mass_BV = torch.softmax(sorted_BV, -1).double()
        before_BV = prefix_sums(mass_BV) - mass_BV
        out_BV = before_BV >= sampling.top_p
        out_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(torch.empty_like(out_BV).scatter_(-1, order_BV, out_BV), -torch.inf)
    return logits_BV


def inverse_cdf(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Returns for each row the first token id at which the cumulative probability (float64) exceeds its uniform.

    A token of probability 0 is never returned.
    """
    mass_BV = probabilities_BV.double()
    cumulative_BV = prefix_sums(mass_BV)
    target_B1 = uniforms_B.double()[:, None] * cumulative_BV[:, -1:]
    ids_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp(max=mass_BV.shape[-1] - 1)
    if bool((mass_BV.gather(-1, ids_B1) > 0).all()):
        return ids_B1.squeeze(-1)
    # Rounding of the sums, by one part in 2**53, has led to a token of probability 0: take the nearest that has any.
    possible_BV = mass_BV > 0
    hit_BV = (cumulative_BV > target_B1) & possible_BV
    last_B = mass_BV.shape[-1] - 1 - possible_BV.flip(-1).int().argmax(-1)
    return torch.where(hit_BV.any(-1), hit_BV.int().argmax(-1), last_B)


def prefix_sums(values_BV: Tensor) -> Tensor:
    """Returns inclusive prefix sums along the last dimension, by an algorithm that is deterministic on the tensor's device."""
    if values_BV.device.type == "cpu":
        return values_BV.cumsum(-1)
    return blocked_prefix_sums(values_BV)


def blocked_prefix_sums(values_BV: Tensor) -> Tensor:
    """Returns inclusive prefix sums by products with a triangular matrix, block by block.

    For CUDA, where torch.cumsum is refused in deterministic mode.
    """
    rows, width = values_BV.shape
    if width <= _BLOCK:
        return values_BV @ _triangle(width, values_BV)
    blocks = -(-width // _BLOCK)
    padded = torch.nn.functional.pad(values_BV, (0, blocks * _BLOCK - width)).view(rows, blocks, _BLOCK)
    inner = padded @ _triangle(_BLOCK, values_BV)
    totals = blocked_prefix_sums(inner[:, :, -1])
    inner[:, 1:] += totals[:, :-1, None]
    return inner.view(rows, -1)[:, :width].contiguous()


def _triangle(size: int, like: Tensor) -> Tensor:
    return torch.ones(size, size, dtype=like.dtype, device=like.device).triu()
