"""RLOO: REINFORCE with a leave-one-out baseline (Kool et al., 2019; for language models Ahmadian et al., arXiv 2402.14740).

A_i = R_i - mean of the other K - 1 rewards of the problem; the loss is the mean over rollouts of -A_i Σ_t log p(y_t). Unbiased:
the baseline does not depend on y_i. Where it departs: the KL to the reference, if any, is a term of the loss with the k2
gradient, token by token; the paper takes β · Σ_t (log p - log p_ref) off the reward before the baseline. TRL's RLOO also clips
the product ratio of the sequence, which on-policy is 1: its gradient is then this one (its loss has another value).
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

RLOO = Algorithm(
    name="rloo",
    baseline="leave_one_out",
    scale="one",
    objective="reinforce",
    denominator="sequence_sum",
    kl_estimator="k1",
)
