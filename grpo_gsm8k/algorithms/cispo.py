"""CISPO, clipped importance sampling policy optimization (MiniMax-M1, arXiv 2506.13585, equations 4 and 5).

J = 1/Σ_i|y_i| Σ_i Σ_t sg(clip(r_t, 1 - ε_low, 1 + ε_high)) A_i log p(y_t), A as in GRPO, no KL. The clip bounds the weight and
is a constant to the gradient, so that no token ever drops out of it. As in the paper there is no lower bound (ε_low is 1, and
no ratio is below 0). The paper does not give its ε_high; 4, a cap of 5 on the weight, is ScaleRL's (arXiv 2510.13786). TRL's
`epsilon_high` is the cap itself, 1 + ε_high.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

CISPO = Algorithm(
    name="cispo",
    baseline="group_mean",
    scale="group_std",
    objective="cispo",
    clip_low=1.0,
    clip_high=4.0,
    denominator="tokens",
)
