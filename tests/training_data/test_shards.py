"""Shards: padded on the left, shifted, masked, and read back to the very sequences they were made of."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_gsm8k.algorithms.logprobs import get_response_log_probs
from grpo_gsm8k.engines.loading import load_model
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.training_data.shards import attention_mask, make_shard, read_shard, shard_bytes, shard_sequences

LONG = TokenSequence("long", (5, 6, 8, 9, 2), (False, False, True, True, True))
SHORT = TokenSequence("short", (7, 8, 2), (False, False, True))


def test_a_shard_is_that_written_out_by_hand() -> None:
    shard = make_shard([LONG, SHORT], pad_token_id=2, meta={})
    assert shard["input_ids"].tolist() == [[5, 6, 8, 9], [2, 2, 7, 8]]
    assert shard["labels"].tolist() == [[6, 8, 9, 2], [2, 7, 8, 2]]
    assert shard["response_mask"].tolist() == [[False, True, True, True], [False, False, False, True]]
    assert shard["lengths"].tolist() == [4, 2]
    assert attention_mask(shard["lengths"], 4).tolist() == [[True] * 4, [False, False, True, True]]
    assert (shard["pad_token_id"], shard["meta"]["num_tokens"], shard["meta"]["num_trained"]) == (2, 8, 4)
    assert [shard[name].dtype for name in ("input_ids", "labels", "response_mask")] == [torch.int64, torch.int64, torch.bool]


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence:
    num = draw(st.integers(2, 12))
    trained = draw(st.lists(st.booleans(), min_size=num - 1, max_size=num - 1))
    tokens = draw(st.lists(st.integers(0, 3), min_size=num, max_size=num))
    return TokenSequence(draw(st.text(max_size=5)), tuple(tokens), (False, *trained))


@settings(max_examples=60, deadline=None)
@given(st.lists(sequences(), min_size=1, max_size=6), st.integers(0, 3))
def test_sequences_come_back_as_they_were_even_where_the_pad_token_is_in_them(some: list[TokenSequence], pad: int) -> None:
    shard = read_shard(shard_bytes(make_shard(some, pad, {"shard": 0})), "s")
    assert shard_sequences(shard) == some
    mask = attention_mask(shard["lengths"], shard["input_ids"].shape[1])
    assert mask.sum().item() == sum(len(sequence.token_ids) - 1 for sequence in some)
    assert not (shard["response_mask"] & ~mask).any()
    assert torch.equal(shard["labels"][:, :-1], shard["input_ids"][:, 1:])


def test_a_shard_holds_plain_values_only_and_the_same_gives_the_same_bytes() -> None:
    content = shard_bytes(make_shard([LONG, SHORT], 0, {"why": None}))
    assert content == shard_bytes(make_shard([LONG, SHORT], 0, {"why": None}))
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert set(loaded) == {"input_ids", "labels", "response_mask", "lengths", "pad_token_id", "meta"}


def test_the_attention_of_a_shard_gives_each_sequence_the_log_probs_it_has_alone() -> None:
    model = load_model("tiny", device="cpu")
    some = [LONG, SHORT]
    shard = make_shard(some, pad_token_id=2, meta={})
    mask = attention_mask(shard["lengths"], 4).long()
    found = get_response_log_probs(model, shard["input_ids"], shard["labels"], attention_mask=mask)["log_probs"]
    for row, sequence in enumerate(some):
        ids = torch.tensor([sequence.token_ids])
        alone = get_response_log_probs(model, ids[:, :-1], ids[:, 1:])["log_probs"][0]
        torch.testing.assert_close(found[row, -len(alone) :], alone, atol=1e-5, rtol=1e-5)


def test_a_file_that_is_no_shard_or_was_changed_is_refused() -> None:
    with pytest.raises(DataError, match="s: not a shard that can be read"):
        read_shard(b"nonsense", "s")
    content = io.BytesIO()
    torch.save({"input_ids": torch.zeros(1)}, content)
    with pytest.raises(DataError, match="s: not a shard of pre-tokenised data"):
        read_shard(content.getvalue(), "s")
    with pytest.raises(DataError, match="s: not a shard of pre-tokenised data"):
        read_shard(shard_bytes(make_shard([LONG], 0, {}) | {"labels": None}), "s")
    shard = make_shard([LONG], 0, {})
    shard["labels"][0, 0] = 3
    with pytest.raises(DataError, match="not those it was written with"):
        read_shard(shard_bytes(shard), "s")
