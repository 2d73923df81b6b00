"""What makes a policy-gradient algorithm, as a record of its parts. No torch here, so that a config can be checked without it.

The loss of an update, with the ratio r of policy to old policy, the advantage A, and one weight w a token (the denominator):
sum over tokens of w · (c · objective(r, A) + kl_beta · KL_t) - entropy_coef · w · H_t, where c corrects for the engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from grpo_gsm8k.errors import ConfigError, unknown_name

PARTS: Mapping[str, tuple[str, ...]] = {
    "baseline": ("zero", "group_mean", "leave_one_out"),
    "scale": ("one", "group_std", "batch_std"),
    "ratio": ("token", "sequence"),
    "objective": ("reinforce", "clip", "cispo"),
    "denominator": ("tokens", "sequences", "sequence_sum", "constant"),
    "kl_estimator": ("k1", "k2", "k3"),
    "zero_variance": ("keep", "drop", "resample"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The parts of an algorithm.

    `baseline`: what is taken off a reward: nothing, its group's mean, or the mean of the group's others. `scale`: what that is
    divided by: 1, the group's standard deviation of rewards, or that of all centred rewards of the step, plus `advantage_eps`.
    `ratio`: of each token, or exp(mean log-ratio) of its sequence. `objective`: "reinforce" is -A log p; "clip" is
    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A); "cispo" is -clip(r, …) A log p with a constant clip. REINFORCE has no
    ratio, and both clips are None there. `denominator`, always of the whole update: "tokens" (all trained tokens), "sequences"
    (mean over rollouts of the mean over each one's tokens), "sequence_sum" (sum over tokens, mean over rollouts), "constant"
    (rollouts times max_tokens). `kl_beta` weighs the KL to the reference, `entropy_coef` the entropy bonus, both per token with
    the same denominator. `overlong_buffer`: tokens before the limit over which a penalty of up to `overlong_penalty` is taken
    off the reward; 0 is off, None is a fifth of the limit. `zero_variance`: what becomes of groups whose rewards are all equal.
    Raises: ConfigError for parts that are unknown, out of range or contradict each other.
    """

    name: str
    baseline: str
    scale: str
    objective: str
    denominator: str
    ratio: str = "token"
    clip_low: float | None = None
    clip_high: float | None = None
    kl_beta: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0
    overlong_buffer: int | None = 0
    overlong_penalty: float = 1.0
    zero_variance: str = "keep"
    advantage_eps: float = 1e-6

    def __post_init__(self) -> None:
        for part, allowed in PARTS.items():
            if getattr(self, part) not in allowed:
                raise ConfigError(unknown_name(part, getattr(self, part), allowed))
        for part in ("kl_beta", "entropy_coef", "overlong_penalty", "advantage_eps"):
            _check_number(part, getattr(self, part), math.inf)
        if self.overlong_buffer is not None:
            _check_number("overlong_buffer", self.overlong_buffer, math.inf)
        self._check_ratio()
        if self.baseline == "zero" and self.scale != "one":
            raise ConfigError(
                f"scale {self.scale} needs a group baseline: rewards that are not centred would be divided by near 0"
            )
        if self.baseline == "zero" and self.zero_variance != "keep":
            raise ConfigError(
                f"zero_variance {self.zero_variance} needs a group baseline: with baseline zero, equal rewards train too"
            )

    def _check_ratio(self) -> None:
        if self.objective == "reinforce":
            for part in ("clip_low", "clip_high"):
                if getattr(self, part) is not None:
                    raise ConfigError(f"{part} is not read by {self.name}, which has no ratio to clip; leave it out")
            if self.ratio == "sequence":
                raise ConfigError(f"ratio sequence is not read by {self.name}, which has no ratio; leave it out")
            return
        _check_number("clip_low", self.clip_low, 1.0)
        _check_number("clip_high", self.clip_high, math.inf)

    def overlong_tokens(self, max_tokens: int) -> int:
        """Returns the tokens before the limit over which the penalty grows. Raises: ConfigError when they are more."""
        buffer = max_tokens // 5 if self.overlong_buffer is None else self.overlong_buffer
        if buffer > max_tokens:
            raise ConfigError(
                f"overlong_buffer is {buffer} tokens, and a rollout has {max_tokens} at most; allowed is 0 to that"
            )
        return buffer


def with_parts(algorithm: Algorithm, **parts: Any) -> Algorithm:
    """Returns the algorithm with other parts; a part given as None stays as the algorithm has it.

    Raises: ConfigError for a part that there is not, that contradicts another, or that nothing would read.
    """
    names = {field.name for field in fields(Algorithm)} - {"name"}
    for part in sorted(parts.keys() - names):
        raise ConfigError(unknown_name("part of an algorithm", part, names))
    given = {part: value for part, value in parts.items() if value is not None}
    found = replace(algorithm, **given)
    unread = {
        "kl_estimator": (found.kl_beta == 0, "kl_beta is 0"),
        "advantage_eps": (found.scale == "one", "scale is one"),
        "overlong_penalty": (found.overlong_buffer == 0, "overlong_buffer is 0"),
    }
    for part, (is_unread, why) in unread.items():
        if part in given and is_unread:
            raise ConfigError(f"{part} is not read by {algorithm.name} while {why}; set that too, or leave {part} out")
    return found


def check_group_size(algorithm: Algorithm, group_size: int) -> None:
    """Raises: ConfigError when a group is too small for the algorithm's baseline."""
    if group_size < 1:
        raise ConfigError(f"group_size is {group_size}; a whole number from 1 is needed")
    if group_size == 1 and algorithm.baseline != "zero":
        raise ConfigError(
            f"group_size is 1, and baseline {algorithm.baseline} of {algorithm.name} compares the rollouts of a group; "
            "take 2 or more, or baseline zero"
        )


def _check_number(part: str, value: float | None, highest: float) -> None:
    if value is None or not 0 <= value <= highest or not math.isfinite(value):
        allowed = "at least 0" if math.isinf(highest) else f"from 0 to {highest:g}"
        raise ConfigError(f"{part} is {value}; a number {allowed} is needed")
