"""The update seam: what every learner does. A learner owns the weights and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from grpo_gsm8k.tokenize import TokenBatch


class Loss(Protocol):
    """A differentiable function of the labels' log-probs, summed over micro-batches (so it normalises by the whole step)."""

    def __call__(self, logprobs_BT: torch.Tensor, response_mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns a scalar."""
        ...


class Learner(Protocol):
    """Updates weights. One optimiser step is any number of `forward_backward` calls, then `optim_step`."""

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> Mapping[str, float]:
        """Adds the gradient of `loss` on `batch` to what has gathered since the last step; returns metrics.

        Raises: ProofError when the loss is not finite (no gradient is added) or no token is trained.
        """
        ...

    def optim_step(self, lr: float) -> Mapping[str, float]:
        """Updates the weights with the gathered gradient, then clears it; returns metrics.

        Raises: ProofError when no gradient was gathered or it is not finite (the weights stay as they were).
        """
        ...

    def save_state(self, path: Path) -> None:
        """Writes to the folder `path` all that `load_state` needs to go on exactly as if nothing had happened."""
        ...

    def load_state(self, path: Path) -> None:
        """Takes weights, optimiser and step count from a folder that `save_state` wrote."""
        ...

    def publish_weights(self, path: Path) -> int:
        """Writes the weights as a Hugging Face folder for an engine; returns their version (optimiser steps taken)."""
        ...
