"""The worker process of the `math` grader: `python -m grpo_gsm8k.rewards.math_worker`.

A task is `[completion, gold]`, its reply `[value, answer, status, explanation]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpo_gsm8k.rewards.serving import serve


def prepare() -> Callable[[Any], list[Any]]:
    """Returns what grades a task, sympy and math-verify loaded."""
    from grpo_gsm8k.rewards.equivalence import grade_text

    def answer(task: Any) -> list[Any]:
        completion, gold = task
        score = grade_text(completion, gold)
        return [score.value, score.answer, score.status, score.explanation]

    grade_text("\\boxed{\\sqrt{8}}", "2\\sqrt{2}")
    return answer


if __name__ == "__main__":
    serve(prepare)
