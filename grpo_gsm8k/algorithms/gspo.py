"""GSPO, group sequence policy optimization (Zheng et al., arXiv 2507.18071, equation 5).

J = 1/G Σ_i min(s_i A_i, clip(s_i, 1 - ε_low, 1 + ε_high) A_i), s_i = (p(y_i) / p_old(y_i))^(1/|y_i|) = exp(mean_t log r_t)
(equation 7), A as in GRPO (equation 6). The whole sequence is clipped or not; its gradient is s_i A_i · mean_t ∇ log p. The
clips are the paper's (section 5.1); they are small because s_i is a geometric mean. Where it departs: in a rollout of several
turns the mean is over the sampled tokens.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

GSPO = Algorithm(
    name="gspo",
    baseline="group_mean",
    scale="group_std",
    ratio="sequence",
    objective="clip",
    clip_low=3e-4,
    clip_high=4e-4,
    denominator="sequences",
)
