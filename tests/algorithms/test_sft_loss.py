"""The supervised loss, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_gsm8k.algorithms.packing import pack
from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.tokenize import TokenSequence

BATCH = pack([TokenSequence("a", (4, 5, 6, 7), (False, True, True, True))], [0])


def test_loss_is_the_negative_log_likelihood_over_the_tokens_of_the_whole_step() -> None:
    logprobs_N = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log()
    assert SftLoss(num_trained=3)(logprobs_N, BATCH).item() == pytest.approx((1 + 2 + 3) * math.log(2) / 3, rel=1e-12)
    assert SftLoss(num_trained=12)(logprobs_N, BATCH).item() == pytest.approx((1 + 2 + 3) * math.log(2) / 12, rel=1e-12)


def test_loss_is_the_sum_of_those_of_any_slices_of_its_tokens() -> None:
    logprobs_N = torch.tensor([0.5, 0.3, 0.125], dtype=torch.float64).log()
    loss = SftLoss(num_trained=5)
    parts = [loss(logprobs_N[part], BATCH.tokens(part)).item() for part in (slice(0, 2), slice(2, 3))]
    assert loss.separable
    assert sum(parts) == pytest.approx(loss(logprobs_N, BATCH).item(), rel=1e-12)


def test_step_that_trains_no_token_is_refused() -> None:
    with pytest.raises(ProofError, match="trains 0 tokens"):
        SftLoss(num_trained=0)
