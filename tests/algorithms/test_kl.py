"""KL estimators against the exact divergence of small distributions."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_gsm8k.algorithms.kl import kl_terms
from grpo_gsm8k.errors import ConfigError


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_()
    reference = torch.randn(6, generator=rng, dtype=torch.float64).log_softmax(0)
    return logits, reference


def test_the_terms_are_those_worked_out_by_hand() -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])  # Δ is 0.5 and -1
    assert kl_terms(logprobs, reference, "k1").tolist() == [0.5, -1.0]
    assert kl_terms(logprobs, reference, "k2").tolist() == [0.125, 0.5]
    assert kl_terms(logprobs, reference, "k3").tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.e - 2])
    with pytest.raises(ConfigError, match="unknown kl_estimator 'k4'"):
        kl_terms(logprobs, reference, "k4")


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_over_the_policy_is_the_divergence(estimator: str) -> None:
    logits, reference = distributions()
    logprobs = logits.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    assert (logprobs.exp() * kl_terms(logprobs, reference, estimator)).sum().item() == pytest.approx(exact.item(), abs=1e-14)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_the_mean_gradient_over_the_policy_is_that_of_the_divergence(estimator: str) -> None:
    logits, reference = distributions()
    logprobs = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)
    terms = kl_terms(logprobs, reference, estimator)
    (found,) = torch.autograd.grad((logprobs.detach().exp() * terms).sum(), logits)  # tokens are drawn, not differentiated
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)


def test_the_gradient_of_k3_is_one_minus_the_inverse_ratio() -> None:
    logprobs = torch.tensor([-1.0, -2.0], dtype=torch.float64).requires_grad_()
    reference = torch.tensor([-1.5, -1.0], dtype=torch.float64).requires_grad_()
    kl_terms(logprobs, reference, "k3").sum().backward()
    assert logprobs.grad is not None and reference.grad is None
    assert logprobs.grad.tolist() == pytest.approx([1 - math.exp(-0.5), 1 - math.e])
