"""The first half of a step: problems → rollouts in groups, scored; what came of them in numbers.

Shapes: G groups (problems), K rollouts a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.loops.curriculum import PassOrder
from grpo_gsm8k.loops.rollouts import RolloutBatch, RolloutRequest, RolloutSampler, turn_seeds
from grpo_gsm8k.runs.rollout_metrics import has_distinct_rewards, rollout_metrics
from grpo_gsm8k.types import Problem, Prompt, Rollout

Group = list[Rollout]


@dataclass(frozen=True)
class Collector:
    """Samples groups: of which problems, how many rollouts each, and how many may fail before the run stops.

    `resamples` is how many more rounds of as many problems as there are zero-variance groups replace those (0: none).
    """

    problems: Sequence[Problem]
    prompts: Sequence[Prompt]
    order: PassOrder
    group_size: int
    seed: int
    max_error_rate: float
    resamples: int = 0

    def collect(self, sampler: RolloutSampler, num_groups: int, step: int) -> Collected:
        """Returns the groups of a step. Raises: ProofError when too many graders or environments failed."""
        found, drawn = Collected(), Counter[str]()
        for attempt in range(1 + self.resamples):
            missing = num_groups - sum(has_distinct_rewards(group) for group in found.groups)
            if missing == 0:
                break
            found.groups = [group for group in found.groups if has_distinct_rewards(group)]
            found.num_replaced += missing if attempt else 0
            # Drawn for the whole step each time, so that what a problem gets does not depend on how many are missing.
            chosen = self.order.choose(num_groups, step, attempt)[:missing]
            batch = self._sample(sampler, chosen, step, drawn)
            self.order.observe(batch.rollouts)
            found.add(batch, self.group_size)
        self._check_errors(found, step)
        return found

    def _sample(self, sampler: RolloutSampler, chosen: Sequence[int], step: int, drawn: Counter[str]) -> RolloutBatch:
        """A problem that a step draws again gets further samples, not the same ones."""
        requests = []
        for index in chosen:
            problem = self.problems[index]
            first = drawn[problem.id] * self.group_size
            drawn[problem.id] += 1
            requests += [RolloutRequest(problem, self.prompts[index], first + sample) for sample in range(self.group_size)]
        return sampler.sample(requests, turn_seeds(self.seed, step))

    def _check_errors(self, found: Collected, step: int) -> None:
        rate = found.num_errors / max(1, found.num_sampled)
        if rate > self.max_error_rate:
            raise ProofError(
                f"step {step + 1}: grader or environment failed on {found.num_errors} of {found.num_sampled} rollouts "
                f"({100 * rate:.0f} %; max_error_rate allows {100 * self.max_error_rate:.0f} %), so rewards would be noise; "
                f"the first: {found.first_error}"
            )


@dataclass
class Collected:
    """The groups of a step, and what sampling them took."""

    groups: list[Group] = field(default_factory=list)
    sample_s: float = 0.0
    score_s: float = 0.0
    num_tokens: int = 0
    num_sampled: int = 0
    num_errors: int = 0
    num_replaced: int = 0
    first_error: str = ""

    def add(self, batch: RolloutBatch, group_size: int) -> None:
        """Adds a batch of rollouts that lie group after group."""
        rollouts = list(batch.rollouts)
        self.groups += [rollouts[start : start + group_size] for start in range(0, len(rollouts), group_size)]
        self.sample_s += batch.sample_s
        self.score_s += batch.score_s
        self.num_tokens += batch.num_tokens
        self.num_sampled += len(rollouts)
        failed = [rollout for rollout in rollouts if rollout.score.status == "error"]
        self.num_errors += len(failed)
        if failed and not self.first_error:
            explanation = " ".join(failed[0].score.explanation.split())
            self.first_error = f"{failed[0].problem.id}: {explanation or 'no explanation'}"

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, group after group."""
        return [rollout for group in self.groups for rollout in group]


def collected_metrics(found: Collected) -> dict[str, float]:
    """Returns what a step's rollouts say about rewards, groups and lengths, and how many were replaced or failed."""
    counts = {"groups/replaced": float(found.num_replaced), "rollout/errors": float(found.num_errors)}
    return rollout_metrics(found.groups) | counts
