"""Records that the primitives pass to each other (sample → score → advantage → update).

All are frozen; token ids are tuples of Python ints, so that a record can be hashed, compared and written as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StopReason = Literal["eos", "stop", "length"]
Status = Literal["correct", "wrong", "unparsed", "error"]
RolloutStop = Literal["answered", "length", "max_turns", "max_tokens", "error"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a data set.

    `id` is stable across machines and splits; `answer` is the reference solution as published; `gold` its final answer alone.
    """

    id: str
    question: str
    answer: str
    gold: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One rendered prompt.

    `token_ids` is what engines sample from. `text` is what it was tokenised from. `messages` (role/content pairs) are given
    where the template is a chat; only engines whose server applies its own chat template use them.
    """

    problem_id: str
    token_ids: tuple[int, ...]
    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 are off; `max_tokens` counts new tokens.

    `stop` strings end a completion; the token that completes a stop string is kept.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine sampled for one prompt.

    `token_ids` are the sampled tokens, the end-of-sequence token or the end of a stop string included. `logprobs` are the
    natural-log probabilities of those tokens under the distribution they were sampled from (temperature, top-p and top-k
    applied; at temperature 0, of the plain softmax at temperature 1), or None where the engine has none. `stop_reason` is
    "eos" (the model ended it), "stop" (a stop string) or "length" (truncated at `max_tokens`). `text` is given only by
    engines whose server decodes; everyone else's tokens are decoded once, by the caller.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    stop_reason: StopReason
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What a grader says of one completion.

    `value` is 1.0 for correct, 0.0 otherwise (shaped rewards may lie between). `answer` is what was read from the completion.
    `status`: correct | wrong | unparsed (no answer found) | error (the grader itself failed, which is not a 0).
    """

    value: float
    answer: str | None
    status: Status
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the model in a rollout: it sampled `token_ids[start:end]` of the rollout, which read `text`."""

    start: int
    end: int
    text: str
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, what followed it, and its score, exact at token level: nothing in it was decoded and encoded again.

    `token_ids` is all that follows the prompt; `sampled` says of each token whether the model sampled it (the others are the
    environment's) and `logprobs` are the sampling log-probs (0.0 where a token was not sampled). `stop_reason`: "answered" (the
    environment gave a score), "length" (a turn was cut by its limit), "max_turns", "max_tokens" (of the whole rollout) or
    "error" (the environment failed, see `score.explanation`). `metrics` are the environment's own numbers.
    """

    problem: Problem
    sample_index: int
    seed: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    turns: tuple[Turn, ...]
    stop_reason: RolloutStop
    score: Score
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_sampled(self) -> int:
        """How many tokens the model sampled."""
        return sum(self.sampled)
