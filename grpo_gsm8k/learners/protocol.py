"""The update seam: what every learner does. A learner owns the weights and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.tokenize import TokenSequence

if TYPE_CHECKING:
    import torch

    from grpo_gsm8k.algorithms.packing import PackedBatch


class NotFiniteError(ProofError):
    """A loss or gradient is NaN or infinite; `sequence_ids` are those of the micro-batches in which it arose."""

    def __init__(self, what: str, sequence_ids: Sequence[str]) -> None:
        self.sequence_ids = tuple(sequence_ids)
        shown = ", ".join(self.sequence_ids[:8])
        more = f" and {len(self.sequence_ids) - 8} more" if len(self.sequence_ids) > 8 else ""
        super().__init__(f"{what}; the weights were not changed; sequences: {shown}{more}")


class Loss(Protocol):
    """A differentiable function of the trained tokens' log-probs, added up over micro-batches: its normaliser is the step's.

    `separable`: the loss is a sum over trained tokens, each term a function of that token's log-prob alone. A learner may then
    call it with any slice of a micro-batch's tokens, and form its gradient while it computes the log-probs, so that the
    vocabulary projection is computed once.
    """

    @property
    def separable(self) -> bool:
        """Whether the loss is a sum of one term a token."""
        ...

    def __call__(self, logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns a scalar; `logprobs_N` are natural logs in float64, at the learner's temperature."""
        ...

    def entropy_weights(self, batch: PackedBatch) -> torch.Tensor | None:
        """Returns (N), for a loss that also holds Σ weights · entropy (nats) of the predicted distributions, else None.

        The learner adds that term, value and gradient; it is no part of what calling the loss returns.
        """
        ...


class Learner(Protocol):
    """Updates weights. One optimiser step is any number of `forward_backward` calls, then `optim_step`."""

    def forward_backward(self, sequences: Sequence[TokenSequence], loss: Loss) -> Mapping[str, float]:
        """Adds the gradient of `loss` on all `sequences` to what has gathered since the last step; returns metrics.

        Metrics: `loss`, `num_trained` (tokens), `num_tokens` (that went through the model), `num_microbatches`.
        How the learner splits and packs the sequences never changes the result. When it raises, what had gathered is dropped.
        Raises: NotFiniteError when the loss is not finite; ProofError when a sequence trains no token; ModelError for token
        ids outside the vocabulary; EnvironmentFailure when memory runs out.
        """
        ...

    def logprobs(
        self,
        sequences: Sequence[TokenSequence],
        *,
        reference: bool = False,
        temperature: float | None = None,
        dtype: str | None = None,
    ) -> list[tuple[float, ...]]:
        """Returns the log-probs of each sequence's trained tokens, in order; trains nothing.

        `reference`: under the weights that the learner was made with. `temperature`: at another than the learner's own.
        `dtype` ("float32", "bfloat16", "float16"): by a copy of the weights, made for this call, in that precision.
        Raises: ModelError when `reference` is asked for and those weights were not kept; else as `forward_backward`.
        """
        ...

    def optim_step(self, lr: float) -> Mapping[str, float]:
        """Updates the weights with the gathered gradient, then clears it; returns `lr`, `grad_norm` and `grad_norm_clipped`.

        Raises: ProofError when no gradient was gathered; NotFiniteError when it is not finite (the weights stay as they were).
        """
        ...

    def save_state(self, path: Path) -> None:
        """Writes into the folder `path` all that `load_state` needs to go on exactly as if nothing had happened.

        Raises: StorageError when it cannot be written.
        """
        ...

    def load_state(self, path: Path) -> None:
        """Takes weights, optimiser and step count from a folder that `save_state` wrote. Raises: ModelError."""
        ...

    def publish_weights(self, path: Path) -> int:
        """Writes the weights as a Hugging Face folder for an engine; returns their version (optimiser steps taken)."""
        ...

    def weights_digest(self) -> str:
        """Returns the sha256 (hex) of what is trained: names, shapes and raw bytes."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Returns what is trained and how ("dtype" among it), for the run's record."""
        ...
