"""Whether a model can be trained packed: found out by trying, since no config says it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from grpo_gsm8k.errors import ModelError
from grpo_gsm8k.learners import packed_attention
from grpo_gsm8k.learners.head import head_of

LENGTHS = (7, 4, 9)
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of the largest logit; transformers norms in float32 even for float64
HALF_TOLERANCE = 0.05


@torch.no_grad()
def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes `model` attend packed, after comparing three short sequences packed with each alone in eager attention.

    Raises: ModelError when the model cannot: its attention is not in the registry, its layers carry a state from one token
    to the next across sequences, or its head is more than a scaled and soft-capped linear map.
    """
    kind = type(model).__name__
    if not model._supports_attention_backend:
        raise ModelError(f"{kind} does not look its attention up in transformers' registry; it cannot be trained packed")
    device, num_tokens = model.device, embedding_of(model).num_embeddings
    sequences = [(torch.arange(length, device=device) * 37 + 11 * length) % num_tokens for length in LENGTHS]
    head = head_of(model)
    model.set_attn_implementation("eager")  # the one that leaves nothing out: "sdpa" has no soft-capping
    alone_TV = torch.cat([model(input_ids=ids[None], use_cache=False).logits[0] for ids in sequences])
    alone_TV = alone_TV.to(torch.promote_types(alone_TV.dtype, torch.float32))
    model.set_attn_implementation(packed_attention.register())
    positions_T = torch.cat([torch.arange(length, device=device) for length in LENGTHS])
    try:
        packed_TV = head.logits(packed_hidden(model, torch.cat(sequences), positions_T, LENGTHS, (-1, -1, -1)))
    except TypeError as error:
        raise ModelError(f"{kind} cannot be trained packed: {' '.join(str(error).split())}") from error
    worst = ((packed_TV - alone_TV).abs().max() / alone_TV.abs().max()).item()
    if not worst <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        raise ModelError(
            f"{kind} cannot be trained packed: its logits change by {worst:.1g} when sequences are laid end to end "
            "(recurrent or convolutional layers, a position scheme or a head of its own)"
        )


def embedding_of(model: PreTrainedModel) -> torch.nn.Embedding:
    """Returns the model's input embeddings. Raises: ModelError when they are no plain table."""
    layer = model.get_input_embeddings()
    if not isinstance(layer, torch.nn.Embedding):
        raise ModelError(
            f"the embeddings of {type(model).__name__} are a {type(layer).__name__}; only a plain table can be trained"
        )
    return layer


def packed_hidden(
    model: PreTrainedModel,
    input_ids_T: torch.Tensor,
    position_ids_T: torch.Tensor,
    lengths: tuple[int, ...],
    continues: tuple[int, ...],
) -> torch.Tensor:
    """Returns the last hidden states (T, H) of segments laid end to end; `continues` as in `PackedBatch`."""
    layout = packed_attention.PackedLayout(lengths, continues)
    output = model.base_model(
        input_ids=input_ids_T[None], position_ids=position_ids_T[None], use_cache=False, packed_layout=layout
    )
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden
