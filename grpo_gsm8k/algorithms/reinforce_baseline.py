"""REINFORCE with the group's mean reward as its baseline (Williams, 1992, with a reinforcement baseline of the prompt's own).

A_i = R_i - mean(R_1 … R_K) over the K rollouts of a problem; the loss is the mean over rollouts of -A_i Σ_t log p. The mean
holds R_i itself, so the expected gradient is (K - 1) / K of the true one (a smaller step in the same direction); `rloo` leaves
R_i out. CS336's `reinforce_with_baseline` divides by the group's standard deviation as well: scale group_std.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

REINFORCE_BASELINE = Algorithm(
    name="reinforce_baseline", baseline="group_mean", scale="one", objective="reinforce", denominator="sequence_sum"
)
