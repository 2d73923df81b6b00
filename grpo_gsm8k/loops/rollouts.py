"""Sampling of rollouts in lockstep: the next turn of every live rollout in one `generate` call, then the environment's replies.

Exact at token level. What the engine sampled is kept as it was sampled, with its log-probs; what the environment says is
rendered once and appended with mask 0; each turn's prompt must begin with the one before it. A rollout's tokens end with a
sampled one: an observation that no turn follows is not part of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from grpo_gsm8k.engines.protocol import Engine, require
from grpo_gsm8k.envs.protocol import Environment, Exchange, Observation, Outcome, Reply
from grpo_gsm8k.errors import ConfigError, EnvironmentFailure, InputError, ProofError
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.types import Completion, Problem, Prompt, Rollout, RolloutStop, Sampling, Score, Turn

log = logging.getLogger("grpo_gsm8k")

SeedOf = Callable[[str, int, int], int]
"""The engine seed of (problem id, sample index, turn)."""


class Extend(Protocol):
    """Renders what the environment says as the tokens between two turns of the model (turns.ObservationRenderer.extend)."""

    def __call__(self, observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
        """Returns the tokens that follow a turn, which the model ended with that token, or (None) did not end."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """What ends a rollout that its environment does not end: turns, sampled tokens of one turn, tokens after the prompt.

    The environment's own `max_turns` holds too, where it is less. `max_tokens` counts the environment's tokens too; None leaves
    the model's window alone. Raises: ConfigError.
    """

    max_turns: int
    max_tokens_per_turn: int
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Checks the limits."""
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} of a rollout is {value}; it must be 1 or more")


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One rollout to sample: a problem, its rendered prompt, and which of the problem's samples it is."""

    problem: Problem
    prompt: Prompt
    sample_index: int


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rollouts in the order of their requests, what they took, and what failed.

    `num_env_errors`: rollouts whose environment raised; `num_grader_errors`: rollouts whose grader said that it failed. Neither
    is a reward of 0. `num_tokens` counts sampled tokens.
    """

    rollouts: tuple[Rollout, ...]
    sample_s: float
    score_s: float
    num_env_errors: int
    num_grader_errors: int
    num_tokens: int


def turn_seeds(run_seed: int, step: int) -> SeedOf:
    """Returns the seeds of a step's turns; a first turn has the seed of its sample's address, as in an evaluation."""

    def seed_of(problem_id: str, sample_index: int, turn: int) -> int:
        seed = derive_seed(run_seed, step, problem_id, sample_index)
        return seed if turn == 0 else derive_seed(seed, turn, problem_id, sample_index)

    return seed_of


@dataclass(frozen=True, slots=True)
class _Failure:
    """The environment raised instead of replying."""

    explanation: str


@dataclass(slots=True)
class _Growing:
    """A rollout being sampled. `context` is what its newest turn was sampled from, `cut` the limit that cut that turn."""

    request: RolloutRequest
    seed: int
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    context: tuple[int, ...] = ()
    cut: RolloutStop | None = None
    done: Rollout | None = None

    def append(self, token_ids: Sequence[int], logprobs: Sequence[float], *, sampled: bool) -> None:
        """Adds tokens of the model or of the environment."""
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.sampled += [sampled] * len(token_ids)

    def exchange(self) -> Exchange:
        """Returns the rollout as its environment sees it."""
        return Exchange(self.request.problem, tuple(turn.text for turn in self.turns), self.turns[-1].stop_reason)

    def finish(self, stop_reason: RolloutStop, score: Score, metrics: Mapping[str, float] | None = None) -> None:
        """Ends the rollout."""
        self.done = Rollout(
            problem=self.request.problem,
            sample_index=self.request.sample_index,
            seed=self.seed,
            prompt_token_ids=self.request.prompt.token_ids,
            token_ids=tuple(self.token_ids),
            sampled=tuple(self.sampled),
            logprobs=tuple(self.logprobs),
            turns=tuple(self.turns),
            stop_reason=stop_reason,
            score=score,
            metrics=dict(metrics or {}),
        )


class RolloutSampler:
    """Samples rollouts of an environment through an engine. Holds both, closes neither."""

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        sampling: Sampling,
        limits: RolloutLimits,
        decode: Callable[[Sequence[int]], str],
        extend: Extend | None = None,
    ) -> None:
        """`sampling` gives all but the number of tokens, which `limits` says; the environment's stop strings join its own.

        `decode` gives the text of a turn's tokens without special ones. `extend` is needed where there can be a second turn.
        Raises: ConfigError for an engine without log-probs or token ids, or turns that nothing renders.
        """
        require(engine, logprobs=True, token_ids=True)
        self._max_turns = min(limits.max_turns, env.max_turns)
        if extend is None and self._max_turns > 1:
            raise ConfigError(f"environment {env.name} has several turns and nothing renders its observations; use max_turns 1")
        stop = tuple(dict.fromkeys((*sampling.stop, *env.stop)))
        self._env, self._engine, self._limits = env, engine, limits
        self._sampling = replace(sampling, stop=stop)
        self._decode, self._extend = decode, extend
        self._window: int | None = engine.describe().get("window_tokens")

    def sample(self, requests: Sequence[RolloutRequest], seed_of: SeedOf) -> RolloutBatch:
        """Returns one rollout a request, in order; each turn is sampled with the seed of its address.

        Raises: ProofError when a turn's prompt does not begin with the one before, or the engine gives less than it must;
        what the engine raises; InputError, ProofError or EnvironmentFailure of the environment, which are not
        of one rollout.
        """
        growing = [_Growing(r, seed_of(r.problem.id, r.sample_index, 0)) for r in requests]
        live = growing
        sample_s = score_s = 0.0
        num_env_errors = 0
        while live:
            began = time.monotonic()
            self._sample_turn(live, seed_of)
            sampled = time.monotonic()
            replies = self._ask(live)
            for rollout, reply in zip(live, replies, strict=True):
                self._take(rollout, reply)
            num_env_errors += sum(isinstance(reply, _Failure) for reply in replies)
            live = [rollout for rollout in live if rollout.done is None]
            sample_s += sampled - began
            score_s += time.monotonic() - sampled
        rollouts = tuple(rollout.done for rollout in growing if rollout.done is not None)
        num_errors = sum(rollout.score.status == "error" for rollout in rollouts)
        num_tokens = sum(rollout.num_sampled for rollout in rollouts)
        return RolloutBatch(rollouts, sample_s, score_s, num_env_errors, num_errors - num_env_errors, num_tokens)

    def _sample_turn(self, live: Sequence[_Growing], seed_of: SeedOf) -> None:
        """Samples the next turn of every live rollout: one call, and one more for each length that the window leaves."""
        for rollout in live:
            context = rollout.request.prompt.token_ids + tuple(rollout.token_ids)
            if context[: len(rollout.context)] != rollout.context:
                address = f"{rollout.request.problem.id}, sample {rollout.request.sample_index}"
                raise ProofError(
                    f"{address}: the prompt of turn {len(rollout.turns) + 1} does not begin with the one before it"
                )
            rollout.context = context
        wanted = max(self._room(rollout, window=False) for rollout in live)
        calls: dict[int, list[_Growing]] = {}
        for rollout in live:  # a first turn that does not fit the window is for the engine to refuse
            fits = not rollout.turns or self._window is None or len(rollout.context) + wanted <= self._window
            calls.setdefault(wanted if fits else self._room(rollout), []).append(rollout)
        for max_tokens, rollouts in calls.items():
            prompts = [Prompt(r.request.problem.id, r.context) if r.turns else r.request.prompt for r in rollouts]
            seeds = [seed_of(r.request.problem.id, r.request.sample_index, len(r.turns)) for r in rollouts]
            completions = self._engine.generate(prompts, replace(self._sampling, max_tokens=max_tokens), seeds)
            for rollout, completion in zip(rollouts, completions, strict=True):
                self._add_turn(rollout, completion, max_tokens)

    def _room(self, rollout: _Growing, extension: int = 0, *, window: bool = True) -> int:
        """Returns how many tokens a turn may have, after an extension: by its own limit, the rollout's and the window."""
        num_tokens = len(rollout.token_ids) + extension
        room = self._limits.max_tokens_per_turn
        if self._limits.max_tokens is not None:
            room = min(room, self._limits.max_tokens - num_tokens)
        if window and self._window is not None:
            room = min(room, self._window - len(rollout.request.prompt.token_ids) - num_tokens)
        return room

    def _add_turn(self, rollout: _Growing, completion: Completion, max_tokens: int) -> None:
        """Adds what was sampled; what is over the rollout's own limit is cut off, as if it had been sampled under it."""
        ids, logprobs, stop_reason = completion.token_ids, completion.logprobs, completion.stop_reason
        if logprobs is None or len(logprobs) != len(ids) or len(ids) > max_tokens:
            given = f"{len(ids)} tokens and {'no' if logprobs is None else len(logprobs)} log-probs"
            raise ProofError(f"{rollout.request.problem.id}: engine {self._engine.name} gave {given} for {max_tokens} at most")
        room = self._room(rollout)
        if len(ids) > room:
            ids, logprobs, stop_reason = ids[:room], logprobs[:room], "length"
        if stop_reason == "length":
            rollout.cut = "length" if room == self._limits.max_tokens_per_turn else "max_tokens"
        start = len(rollout.token_ids)
        rollout.append(ids, logprobs, sampled=True)
        rollout.turns.append(Turn(start, start + len(ids), self._decode(ids), stop_reason))

    def _ask(self, live: Sequence[_Growing]) -> list[Reply | _Failure]:
        """Returns the environment's replies; where it raises, each exchange is asked alone, so that only its own fails."""
        exchanges = [rollout.exchange() for rollout in live]
        try:
            return [*self._replies(exchanges)]
        except (InputError, ProofError, EnvironmentFailure):  # of the run, not of a rollout
            raise
        except Exception as error:
            log.debug("environment %s failed on %d exchanges", self._env.name, len(exchanges), exc_info=error)
        replies: list[Reply | _Failure] = []
        for exchange in exchanges:
            try:
                replies += self._replies([exchange])
            except Exception as error:
                log.debug("environment %s failed on %s", self._env.name, exchange.problem.id, exc_info=error)
                replies.append(_Failure(f"{type(error).__name__}: {' '.join(str(error).split())}"))
        return replies

    def _replies(self, exchanges: Sequence[Exchange]) -> list[Reply]:
        replies = self._env.reply(exchanges)
        if len(replies) != len(exchanges):
            raise ValueError(f"{len(replies)} replies to {len(exchanges)} exchanges")
        for reply in replies:
            if isinstance(reply, Outcome) and not math.isfinite(reply.score.value):
                raise ValueError(f"the score is {reply.score.value}, which is not a finite number")
        return replies

    def _take(self, rollout: _Growing, reply: Reply | _Failure) -> None:
        """Ends the rollout, or appends what the environment says."""
        if isinstance(reply, _Failure):
            rollout.finish("error", Score(0.0, None, "error", reply.explanation))
        elif isinstance(reply, Outcome):
            rollout.finish(rollout.cut or "answered", reply.score, reply.metrics)
        elif rollout.cut is not None:
            num_tokens = rollout.turns[-1].end - rollout.turns[-1].start
            rollout.finish(rollout.cut, _unfinished(f"turn {len(rollout.turns)} was cut at {num_tokens} tokens"))
        elif len(rollout.turns) == self._max_turns:
            rollout.finish("max_turns", _unfinished(f"{self._max_turns} turn(s) were used"))
        else:
            self._continue(rollout, reply)

    def _continue(self, rollout: _Growing, observation: Observation) -> None:
        assert self._extend is not None
        ended_with = rollout.token_ids[-1] if rollout.turns[-1].stop_reason == "eos" else None
        extension = self._extend(observation.text, eos_token_id=ended_with)
        if self._room(rollout, len(extension)) < 1:
            rollout.finish("max_tokens", _unfinished(f"after turn {len(rollout.turns)} no token was left"))
        else:
            rollout.append(extension, [0.0] * len(extension), sampled=False)


def _unfinished(why: str) -> Score:
    return Score(0.0, None, "unparsed", f"{why}, and the environment wanted another turn")
