"""Which problems a step samples: in passes over the data, or by how much there is to learn from each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from grpo_gsm8k.algorithms.data_order import batch_indices
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.types import Problem, Rollout

UNSEEN = 0.25  # the weight of a problem not sampled yet: that of the most instructive, pass rate 1/2
FLOOR = 0.01  # of one that was always or never right, so that it is met again


class PassOrder:
    """Passes over the data, each in an order of its own: a function of (seed, step) alone."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems, self._seed = problems, seed

    def choose(self, num: int, step: int, attempt: int = 0) -> list[int]:
        """Returns the indices of the problems of a step; a further attempt at the step draws from an order of its own."""
        if attempt:
            return batch_indices(len(self._problems), num, step, derive_seed(self._seed, attempt, "resample", 0))
        return batch_indices(len(self._problems), num, step, self._seed)

    def observe(self, rollouts: Iterable[Rollout]) -> None:
        """Takes note of nothing: the order does not depend on what came of it."""

    def state(self) -> Mapping[str, Sequence[int]]:
        """Returns nothing, for there is no state."""
        return {}

    def restore(self, state: Mapping[str, Sequence[int]]) -> None:
        """Takes up nothing."""


class PassRateOrder(PassOrder):
    """Problems drawn without replacement, with weight p(1 - p) at a pass rate of p so far.

    Source: the variance of a 0/1 reward, to which a group's expected squared advantage is proportional.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        super().__init__(problems, seed)
        self._counts: dict[str, list[int]] = {}

    def choose(self, num: int, step: int, attempt: int = 0) -> list[int]:
        """Returns the indices of the problems of a step, by Gumbel noise addressed by (seed, step, attempt)."""
        weights = np.full(len(self._problems), UNSEEN)
        for index, problem in enumerate(self._problems):
            if problem.id in self._counts:
                sampled, correct = self._counts[problem.id]
                weights[index] = max(FLOOR, correct / sampled * (1 - correct / sampled))
        seed = derive_seed(self._seed, step, "curriculum", attempt)
        keys = np.log(weights) + np.random.Generator(np.random.Philox(key=seed)).gumbel(size=len(weights))
        order = np.argsort(-keys, kind="stable").tolist()
        return [int(order[place % len(order)]) for place in range(num)]

    def observe(self, rollouts: Iterable[Rollout]) -> None:
        """Counts who was right; a failed grader says nothing of that."""
        for rollout in rollouts:
            if rollout.score.status == "error":
                continue
            counts = self._counts.setdefault(rollout.problem.id, [0, 0])
            counts[0] += 1
            counts[1] += rollout.score.status == "correct"

    def state(self) -> Mapping[str, Sequence[int]]:
        """Returns [sampled, correct] by problem id."""
        return self._counts

    def restore(self, state: Mapping[str, Sequence[int]]) -> None:
        """Takes up what `state` returned."""
        self._counts = {name: list(counts) for name, counts in state.items()}
