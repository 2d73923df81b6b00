"""REINFORCE (Williams, 1992, Machine Learning 8:229): raise the log-prob of what was sampled, in proportion to its reward.

∇J = E[R(y) Σ_t ∇ log p(y_t | x, y_<t)]; the loss is the mean over rollouts of -R Σ_t log p. No baseline: the gradient is
unbiased and noisy, and rewards of 0 train nothing. The ratio to the old policy does not enter, so that further updates on the
same rollouts are off-policy uncorrected.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

REINFORCE = Algorithm(name="reinforce", baseline="zero", scale="one", objective="reinforce", denominator="sequence_sum")
