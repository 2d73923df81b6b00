"""`math`: is the answer mathematically equal to the gold? math-verify and what it misses, in worker processes.

What equals what: `rewards.equivalence`. `Score.answer` is a number's canonical form (`18`, `3/4`, `20%`), or the normalised
text, never cut, so that answers vote as they mean. A grading that takes longer than the timeout, crashes its worker, or in
which math-verify or sympy raises, is `error` with the reason, never `wrong`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from grpo_gsm8k.rewards.workers import WorkerPool
from grpo_gsm8k.types import Score

DEFAULT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 240.0


class MathGrader:
    """Grades with sympy in `num_workers` persistent processes (0: one a CPU, at most 8), `timeout_s` seconds a grading."""

    name = "math"
    version = "2"

    def __init__(self, num_workers: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; it must be 0 (one a CPU) or more")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s is {timeout_s}; it must be more than 0 and at most {MAX_TIMEOUT_S:g}")
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = WorkerPool("grpo_gsm8k.rewards.math_worker", num_workers or min(cpus, 8), timeout_s)

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
