"""GRPO, group relative policy optimization (DeepSeekMath, arXiv 2402.03300, equation 3; KL: equation 4; A: section 4.1.2).

J = 1/G Σ_i 1/|y_i| Σ_t min(r_t A_i, clip(r_t, 1 - ε, 1 + ε) A_i) - β KL_t, A_i = (R_i - mean R) / std R over the group, r_t the
token's probability under the policy over that under the old one, KL_t the k3 estimator. Where it departs: β is 0 by default
(the paper has 0.04; later work leaves the KL out), and `advantage_eps` is added to the standard deviation (K - 1 in its
denominator). The paper does not give its ε; 0.2 is PPO's.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

GRPO = Algorithm(
    name="grpo",
    baseline="group_mean",
    scale="group_std",
    objective="clip",
    clip_low=0.2,
    clip_high=0.2,
    denominator="sequences",
)
