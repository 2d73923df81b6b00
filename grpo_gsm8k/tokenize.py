"""Token ids → the padded, shifted tensors that a learner trains on.

Shapes: B sequences, T positions. `labels[b, t]` is the token that follows `input_ids[b, t]`, so every tensor here is one
shorter than the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_gsm8k.errors import DataError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sequences of prompt and response, right-padded and shifted by one.

    `input_ids_BT`, `labels_BT`: int64. `attention_mask_BT`: int64, 1 at positions of the sequence, 0 at padding.
    `response_mask_BT`: bool, aligned to the labels: True where the label is a response token.
    """

    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    response_mask_BT: torch.Tensor

    @property
    def num_trained(self) -> int:
        """How many labels are response tokens."""
        return int(self.response_mask_BT.sum())


def pad_and_shift(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_token_id: int) -> TokenBatch:
    """Returns the batch in which each response follows its prompt; every response token is trained, nothing else is.

    Raises: DataError for an empty batch, an empty prompt (its first response token would have no context) or an empty response.
    """
    import torch

    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt or not response:
            part = "response" if prompt else "prompt"
            raise DataError(f"sequence {index} has an empty {part}; both prompt and response need at least one token")
    if not prompts:
        raise DataError("the batch has no sequence; it needs at least one")
    lengths = torch.tensor([len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)])
    starts = torch.tensor([len(prompt) for prompt in prompts])
    ids_BT = torch.full((len(prompts), int(lengths.max())), pad_token_id)
    for row, prompt, response in zip(ids_BT, prompts, responses, strict=True):
        row[: len(prompt) + len(response)] = torch.tensor([*prompt, *response])
    label_positions_T = torch.arange(1, ids_BT.shape[1])
    within_BT = label_positions_T < lengths[:, None]
    return TokenBatch(
        input_ids_BT=ids_BT[:, :-1],
        labels_BT=ids_BT[:, 1:],
        attention_mask_BT=(label_positions_T - 1 < lengths[:, None]).long(),
        response_mask_BT=within_BT & (label_positions_T >= starts[:, None]),
    )
