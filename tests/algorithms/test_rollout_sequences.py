"""From rollouts to training sequences: what is trained, and what each token counts by each denominator."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from grpo_gsm8k.algorithms.algorithm import with_parts
from grpo_gsm8k.algorithms.registry import find_algorithm
from grpo_gsm8k.algorithms.rollout_sequences import Counted, build_sequences
from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.types import Problem, Rollout, Score

GRPO, PROMPT = find_algorithm("grpo"), (7, 8)


def rollout(index: int, sampled: tuple[bool, ...]) -> Rollout:
    """Two prompt tokens, then token 10, 11 … with log-probs -1, -2 … where sampled."""
    num = len(sampled)
    logprobs = tuple(-float(at + 1) if is_sampled else 0.0 for at, is_sampled in enumerate(sampled))
    score = Score(0.0, None, "unparsed")
    ids = tuple(range(10, 10 + num))
    return Rollout(Problem("p", "", "", ""), index, 0, PROMPT, ids, sampled, logprobs, (), "answered", score)


SHORT, TURNS = rollout(0, (True,)), rollout(1, (True, False, False, True, True))


def test_only_sampled_tokens_are_trained_and_carry_values() -> None:
    first, second = build_sequences([SHORT, TURNS], [0.5, -0.25], GRPO, 8)
    assert (first.id, first.token_ids, first.trained) == ("p/0", (7, 8, 10), (False, False, True))
    assert second.id == "p/1" and second.token_ids == (7, 8, 10, 11, 12, 13, 14)
    assert second.trained == (False, False, True, False, False, True, True)
    assert second.extras["advantage"] == (0, 0, -0.25, 0, 0, -0.25, -0.25)
    assert second.extras["sampling_logprob"] == (0, 0, -1, 0, 0, -4, -5)
    assert second.extras["weight"] == pytest.approx((0, 0, 1 / 6, 0, 0, 1 / 6, 1 / 6))
    assert first.extras["weight"] == (0, 0, 0.5)


def test_further_values_are_put_at_the_sampled_tokens_in_order() -> None:
    (sequence,) = build_sequences([TURNS], [1.0], GRPO, 8, also={"old_logprob": [(-0.1, -0.2, -0.3)]})
    assert sequence.extras["old_logprob"] == (0, 0, -0.1, 0, 0, -0.2, -0.3)


@pytest.mark.parametrize(
    ("denominator", "short", "long"),
    [("tokens", 1 / 4, 1 / 4), ("sequences", 1 / 2, 1 / 6), ("sequence_sum", 1 / 2, 1 / 2), ("constant", 1 / 16, 1 / 16)],
)
def test_each_denominator_is_of_the_whole_update(denominator: str, short: float, long: float) -> None:
    algorithm = with_parts(GRPO, denominator=denominator)
    first, second = build_sequences([SHORT, TURNS], [1.0, 1.0], algorithm, 8)
    assert (first.extras["weight"][-1], second.extras["weight"][-1]) == pytest.approx((short, long))


@pytest.mark.parametrize(
    ("denominator", "weight"),
    [("tokens", 1 / 20), ("sequences", 1 / 15), ("sequence_sum", 1 / 5), ("constant", 1 / 40)],
)
def test_the_caller_may_count_more_than_what_is_trained(denominator: str, weight: float) -> None:
    algorithm = with_parts(GRPO, denominator=denominator)
    (sequence,) = build_sequences([TURNS], [1.0], algorithm, 8, counted=Counted(num_rollouts=5, num_tokens=20))
    assert sequence.extras["weight"][-1] == pytest.approx(weight)
    assert Counted.of([SHORT, TURNS]) == Counted(2, 4)


def test_the_weights_of_a_mean_add_up_to_one() -> None:
    for denominator in ("tokens", "sequences"):
        sequences = build_sequences([SHORT, TURNS], [1.0, 1.0], with_parts(GRPO, denominator=denominator), 8)
        assert sum(sum(sequence.extras["weight"]) for sequence in sequences) == pytest.approx(1)


def test_a_rollout_without_a_sampled_token_is_refused_with_the_cause() -> None:
    nothing = replace(rollout(3, ()), stop_reason="error", score=Score(0.0, None, "error", "prompt longer than the window"))
    with pytest.raises(ProofError) as caught:
        build_sequences([SHORT, nothing], [1.0, 1.0], GRPO, 8)
    assert str(caught.value) == (
        "rollout p/3 trains no token: nothing follows its prompt of 2 tokens, it ended by 'error' "
        "(prompt longer than the window); leave it out of the update"
    )
    with pytest.raises(ProofError, match="all 2 tokens after the prompt are the environment's"):
        build_sequences([rollout(4, (False, False))], [1.0], GRPO, 8)


def test_values_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="2 rollouts and 1 of 'advantages'"):
        build_sequences([SHORT, TURNS], [1.0], GRPO, 8)
    with pytest.raises(DataError, match="1 rollouts and 0 of 'old_logprob'"):
        build_sequences([SHORT], [1.0], GRPO, 8, also={"old_logprob": []})
    with pytest.raises(DataError, match="rollout p/1 has 3 sampled tokens and 5 values of 'old_logprob'"):
        build_sequences([TURNS], [1.0], GRPO, 8, also={"old_logprob": [(0.0,) * 5]})
    with pytest.raises(ProofError, match="rollout p/0 has a value of 'advantage' that is not finite"):
        build_sequences([SHORT], [math.nan], GRPO, 8)
    with pytest.raises(ProofError, match="rollout p/0 has a value of 'sampling_logprob' that is not finite"):
        build_sequences([replace(SHORT, logprobs=(-math.inf,))], [1.0], GRPO, 8)


def test_a_rollout_longer_than_the_constant_denominator_is_refused() -> None:
    with pytest.raises(ProofError, match="3 sampled tokens, and max_tokens, by which the loss is divided, is 2"):
        build_sequences([TURNS], [1.0], find_algorithm("dr_grpo"), 2)
