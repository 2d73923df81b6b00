"""The worker process that runs reasoning-gym's scorers: `python -m grpo_gsm8k.rewards.gym_worker`.

A task is `[problem id, question, meta.gym, completion]`, its reply `[value, answer, status, explanation]`; where the problem
itself is refused, `{"refused": "DataError" or "ProofError", "message": …}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpo_gsm8k.rewards.serving import serve


def prepare() -> Callable[[Any], Any]:
    """Returns what scores a task, reasoning-gym loaded."""
    import reasoning_gym  # noqa: F401 (its import must not count as a task's time)

    from grpo_gsm8k.data.gym import score
    from grpo_gsm8k.errors import DataError, ProofError
    from grpo_gsm8k.types import Problem

    def answer(task: Any) -> Any:
        identity, question, spec, completion = task
        try:
            found = score(Problem(identity, question, "", "", {"gym": spec}), completion)
        except (DataError, ProofError) as error:
            return {"refused": type(error).__name__, "message": str(error)}
        return [found.value, found.answer, found.status, found.explanation]

    return answer


if __name__ == "__main__":
    serve(prepare)
