"""Sequences → micro-batches laid end to end: which sequences go together, and their tensors. No position is padding.

Sequences that begin with the same untrained tokens (the completions of one prompt) can share them: they are laid once, and each
sequence's rest after them.
Shapes: T input tokens of a micro-batch, N trained tokens among its labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.tokenize import TokenSequence

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch. A sequence's last trained token, and what follows it, is no input: its prediction cannot reach the loss.

    It is laid out in segments: a sequence, or a prefix and then the rests of the sequences that share it. `lengths` (input
    tokens) and `continues` (which segment it goes on from, -1 for none) have one entry a segment. `sequence_ids`: one a
    sequence, in the order of the trained tokens. `input_ids_T`, `position_ids_T` (those in the sequence): int64.
    `trained_at_N`: where in T a trained token is predicted (the end of a shared prefix predicts several); `labels_N` is that
    token, `sequence_index_N` its sequence's place among those of the `forward_backward` call, `extras` its values by name
    (float64).
    """

    sequence_ids: tuple[str, ...]
    lengths: tuple[int, ...]
    continues: tuple[int, ...]
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

    def tokens(self, part: slice) -> PackedBatch:
        """Returns the same batch with only `part` of its trained tokens."""
        return replace(
            self,
            trained_at_N=self.trained_at_N[part],
            labels_N=self.labels_N[part],
            sequence_index_N=self.sequence_index_N[part],
            extras={name: tensor[part] for name, tensor in self.extras.items()},
        )

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


def untrained_prefixes(sequences: Sequence[TokenSequence]) -> list[tuple[int, ...]]:
    """Returns the tokens before each sequence's first trained one. Raises: ProofError when no token is trained."""
    for sequence in sequences:
        num_inputs(sequence)
    return [sequence.token_ids[: sequence.trained.index(True)] for sequence in sequences]


def plan_microbatches(
    lengths: Sequence[int], budget: int, prefixes: Sequence[tuple[int, ...]] | None = None
) -> list[list[int]]:
    """Returns the indices of each micro-batch, so that its tokens add up to `budget` at most; shortest first within each.

    First fit by decreasing length: few, full micro-batches, the same for the same lengths. A sequence longer than the budget
    is a micro-batch of its own, since a sequence cannot be split. Given `prefixes`, sequences of equal ones stay together and
    count theirs once; those that do not fit together are split, and each part counts it again.
    """
    if prefixes is None:
        units, sizes = [[index] for index in range(len(lengths))], list(lengths)
    else:
        units, sizes = _sharing_units(lengths, budget, prefixes)
    plan = _first_fit(sizes, budget)
    return [[index for unit in chosen for index in units[unit]] for chosen in plan]


def _sharing_units(
    lengths: Sequence[int], budget: int, prefixes: Sequence[tuple[int, ...]]
) -> tuple[list[list[int]], list[int]]:
    """Returns sequences that go together, shortest first, and how many tokens each such unit has."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, prefix in enumerate(prefixes):
        groups.setdefault(prefix, []).append(index)
    units: list[list[int]] = []
    sizes: list[int] = []
    for prefix, members in groups.items():
        rests = [lengths[index] - len(prefix) for index in members]
        for part in _first_fit(rests, budget - len(prefix)):
            units.append([members[place] for place in part])
            sizes.append(len(prefix) + sum(rests[place] for place in part))
    return units, sizes


def _first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Returns the indices of each bin, shortest first; what is longer than the budget has a bin of its own."""
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


def pack(sequences: Sequence[TokenSequence], indices: Sequence[int], *, share_prefixes: bool = False) -> PackedBatch:
    """Returns the micro-batch of the sequences at `indices`, in that order, as CPU tensors.

    With `share_prefixes`, neighbours with equal untrained prefixes share them; where there are none, nothing differs.
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
    layout = _Layout()
    prefixes = untrained_prefixes(chosen)
    counts = Counter(prefixes) if share_prefixes else Counter()
    labels: list[int] = []
    trained_at: list[int] = []
    index_N: list[int] = []
    extras: dict[str, list[float]] = {name: [] for name in names}
    for index, sequence, prefix in zip(indices, chosen, prefixes, strict=True):
        at = layout.add(sequence.token_ids[: num_inputs(sequence)], prefix if counts[prefix] > 1 else ())
        places = [place for place, trained in enumerate(sequence.trained) if trained]
        labels += [sequence.token_ids[place] for place in places]
        trained_at += [at[place - 1] for place in places]
        index_N += [index] * len(places)
        for name, values in extras.items():
            given = sequence.extras[name]
            values += [given[place] for place in places]
    return PackedBatch(
        sequence_ids=tuple(sequence.id for sequence in chosen),
        lengths=tuple(layout.lengths),
        continues=tuple(layout.continues),
        input_ids_T=torch.tensor(layout.tokens),
        position_ids_T=torch.tensor(layout.positions),
        trained_at_N=torch.tensor(trained_at),
        labels_N=torch.tensor(labels),
        sequence_index_N=torch.tensor(index_N),
        extras={name: torch.tensor(values, dtype=torch.float64) for name, values in extras.items()},
    )


@dataclass(slots=True)
class _Layout:
    """Segments as they are laid end to end; `prefix` are the tokens of segment `shared`, which the next sequence may share."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    continues: list[int] = field(default_factory=list)
    prefix: tuple[int, ...] = ()
    prefix_at: range = range(0)
    shared: int = -1

    def add(self, inputs: tuple[int, ...], prefix: tuple[int, ...]) -> tuple[int, ...]:
        """Lays a sequence, which shares `prefix` (empty: none) with its neighbours; returns where each of its inputs lies."""
        if not prefix:
            return tuple(self._segment(inputs, 0, -1))
        if prefix != self.prefix:
            self.prefix, self.prefix_at = prefix, self._segment(prefix, 0, -1)
            self.shared = len(self.lengths) - 1
        rest = inputs[len(prefix) :]
        return (*self.prefix_at, *(self._segment(rest, len(prefix), self.shared) if rest else ()))

    def _segment(self, tokens: tuple[int, ...], position: int, continues: int) -> range:
        start = len(self.tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.lengths.append(len(tokens))
        self.continues.append(continues)
        return range(start, len(self.tokens))
