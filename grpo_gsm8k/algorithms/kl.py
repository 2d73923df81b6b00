"""Estimators of a KL divergence from log-probs of sampled tokens. Shapes: N tokens.

Source: Schulman, Approximating KL Divergence (2020): with Δ = log p - log q at tokens drawn from p, KL(p‖q) = E[Δ] (k1, of
either sign), about E[Δ²/2] (k2, biased, low variance), and E[exp(-Δ) - 1 + Δ] (k3, never negative).
"""

from __future__ import annotations

import torch

from grpo_gsm8k.errors import ConfigError, unknown_name


def kl_terms(logprobs_N: torch.Tensor, reference_N: torch.Tensor, estimator: str) -> torch.Tensor:
    """Returns (N), each token's estimate of KL(policy‖reference), in nats; `reference_N` is constant to the gradient.

    Gradients, with Δ = log p - log p_ref. k2 and k3 are differentiated as they stand: Δ ∇ log p, which is on average the true
    gradient of the KL on-policy, and (1 - exp(-Δ)) ∇ log p, GRPO's and TRL's, which is not quite. k1 as it stands would have
    ∇ log p, whose mean is 0 and which pulls nowhere; it is given the score-function gradient, Δ ∇ log p, that of a
    penalty on the token's own reward. (TRL multiplies k3 by the ratio by default, which makes its on-policy gradient k2's.)
    Raises: ConfigError for another estimator.
    """
    delta_N = logprobs_N - reference_N.detach()
    if estimator == "k1":
        return delta_N.detach() * (1 + logprobs_N - logprobs_N.detach())
    if estimator == "k2":
        return delta_N.square() / 2
    if estimator == "k3":
        return torch.exp(-delta_N) - 1 + delta_N
    raise ConfigError(unknown_name("kl_estimator", estimator, ("k1", "k2", "k3")))
