"""The algorithms by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from grpo_gsm8k.algorithms.algorithm import Algorithm
from grpo_gsm8k.algorithms.cispo import CISPO
from grpo_gsm8k.algorithms.dapo import DAPO
from grpo_gsm8k.algorithms.dr_grpo import DR_GRPO
from grpo_gsm8k.algorithms.grpo import GRPO
from grpo_gsm8k.algorithms.gspo import GSPO
from grpo_gsm8k.algorithms.reinforce import REINFORCE
from grpo_gsm8k.algorithms.reinforce_baseline import REINFORCE_BASELINE
from grpo_gsm8k.algorithms.rloo import RLOO
from grpo_gsm8k.errors import ConfigError, unknown_name

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {algorithm.name: algorithm for algorithm in (REINFORCE, REINFORCE_BASELINE, RLOO, GRPO, DR_GRPO, DAPO, GSPO, CISPO)}
)


def find_algorithm(name: str) -> Algorithm:
    """Returns the algorithm of that name. Raises: ConfigError naming those there are."""
    if name not in ALGORITHMS:
        raise ConfigError(unknown_name("algorithm", name, ALGORITHMS))
    return ALGORITHMS[name]
