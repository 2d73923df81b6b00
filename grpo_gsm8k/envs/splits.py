"""What environments share: problems by split, and the loop over exchanges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from grpo_gsm8k.data.rows import normalised
from grpo_gsm8k.envs.protocol import Exchange, Outcome, Reply
from grpo_gsm8k.errors import DataError, unknown_name
from grpo_gsm8k.types import Problem, Score

SPLITS = ("train", "val", "test")


class SplitEnvironment:
    """An environment over given problems: a subclass says what answers a turn, and how a right rollout goes.

    Turns are answered in this process without a time limit, so what a subclass does must be bounded by its text: at most
    quadratic in a turn's length, which the number of sampled tokens bounds. What can hang belongs into `rewards.workers`.
    A turn that was cut by its length limit ends the rollout here with 0, unread: see `cut_by_length`.
    """

    name: str
    version: str
    max_turns: int
    stop: tuple[str, ...] = ()
    inline: bool = False

    def __init__(self, splits: Mapping[str, Sequence[Problem]]) -> None:
        self._splits = {split: list(problems) for split, problems in splits.items()}

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that `problems` knows."""
        return tuple(self._splits)

    def problems(self, split: str) -> list[Problem]:
        """Returns the problems of a split, in order. Raises: DataError when there is no such split."""
        if split not in self._splits:
            raise DataError(f"environment {self.name}: {unknown_name('split', split, self._splits)}")
        return list(self._splits[split])

    def reply(self, exchanges: Sequence[Exchange]) -> list[Reply]:
        """Returns what follows each exchange's last turn, in order."""
        return [cut_by_length(exchange) or self._answer(exchange) for exchange in exchanges]

    def _answer(self, exchange: Exchange) -> Reply:
        raise NotImplementedError

    def close(self) -> None:
        """Does nothing: there is nothing to free."""


def cut_by_length(exchange: Exchange) -> Outcome | None:
    """Returns the outcome of a rollout whose last turn was cut by its length limit, or None where it was not.

    The text alone cannot tell an answer from the number that happened to stand where the cut was, so it is not read.
    """
    if exchange.stop_reason != "length":
        return None
    why = f"turn {len(exchange.completions)} was cut by its length limit, so nothing is read from it"
    return Outcome(Score(0.0, None, "unparsed", why))


def generate_splits(
    make: Callable[[str, int, int], list[Problem]], sizes: Mapping[str, int], seed: int
) -> dict[str, list[Problem]]:
    """Returns `make(split, num, seed)` for each split and its size.

    Raises: DataError as `make`; AssertionError when a question is in two splits, which is a fault of `make`.
    """
    splits = {split: make(split, num, seed) for split, num in sizes.items()}
    home: dict[str, str] = {}
    for split, problems in splits.items():
        for problem in problems:
            where = home.setdefault(normalised(problem.question), split)
            assert where == split, f"{problem.id}: its question is in {where} too"
    return splits
