"""The grading seam: pure text in, `Score` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from grpo_gsm8k.types import Score


class Grader(Protocol):
    """Says whether a completion is right. Deterministic; never raises on any text.

    A grader that fails says so (`Score.status == "error"`), which is not the same as a 0.
    """

    @property
    def name(self) -> str:
        """The grader's registered name."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the grader's behaviour does; recorded with every verdict."""
        ...

    def grade(self, completion: str, gold: str) -> Score:
        """Returns the score of one completion against `gold`, the final answer alone."""
        ...

    def grade_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Score]:
        """Returns one score a completion, in order.

        Raises: ValueError when the two sequences differ in length.
        """
        ...

    def close(self) -> None:
        """Frees what the grader holds (worker processes); safe to call twice."""
        ...


class InProcessGrader:
    """A grader that needs nothing to be freed: batches are a loop, closing does nothing."""

    name: str
    version: str

    def grade(self, completion: str, gold: str) -> Score:
        """Returns the score of one completion against `gold`."""
        raise NotImplementedError

    def grade_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Score]:
        """Returns one score a completion, in order."""
        grade = self.grade
        return [grade(completion, gold) for completion, gold in zip(completions, golds, strict=True)]

    def close(self) -> None:
        """Does nothing: there is nothing to free."""
