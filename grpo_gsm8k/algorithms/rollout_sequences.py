"""Rollouts and their advantages to the token sequences that a learner trains on.

Every trained token carries, as extras, its rollout's "advantage", its "weight" (what its term counts in the loss of the update)
and its "sampling_logprob". The denominator is folded into the weights beforehand and is of the whole update, so that splitting
the sequences into micro-batches, or over ranks, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_gsm8k.algorithms.algorithm import Algorithm
from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Rollout

NO_EXTRAS: Mapping[str, Sequence[Sequence[float]]] = {}


@dataclass(frozen=True, slots=True)
class Counted:
    """What the denominators of an update count: its rollouts, and their sampled tokens."""

    num_rollouts: int
    num_tokens: int

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> Counted:
        """Returns the counts of these rollouts."""
        return cls(len(rollouts), sum(rollout.num_sampled for rollout in rollouts))


def token_weight(algorithm: Algorithm, num_sampled: int, counted: Counted, max_tokens: int) -> float:
    """Returns what each token of a rollout of `num_sampled` sampled tokens counts in the loss, by the `denominator`.

    `max_tokens` is the most that a rollout can sample; "constant" alone reads it.
    Raises: ProofError when the rollout has more.
    """
    if algorithm.denominator == "tokens":
        return 1.0 / counted.num_tokens
    if algorithm.denominator == "sequences":
        return 1.0 / (counted.num_rollouts * num_sampled)
    if algorithm.denominator == "sequence_sum":
        return 1.0 / counted.num_rollouts
    if num_sampled > max_tokens:
        raise ProofError(
            f"a rollout has {num_sampled} sampled tokens, and max_tokens, by which the loss is divided, is {max_tokens}"
        )
    return 1.0 / (counted.num_rollouts * max_tokens)


def build_sequences(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    algorithm: Algorithm,
    max_tokens: int,
    *,
    also: Mapping[str, Sequence[Sequence[float]]] = NO_EXTRAS,
    counted: Counted | None = None,
) -> list[TokenSequence]:
    """Returns one sequence a rollout, "<problem id>/<sample index>", of which the sampled tokens alone are trained.

    `also` holds further extras by name, for each rollout one value a sampled token (what `Learner.logprobs` returns), such as
    "old_logprob" and "reference_logprob". `counted` is what the denominators count; None: these very rollouts. Give the counts
    of more where some are left out and yet count (a kept group of equal rewards trains nothing, and need not be computed).
    Raises: ProofError for a rollout without a sampled token, and for a value that is not finite; DataError when the lengths of
    lists differ.
    """
    counted = Counted.of(rollouts) if counted is None else counted
    for name, values in {"advantages": advantages, **also}.items():
        if len(values) != len(rollouts):
            raise DataError(f"{len(rollouts)} rollouts and {len(values)} of {name!r}; there must be one for each")
    sequences = []
    for index, rollout in enumerate(rollouts):
        num = rollout.num_sampled
        identity = f"{rollout.problem.id}/{rollout.sample_index}"
        if num == 0:
            raise ProofError(f"rollout {identity} trains no token: {_why_nothing(rollout)}; leave it out of the update")
        weight = token_weight(algorithm, num, counted, max_tokens)
        sampling = [logprob for logprob, sampled in zip(rollout.logprobs, rollout.sampled, strict=True) if sampled]
        own = {"advantage": [advantages[index]] * num, "weight": [weight] * num, "sampling_logprob": sampling}
        values_of: dict[str, Sequence[float]] = {**own, **{name: values[index] for name, values in also.items()}}
        sequences.append(_sequence(identity, rollout, values_of))
    return sequences


def plain_sequence(rollout: Rollout) -> TokenSequence:
    """Returns a rollout as it was sampled, without extras; the tokens that the model sampled are trained."""
    return _sequence(f"{rollout.problem.id}/{rollout.sample_index}", rollout, {})


def sampled_sequence(rollout: Rollout) -> TokenSequence:
    """Returns a rollout as it was sampled, with the "sampling_logprob" of each sampled token."""
    sampling = [logprob for logprob, sampled in zip(rollout.logprobs, rollout.sampled, strict=True) if sampled]
    return _sequence(f"{rollout.problem.id}/{rollout.sample_index}", rollout, {"sampling_logprob": sampling})


def _sequence(identity: str, rollout: Rollout, values_of: Mapping[str, Sequence[float]]) -> TokenSequence:
    prompt = rollout.prompt_token_ids
    extras = {}
    for name, values in values_of.items():
        if len(values) != rollout.num_sampled:
            raise DataError(f"rollout {identity} has {rollout.num_sampled} sampled tokens and {len(values)} values of {name!r}")
        if not all(map(math.isfinite, values)):
            raise ProofError(f"rollout {identity} has a value of {name!r} that is not finite; no number of an update may be")
        following = iter(values)
        scattered = [next(following) if sampled else 0.0 for sampled in rollout.sampled]
        extras[name] = (*(0.0,) * len(prompt), *scattered)
    return TokenSequence(identity, (*prompt, *rollout.token_ids), (*(False,) * len(prompt), *rollout.sampled), extras)


def _why_nothing(rollout: Rollout) -> str:
    if rollout.token_ids:
        return f"all {len(rollout.token_ids)} tokens after the prompt are the environment's"
    explanation = f" ({rollout.score.explanation})" if rollout.score.explanation else ""
    prompt = f"its prompt of {len(rollout.prompt_token_ids)} tokens"
    return f"nothing follows {prompt}, it ended by {rollout.stop_reason!r}{explanation}"
