"""Sequences → micro-batches laid end to end: which sequences go together, and their tensors. No position is padding.

Shapes: T input tokens of a micro-batch, N trained tokens among its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.tokenize import TokenSequence

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch. A sequence's last trained token, and what follows it, is no input: its prediction cannot reach the loss.

    `sequence_ids` and `lengths` (input tokens): one a sequence, shortest first. `input_ids_T`, `position_ids_T` (restarting
    with each sequence): int64. `trained_at_N`: where in T a trained token is predicted; `labels_N` is that token,
    `sequence_index_N` its sequence's place among those of the `forward_backward` call, `extras` its values by name (float32).
    """

    sequence_ids: tuple[str, ...]
    lengths: tuple[int, ...]
    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    trained_at_N: torch.Tensor
    labels_N: torch.Tensor
    sequence_index_N: torch.Tensor
    extras: Mapping[str, torch.Tensor]

    @property
    def num_trained(self) -> int:
        """How many labels are trained."""
        return len(self.labels_N)

    def to(self, device: torch.device) -> PackedBatch:
        """Returns the same batch with its tensors on `device`."""
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
            trained_at_N=self.trained_at_N.to(device),
            labels_N=self.labels_N.to(device),
            sequence_index_N=self.sequence_index_N.to(device),
            extras={name: tensor.to(device) for name, tensor in self.extras.items()},
        )


def num_inputs(sequence: TokenSequence) -> int:
    """Returns how many of the tokens go through the model: all before the last trained one.

    Raises: ProofError when no token is trained.
    """
    for place in range(len(sequence.trained) - 1, 0, -1):
        if sequence.trained[place]:
            return place
    raise ProofError(f"sequence {sequence.id!r} trains no token; every sequence of a step needs at least one")


def plan_microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Returns the indices of each micro-batch, so that its lengths add up to `budget` at most; shortest first within each.

    First fit by decreasing length: few, full micro-batches, the same for the same lengths. A sequence longer than the budget
    is a micro-batch of its own, since a sequence cannot be split.
    """
    plan: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        for place, free in enumerate(room):
            if lengths[index] <= free:
                plan[place].append(index)
                room[place] -= lengths[index]
                break
        else:
            plan.append([index])
            room.append(budget - lengths[index])
    return [indices[::-1] for indices in plan]


def pack(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> PackedBatch:
    """Returns the micro-batch of the sequences at `indices`, in that order, as CPU tensors.

    Raises: ProofError when a sequence trains no token; DataError when the sequences have extras of different names.
    """
    import torch

    chosen = [sequences[index] for index in indices]
    names = chosen[0].extras.keys()
    for sequence in chosen:
        if sequence.extras.keys() != names:
            raise DataError(
                f"sequence {sequence.id!r} has extras {sorted(sequence.extras)} and {chosen[0].id!r} has {sorted(names)}; "
                "give all sequences of a step the same"
            )
    lengths = tuple(num_inputs(sequence) for sequence in chosen)
    tokens: list[int] = []
    labels: list[int] = []
    trained: list[bool] = []
    extras: dict[str, list[float]] = {name: [] for name in names}
    for sequence, length in zip(chosen, lengths, strict=True):
        tokens += sequence.token_ids[:length]
        labels += sequence.token_ids[1 : length + 1]
        trained += sequence.trained[1 : length + 1]
        for name, values in extras.items():
            values += sequence.extras[name][1 : length + 1]
    trained_at_N = torch.tensor(trained).nonzero()[:, 0]
    sequence_index_T = torch.tensor(indices).repeat_interleave(torch.tensor(lengths))
    return PackedBatch(
        sequence_ids=tuple(sequence.id for sequence in chosen),
        lengths=lengths,
        input_ids_T=torch.tensor(tokens),
        position_ids_T=torch.cat([torch.arange(length) for length in lengths]),
        trained_at_N=trained_at_N,
        labels_N=torch.tensor(labels)[trained_at_N],
        sequence_index_N=sequence_index_T[trained_at_N],
        extras={name: torch.tensor(values, dtype=torch.float32)[trained_at_N] for name, values in extras.items()},
    )
