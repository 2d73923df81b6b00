"""The learning rate of a step: linear warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math

from grpo_gsm8k.errors import ConfigError, unknown_name

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(step: int, *, total: int, warmup: int = 0, kind: str = "cosine", peak: float, floor: float = 0.0) -> float:
    """Returns the rate of `step` (0-based, of `total`).

    The first `warmup` steps rise linearly and reach `peak` at step `warmup` - 1; then the rate stays there (constant) or falls
    towards `floor` (a rate, not a fraction), which step `total` would have.
    Raises: ConfigError for a step, a warm-up or a kind that cannot be.
    """
    if kind not in SCHEDULES:
        raise ConfigError(unknown_name("schedule", kind, SCHEDULES))
    if not 0 <= step < total:
        raise ConfigError(f"step {step} has no learning rate; the schedule has steps 0 to {total - 1}")
    if not 0 <= warmup <= total:
        raise ConfigError(f"{warmup} warm-up steps do not fit into {total} steps; give 0 to {total}")
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    if kind == "constant":
        return peak
    left = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return floor + (peak - floor) * left
