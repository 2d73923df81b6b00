"""`math`: is the answer mathematically equal to the gold? math-verify and what it misses, in worker processes.

What equals what: `rewards.equivalence`. `Score.answer` is a number's canonical form (`18`, `3/4`, `20%`), or the normalised
text, never cut, so that answers vote as they mean. A grading that takes longer than the timeout, crashes its worker, or in
which math-verify or sympy raises, is `error` with the reason, never `wrong`.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_gsm8k.rewards.workers import DEFAULT_TIMEOUT_S, WorkerPool, checked_timeout, default_num_workers
from grpo_gsm8k.types import Score


class MathGrader:
    """Grades with sympy in `num_workers` persistent processes (0: one a CPU, at most 8), `timeout_s` seconds a grading."""

    name = "math"
    version = "2"

    def __init__(self, num_workers: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        num_workers = default_num_workers(num_workers)
        self._pool = WorkerPool("grpo_gsm8k.rewards.math_worker", num_workers, checked_timeout(timeout_s))

    def grade(self, completion: str, gold: str) -> Score:
        """Returns the score of one completion; prefer `grade_batch`, which uses all workers."""
        return self.grade_batch([completion], [gold])[0]

    def grade_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Score]:
        """Returns one score a completion, in order.

        Raises: EnvironmentFailure when a worker cannot start (sympy or math-verify missing).
        """
        tasks = [[completion, gold] for completion, gold in zip(completions, golds, strict=True)]
        return [
            Score(0.0, None, "error", reply) if isinstance(reply, str) else Score(*reply) for reply in self._pool.run(tasks)
        ]

    def close(self) -> None:
        """Ends the workers; safe to call twice."""
        self._pool.close()
