"""Choosing tokens from logits, checked by hand and against transformers' own processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_gsm8k.engines import token_choice
from grpo_gsm8k.engines.token_choice import (
    blocked_prefix_sums,
    choose_tokens,
    draw_uniforms,
    inverse_cdf,
    processed_logits,
)
from grpo_gsm8k.types import Sampling


def test_uniforms_depend_on_seed_and_position_alone() -> None:
    long = draw_uniforms(2**48 - 1, 50)
    assert np.array_equal(long[:7], draw_uniforms(2**48 - 1, 7))
    assert not np.array_equal(long, draw_uniforms(2**48 - 2, 50))
    assert 0 <= long.min() < long.max() < 1


def test_greedy_takes_the_lowest_id_of_a_tie_with_its_plain_logprob() -> None:
    ids, logprobs = choose_tokens(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), Sampling(temperature=0.0), None)
    assert ids.tolist() == [1]
    assert logprobs.item() == pytest.approx(2.0 - math.log(1 + 2 * math.exp(2) + math.e), abs=1e-6)


def test_inverse_cdf_by_hand() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.999999999])
    assert inverse_cdf(probabilities, uniforms.double()).tolist() == [1, 1, 3, 3, 4, 4]


def test_a_token_of_probability_zero_is_never_taken_at_either_end() -> None:
    probabilities = torch.zeros(2, 1000)
    probabilities[:, 500] = 1.0
    assert inverse_cdf(probabilities, torch.tensor([0.0, np.nextafter(1.0, 0.0)]).double()).tolist() == [500, 500]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 4), width=st.integers(1, 300) | st.integers(4090, 4200), seed=st.integers(0, 1000))
def test_blocked_prefix_sums_equal_cumsum(rows: int, width: int, seed: int) -> None:
    values = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(blocked_prefix_sums(values), values.cumsum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (1.0, 5), (0.6, 40), (1e-9, 0), (1.0, 10_000)])
def test_processing_equals_that_of_transformers(top_p: float, top_k: int) -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)) * 3
    warp = LogitsProcessorList([TemperatureLogitsWarper(0.7)])
    if top_k:
        warp.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warp.append(TopPLogitsWarper(top_p))
    ours = processed_logits(logits, Sampling(temperature=0.7, top_p=top_p, top_k=top_k)).log_softmax(-1)
    wanted = warp(None, logits).log_softmax(-1)
    assert torch.equal(ours.isinf(), wanted.isinf())
    assert torch.allclose(ours.exp(), wanted.exp(), atol=1e-6)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_both_ways_of_summing_choose_the_same_tokens(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(2)) * 2
    uniforms, sampling = torch.from_numpy(draw_uniforms(3, 64)), Sampling(temperature=1.0, top_p=top_p)
    ids, _ = choose_tokens(logits, sampling, uniforms)
    monkeypatch.setattr(token_choice, "prefix_sums", blocked_prefix_sums)
    assert torch.equal(choose_tokens(logits, sampling, uniforms)[0], ids)
    assert len(set(ids.tolist())) > 30


def test_rounding_that_leads_past_the_last_possible_token_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.5, 0.0, 0.0]])
    rounded = torch.tensor([[0.0, 0.5, 1.0 - 2**-52, 1.0, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(token_choice, "prefix_sums", lambda _values: rounded)
    assert inverse_cdf(probabilities, torch.tensor([1.0 - 2**-53], dtype=torch.float64)).tolist() == [2]


def test_samples_follow_the_distribution() -> None:
    sampling = Sampling(temperature=0.5, top_k=3)
    logits = torch.tensor([[1.0, 0.0, 0.5, -1.0, 0.9]])
    count = 20_000
    ids, logprobs = choose_tokens(logits.expand(count, -1), sampling, torch.from_numpy(draw_uniforms(5, count)))
    wanted = processed_logits(logits, sampling).softmax(-1)[0]
    assert torch.allclose(torch.bincount(ids, minlength=5) / count, wanted, atol=0.012)
    assert torch.allclose(logprobs.exp(), wanted[ids], atol=1e-6)
    assert set(ids.tolist()) == {0, 2, 4}


def test_a_choice_does_not_depend_on_the_rows_beside_it() -> None:
    logits = torch.randn(16, 3000, generator=torch.Generator().manual_seed(1))
    uniforms = torch.from_numpy(draw_uniforms(9, 16))
    sampling = Sampling(temperature=1.0, top_p=0.95)
    ids, _ = choose_tokens(logits, sampling, uniforms)
    alone = [choose_tokens(logits[i : i + 1], sampling, uniforms[i : i + 1])[0].item() for i in range(16)]
    assert ids.tolist() == alone


def test_bfloat16_logits_give_float32_logprobs() -> None:
    logits = torch.randn(2, 100).bfloat16()
    _, logprobs = choose_tokens(logits, Sampling(temperature=1.0), torch.tensor([0.3, 0.6], dtype=torch.float64))
    assert logprobs.dtype == torch.float32
