"""Dr. GRPO, GRPO done right (Liu et al., arXiv 2503.20783, section 3.2): GRPO without the two divisions that bias it.

J = 1/G Σ_i 1/M Σ_t min(r_t A_i, clip(r_t, 1 - ε, 1 + ε) A_i), A_i = R_i - mean R. Dividing by |y_i| makes long wrong answers
cheap; dividing by the group's std favours problems that are nearly always or nearly never solved. M is the most tokens that a
rollout can have, a constant, so that the update is a plain sum up to the learning rate. Where it departs: nowhere known; with
scale group_std it is what some recipes call Dr. GRPO with standardised advantages.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

DR_GRPO = Algorithm(
    name="dr_grpo",
    baseline="group_mean",
    scale="one",
    objective="clip",
    clip_low=0.2,
    clip_high=0.2,
    denominator="constant",
)
