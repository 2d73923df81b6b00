"""Padding and shifting, against batches written out by hand."""

from __future__ import annotations

import pytest

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.tokenize import pad_and_shift


def test_batch_is_padded_shifted_and_masked_as_written_out_by_hand() -> None:
    batch = pad_and_shift([[5, 6], [7]], [[8, 9, 2], [2]], pad_token_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 8, 9], [7, 2, 0, 0]]
    assert batch.labels_BT.tolist() == [[6, 8, 9, 2], [2, 0, 0, 0]]
    assert batch.response_mask_BT.tolist() == [[False, True, True, True], [True, False, False, False]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.num_trained == 4


def test_end_token_is_trained_even_where_it_is_also_the_padding() -> None:
    batch = pad_and_shift([[5], [6]], [[7, 2], [2]], pad_token_id=2)
    assert batch.response_mask_BT.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("prompts", "responses", "part"), [([[1], []], [[2], [2]], "prompt"), ([[1], [1]], [[2], []], "response")]
)
def test_empty_prompt_or_response_is_refused_with_its_place(
    prompts: list[list[int]], responses: list[list[int]], part: str
) -> None:
    with pytest.raises(DataError, match=f"sequence 1 has an empty {part}"):
        pad_and_shift(prompts, responses, pad_token_id=0)


def test_batch_without_sequences_is_refused() -> None:
    with pytest.raises(DataError, match="no sequence"):
        pad_and_shift([], [], pad_token_id=0)
