"""DAPO, decoupled clip and dynamic sampling (Yu et al., arXiv 2503.14476, equation 8).

J = 1/Σ_i|y_i| Σ_i Σ_t min(r_t A_i, clip(r_t, 1 - ε_low, 1 + ε_high) A_i), A as in GRPO (equation 9), no KL. Its four parts:
clip-higher (ε_low 0.2, ε_high 0.28, equation 10); dynamic sampling (groups of equal rewards are sampled anew, equation 11);
every token counts the same, in long rollouts too (equation 12); soft overlong punishment (equation 13): over the last
`overlong_buffer` tokens before the limit, up to 1 is taken off the reward. The paper's buffer is 4096 of 20480 tokens; here it
is a fifth of whatever the limit is. Where it departs: the loop bounds how often it samples anew. TRL's "dapo" (its default
loss) is the token mean alone, with the clip symmetric unless `epsilon_high` is given.
"""

from __future__ import annotations

from grpo_gsm8k.algorithms.algorithm import Algorithm

DAPO = Algorithm(
    name="dapo",
    baseline="group_mean",
    scale="group_std",
    objective="clip",
    clip_low=0.2,
    clip_high=0.28,
    denominator="tokens",
    overlong_buffer=None,
    overlong_penalty=1.0,
    zero_variance="resample",
)
