"""A small environment of several turns for the tests of the loops, and tokens that are easy to read.

Token 0 ends a turn; what an environment says is rendered as 900 (only where the model did not end its turn), 901, one token a
word, 902.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.types import Problem, Prompt, Score

EOS = 0


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(str(token) for token in token_ids if token != EOS)


def extend(observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
    return (*((900,) if eos_token_id is None else ()), 901, *(int(word) for word in observation.split()), 902)


def problem(number: int, gold: str = "1") -> Problem:
    return Problem(f"p{number}", f"question {number}", f"answer {number}", gold, {"level": number})


def prompt(number: int) -> Prompt:
    return Prompt(f"p{number}", (700, 701 + number), f"prompt {number}")


@dataclass
class SumEnv:
    """Wants `turns` turns, says after each how many it has seen and 50, then scores the last: correct if it holds the gold.

    Raises on the problem `raises_on`, and on any batch that holds it; its grader fails on `fails_on`.
    """

    turns: int = 3
    raises_on: str = ""
    fails_on: str = ""
    name: str = "sum"
    version: str = "1"
    stop: tuple[str, ...] = ()
    inline: bool = False
    splits: tuple[str, ...] = ("test",)

    @property
    def max_turns(self) -> int:
        return self.turns

    def problems(self, split: str) -> list[Problem]:
        return [problem(number) for number in range(4)]

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        return (problem.gold,) * self.turns

    def reply(self, exchanges: Sequence[Exchange]) -> list[Reply]:
        if any(exchange.problem.id == self.raises_on for exchange in exchanges):
            raise RuntimeError("the tool\nis broken")
        return [self._reply(exchange) for exchange in exchanges]

    def _reply(self, exchange: Exchange) -> Reply:
        seen = len(exchange.completions)
        if seen < self.turns:
            return Observation(f"{seen} 50")
        if exchange.problem.id == self.fails_on:
            return Outcome(Score(0.0, None, "error", "the grader failed"))
        last = exchange.completions[-1]
        if exchange.stop_reason == "length":
            return Outcome(Score(0.0, last, "unparsed", "cut by length"))
        right = exchange.problem.gold in last.split()
        return Outcome(Score(float(right), last, "correct" if right else "wrong"), {"turns_used": float(seen)})

    def close(self) -> None:
        pass
