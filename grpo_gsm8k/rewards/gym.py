"""reasoning-gym's own scorers (`data.gym.score`) in worker processes: some evaluate what a model wrote, and can hang on it.

A scorer that takes longer than the timeout is killed with its worker, which is replaced: its completion's score is `error` with
the reason, never `wrong`, and no other's is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.rewards.workers import DEFAULT_TIMEOUT_S, WorkerPool, checked_timeout, default_num_workers
from grpo_gsm8k.types import Problem, Score

_REFUSALS = {"DataError": DataError, "ProofError": ProofError}


class GymScorer:
    """Scores completions of reasoning-gym's problems, each in at most `timeout_s` seconds (0 workers: one a CPU, at most 8)."""

    name = "gym"

    def __init__(self, num_workers: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Starts nothing yet. Raises: ValueError for impossible arguments."""
        self.version = f"reasoning-gym {version('reasoning-gym')}"
        num_workers = default_num_workers(num_workers)
        self._pool = WorkerPool("grpo_gsm8k.rewards.gym_worker", num_workers, checked_timeout(timeout_s))

    def score_batch(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Returns one score a completion, in order.

        Raises: DataError, ProofError as `data.gym.score_answer`; EnvironmentFailure when a worker cannot start.
        """
        tasks = []
        for problem, completion in zip(problems, completions, strict=True):
            if "gym" not in problem.meta:
                raise DataError(f"{problem.id}: not a reasoning-gym problem (no meta.gym)")
            tasks.append([problem.id, problem.question, problem.meta["gym"], completion])
        scores = []
        for problem, reply in zip(problems, self._pool.run(tasks), strict=True):
            if isinstance(reply, str):
                why = f"reasoning-gym's scorer of {problem.meta['gym']['dataset']}: {reply}"
                scores.append(Score(0.0, None, "error", why))
            elif isinstance(reply, dict):
                raise _REFUSALS[reply["refused"]](reply["message"])
            else:
                scores.append(Score(*reply))
        return scores

    def close(self) -> None:
        """Ends the workers; safe to call twice."""
        self._pool.close()
