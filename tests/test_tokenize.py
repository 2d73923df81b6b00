"""Padding and shifting, against batches written out by hand."""

from __future__ import annotations

import pytest

from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.tokenize import pad_and_shift, tokenize_prompt_and_output


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


def test_prompt_and_output_are_tokenised_apart_padded_shifted_and_masked() -> None:
    tokenizer = load_tokenizer("tiny")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    prompts, outputs = ["How many?", "Ada"], ["12", "has 3 pens<|im_end|>"]
    batch = tokenize_prompt_and_output(prompts, outputs, tokenizer)
    pairs = [(tokenizer(p)["input_ids"], tokenizer(o)["input_ids"]) for p, o in zip(prompts, outputs, strict=True)]
    width = max(len(p) + len(o) for p, o in pairs)
    for row, (p, o) in enumerate(pairs):
        ids = [*p, *o, *[pad] * (width - len(p) - len(o))]
        trained = [False] * len(p) + [True] * len(o) + [False] * (width - len(p) - len(o))
        assert batch["input_ids"][row].tolist() == ids[:-1]
        assert batch["labels"][row].tolist() == ids[1:]
        assert batch["response_mask"][row].tolist() == trained[1:]
    assert pairs[1][1][-1] == end and end not in batch["labels"][0]
    appended = tokenize_prompt_and_output(prompts[:1], outputs[:1], tokenizer, append_eos=True)
    assert appended["labels"][0].tolist() == [*pairs[0][0], *pairs[0][1], end][1:]
    assert appended["response_mask"].sum() == len(pairs[0][1]) + 1


def test_a_piece_that_spans_prompt_and_output_is_not_merged() -> None:
    tokenizer = load_tokenizer("tiny")
    merged, apart = tokenizer("How many")["input_ids"], [*tokenizer("How ma")["input_ids"], *tokenizer("ny")["input_ids"]]
    assert merged != apart
    batch = tokenize_prompt_and_output(["How ma"], ["ny"], tokenizer)
    assert [batch["input_ids"][0, 0].item(), *batch["labels"][0].tolist()] == apart


def test_pairs_that_cannot_be_trained_are_refused() -> None:
    tokenizer = load_tokenizer("tiny")
    with pytest.raises(DataError, match="2 prompts and 1 outputs"):
        tokenize_prompt_and_output(["a", "b"], ["c"], tokenizer)
    with pytest.raises(DataError, match="sequence 0 has an empty response"):
        tokenize_prompt_and_output(["a"], [""], tokenizer)
    with pytest.raises(DataError, match="no sequence"):
        tokenize_prompt_and_output([], [], tokenizer)
