"""The supervised loss, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import ProofError


def test_loss_is_the_mean_negative_log_likelihood_of_response_tokens() -> None:
    logprobs_BT = torch.tensor([[0.9, 0.5, 0.25], [0.125, 0.9, 0.9]], dtype=torch.float64).log()
    mask_BT = torch.tensor([[False, True, True], [True, False, False]])
    loss = SftLoss(num_trained=3)(logprobs_BT, mask_BT)
    assert loss.item() == pytest.approx((1 + 2 + 3) * math.log(2) / 3, rel=1e-12)


def test_infinite_log_probs_outside_the_response_do_not_reach_the_loss_or_its_gradient() -> None:
    logprobs_BT = torch.tensor([[-math.inf, -2.0]], requires_grad=True)
    loss = SftLoss(num_trained=1)(logprobs_BT, torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == 2.0
    assert logprobs_BT.grad is not None
    assert logprobs_BT.grad.tolist() == [[0.0, -1.0]]


def test_step_that_trains_no_token_is_refused() -> None:
    with pytest.raises(ProofError, match="trains 0 tokens"):
        SftLoss(num_trained=0)
