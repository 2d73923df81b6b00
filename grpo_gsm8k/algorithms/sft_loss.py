"""Supervised fine-tuning: cross entropy of the response tokens.

Shapes: B sequences, T positions (see `grpo_gsm8k.tokenize`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_gsm8k.errors import ProofError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SftLoss:
    """Negative log-likelihood of the response tokens over `num_trained`, the response tokens of the whole optimiser step.

    Because the denominator is the step's and not the micro-batch's, the losses (and gradients) of the micro-batches of a step
    add up to those of one big batch, however it is split.
    """

    num_trained: int

    def __post_init__(self) -> None:
        if self.num_trained < 1:
            raise ProofError(f"the step trains {self.num_trained} tokens; a step needs at least one response token")

    def __call__(self, logprobs_BT: torch.Tensor, response_mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss; `logprobs_BT` are the natural-log probabilities of the labels."""
        return -logprobs_BT.masked_fill(~response_mask_BT, 0.0).sum() / self.num_trained
