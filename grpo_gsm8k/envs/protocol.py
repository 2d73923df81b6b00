"""The environment seam: a problem becomes a prompt, a completion becomes a score or the next observation.

An environment keeps no state between calls: what it answers is a function of the problem and the model's turns so far. So a
rollout can be taken up, replayed and checked from its record alone, and the order of calls never matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from grpo_gsm8k.types import Problem, Score, StopReason


@dataclass(frozen=True, slots=True)
class Exchange:
    """A rollout as its environment sees it: the problem, the model's turns so far (oldest first), how the last one ended."""

    problem: Problem
    completions: tuple[str, ...]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment says next; the model answers it in another turn."""

    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rollout's end: its score, and the environment's own numbers (such as the guesses a game took)."""

    score: Score
    metrics: Mapping[str, float] = field(default_factory=dict)


Reply = Observation | Outcome


class Environment(Protocol):
    """Makes problems, answers the model's turns, scores rollouts. Deterministic; torch-free."""

    @property
    def name(self) -> str:
        """The environment's registered name."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever problems, observations or scores do; goes into the run directory."""
        ...

    @property
    def max_turns(self) -> int:
        """Turns of the model that a rollout may have; 1 for a single-turn environment.

        Who samples ends a rollout there, if the environment would still answer with an Observation.
        """
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn of the model; () where only its own end token does."""
        ...

    @property
    def inline(self) -> bool:
        """Whether an observation goes on within the model's own text; otherwise it is a user's message of a chat."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that `problems` knows."""
        ...

    def problems(self, split: str) -> list[Problem]:
        """Returns the problems of "train", "val" or "test"; `question` is the first message, put into the template.

        Raises: DataError when there is no such split.
        """
        ...

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        """Returns the turns of a rollout that earns the full score, from the published answer; () where there is none."""
        ...

    def reply(self, exchanges: Sequence[Exchange]) -> list[Reply]:
        """Returns what follows each exchange's last turn, in order; a single-turn environment gives an Outcome each."""
        ...

    def close(self) -> None:
        """Frees what the environment holds (worker processes); safe to call twice."""
        ...
