"""Which problems a step samples is a function of the seed, the step, the attempt and what came of the rollouts so far."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from envs_for_tests import problem

from grpo_gsm8k.loops.curriculum import FLOOR, PassOrder, PassRateOrder
from grpo_gsm8k.types import Rollout, Score, Status, Turn

PROBLEMS = [problem(number) for number in range(12)]


def rollout(number: int, status: Status) -> Rollout:
    score = Score(float(status == "correct"), None, status)
    turn = Turn(0, 1, "1", "eos")
    return Rollout(problem(number), 0, 0, (700,), (1,), (True,), (-0.5,), (turn,), "answered", score)


def seen(order: PassOrder) -> PassOrder:
    """The order after p0 was always right, p1 never, p2 half the time and p3 three times of four."""
    rows: list[tuple[int, tuple[Status, ...]]] = [
        (0, ("correct", "correct", "correct", "correct")),
        (1, ("wrong", "wrong", "unparsed", "wrong")),
        (2, ("correct", "wrong", "unparsed", "correct")),
        (3, ("correct", "correct", "correct", "wrong")),
    ]
    for number, statuses in rows:
        order.observe(rollout(number, status) for status in statuses)
    return order


def test_passes_see_every_problem_once_each_and_take_no_notice_of_rewards() -> None:
    order = seen(PassOrder(PROBLEMS, 5))
    passes = [[index for step in range(first, first + 3) for index in order.choose(4, step)] for first in (0, 3)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(12))
    assert passes[0] != passes[1]
    assert order.state() == {}
    assert PassOrder(PROBLEMS, 5).choose(4, 2) == order.choose(4, 2)


@pytest.mark.parametrize("kind", [PassOrder, PassRateOrder])
def test_what_is_drawn_follows_from_seed_step_attempt_and_state_and_not_from_what_was_drawn_before(
    kind: type[PassOrder],
) -> None:
    addresses = [(step, attempt) for step in range(3) for attempt in range(3)]
    order = seen(kind(PROBLEMS, 5))
    forwards = {address: order.choose(6, *address) for address in addresses}
    again = seen(kind(PROBLEMS, 5))
    assert {address: again.choose(6, *address) for address in reversed(addresses)} == forwards
    assert len({tuple(drawn) for drawn in forwards.values()}) == len(addresses)
    other = seen(kind(PROBLEMS, 6))
    assert all(other.choose(6, *address) != drawn for address, drawn in forwards.items())
    assert all(len(set(drawn)) == 6 for drawn in forwards.values() if kind is PassRateOrder)


def test_the_state_of_pass_rates_goes_through_json_and_draws_the_same() -> None:
    order = PassRateOrder(PROBLEMS, 5)
    before = [order.choose(6, step) for step in range(8)]
    seen(order)
    assert order.state() == {"p0": [4, 4], "p1": [4, 0], "p2": [4, 2], "p3": [4, 3]}
    restored = PassRateOrder(PROBLEMS, 5)
    restored.restore(json.loads(json.dumps(order.state())))
    assert restored.state() == order.state()
    drawn = [order.choose(6, step) for step in range(8)]
    assert [restored.choose(6, step) for step in range(8)] == drawn != before
    seen(restored)  # what was restored is counted on, and is not the counts of the other
    assert restored.state()["p3"] == [8, 6] and order.state()["p3"] == [4, 3]


def test_a_problem_is_drawn_first_in_proportion_to_p_times_1_minus_p() -> None:
    order = seen(PassRateOrder(PROBLEMS[:4], 5))
    num = 4000
    first = Counter(order.choose(1, step)[0] for step in range(num))
    weights = [FLOOR, FLOOR, 0.25, 0.1875]  # 4/4, 0/4, 2/4 and 3/4 were right
    for index, weight in enumerate(weights):
        expected = weight / sum(weights)
        assert abs(first[index] / num - expected) < 4 * (expected * (1 - expected) / num) ** 0.5


def test_a_problem_that_was_not_sampled_yet_is_drawn_as_often_as_one_at_a_pass_rate_of_one_half() -> None:
    order = PassRateOrder(PROBLEMS[:2], 5)
    order.observe([rollout(0, "correct"), rollout(0, "wrong")])
    first = Counter(order.choose(1, step)[0] for step in range(2000))
    assert abs(first[0] - 1000) < 4 * (2000 * 0.25) ** 0.5


def test_a_rollout_whose_grader_failed_says_nothing_of_its_problem() -> None:
    order = PassRateOrder(PROBLEMS, 5)
    order.observe([rollout(0, "error"), rollout(1, "correct"), rollout(1, "error")])
    assert order.state() == {"p1": [1, 1]}
