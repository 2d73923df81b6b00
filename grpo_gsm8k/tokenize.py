"""Token ids → the padded, shifted tensors that a learner trains on.

Shapes: B sequences, T positions. `labels[b, t]` is the token that follows `input_ids[b, t]`, so every tensor here is one
shorter than the longest sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_gsm8k.errors import DataError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One training example: its tokens, and which of them are trained as labels.

    `id` is stable and goes into the ledger. `trained` says of each token whether its log-prob is trained; the first token has
    no context and never is. `extras` are further values by name, one a token (an advantage, a sampling log-prob): a loss is
    given those of the trained tokens.
    Raises: DataError when lengths differ, there are fewer than two tokens, or the first is trained.
    """

    id: str
    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    extras: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num = len(self.token_ids)
        if num < 2:
            raise DataError(f"sequence {self.id!r} has {num} token(s); it needs at least two (a context and a label)")
        for name, values in (("trained", self.trained), *self.extras.items()):
            if len(values) != num:
                raise DataError(f"sequence {self.id!r} has {num} tokens but {len(values)} values of {name!r}; give one a token")
        if self.trained[0]:
            raise DataError(
                f"sequence {self.id!r} trains its first token, which has no context; only later ones can be trained"
            )

    @classmethod
    def of_response(cls, id: str, prompt: Sequence[int], response: Sequence[int]) -> TokenSequence:
        """Returns the sequence in which `response` follows `prompt`; every response token is trained, no prompt token is."""
        if not prompt or not response:
            part = "response" if prompt else "prompt"
            raise DataError(f"sequence {id!r} has an empty {part}; both prompt and response need at least one token")
        return cls(id, (*prompt, *response), (False,) * len(prompt) + (True,) * len(response))

    @property
    def num_trained(self) -> int:
        """How many tokens are trained."""
        return sum(self.trained)


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


def tokenize_prompt_and_output(
    prompt_strs: Sequence[str],
    output_strs: Sequence[str],
    tokenizer: Any,
    *,
    append_eos: bool = False,
    prompt_special_tokens: bool = False,
) -> dict[str, torch.Tensor]:
    """Returns "input_ids", "labels" (int64) and "response_mask" (bool), each (B, T), T one less than the longest sequence.

    Prompt and output are tokenised apart and laid end to end, so that the output's tokens are what an engine samples after the
    prompt; padded on the right with the pad token (the end token where there is none), then shifted: input_ids is all but the
    last position, labels all but the first. The mask is aligned to the labels: True where the label is an output token, the
    first one included, never at padding. No special token is added: an end token is trained where it is part of the output, or
    with `append_eos`, which adds it. `prompt_special_tokens` lets the tokenizer add its own to the prompt (a BOS).
    Raises: DataError when the lists differ in length or are empty, a prompt or output has no token, or the tokenizer has no
    pad or end token that is needed.
    Source: CS336 (Stanford), assignment 5, `tokenize_prompt_and_output`.
    """
    if len(prompt_strs) != len(output_strs):
        raise DataError(f"{len(prompt_strs)} prompts and {len(output_strs)} outputs; there must be one for each")
    if not prompt_strs:
        raise DataError("the batch has no sequence; it needs at least one")
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad is None or (append_eos and end is None):
        raise DataError("the tokenizer has no end token; set its eos_token")
    prompts = tokenizer(list(prompt_strs), add_special_tokens=prompt_special_tokens)["input_ids"]
    outputs = tokenizer(list(output_strs), add_special_tokens=False)["input_ids"]
    batch = pad_and_shift(prompts, [[*output, end] if append_eos else output for output in outputs], pad)
    return {"input_ids": batch.input_ids_BT, "labels": batch.labels_BT, "response_mask": batch.response_mask_BT}
