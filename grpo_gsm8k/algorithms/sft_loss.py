"""Supervised fine-tuning: cross entropy of the trained tokens.

Shapes: N trained tokens of a micro-batch (see `grpo_gsm8k.algorithms.packing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpo_gsm8k.algorithms.packing import PackedBatch
from grpo_gsm8k.errors import ProofError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SftLoss:
    """Negative log-likelihood of the trained tokens over `num_trained`, the trained tokens of the whole optimiser step.

    Because the denominator is the step's and not the micro-batch's, the losses (and gradients) of the micro-batches of a step
    add up to those of one big batch, however it is split.
    """

    num_trained: int
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_trained < 1:
            raise ProofError(f"the step trains {self.num_trained} tokens; a step needs at least one trained token")

    def __call__(self, logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns the scalar loss; `logprobs_N` are the natural-log probabilities of the trained tokens."""
        return -logprobs_N.sum() / self.num_trained

    def entropy_weights(self, batch: PackedBatch) -> None:
        """Returns None: entropies are no part of this loss."""
