"""Advantages, group-normalised and by algorithm, against values worked out by hand and NumPy."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from grpo_gsm8k.algorithms.advantages import (
    compute_group_normalized_rewards,
    group_advantages,
    overlong_penalty,
    rollout_advantages,
)
from grpo_gsm8k.algorithms.algorithm import with_parts
from grpo_gsm8k.algorithms.registry import ALGORITHMS, find_algorithm
from grpo_gsm8k.errors import ConfigError, DataError, ProofError


def test_advantages_are_those_worked_out_by_hand_with_the_unbiased_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    a, b = 0.5 / math.sqrt(1 / 3), math.sqrt(0.25)
    found = group_advantages(rewards, eps=0.0)
    assert found[0].tolist() == pytest.approx([a, -a, -a, a])
    assert found[1].tolist() == pytest.approx([0.75 / b, -0.25 / b, -0.25 / b, -0.25 / b])
    assert group_advantages(rewards, normalize_by_std=False)[1].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_advantages_agree_with_numpy_and_each_group_with_itself_alone() -> None:
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    array = rewards.numpy()
    expected = (array - array.mean(1, keepdims=True)) / (numpy.std(array, axis=1, ddof=1, keepdims=True) + 1e-4)
    found = group_advantages(rewards, eps=1e-4)
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert torch.equal(found[2:3], group_advantages(rewards[2:3], eps=1e-4))


def test_a_group_of_equal_rewards_has_advantages_of_exactly_0() -> None:
    rewards = torch.full((1, 7), 0.1)
    assert (rewards - rewards.mean(dim=1, keepdim=True)).abs().max() > 0  # rounding that eps would blow up
    assert group_advantages(rewards).tolist() == [[0.0] * 7]
    assert group_advantages(torch.tensor([[1.0]]), normalize_by_std=False).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("rewards", "kind", "says"),
    [
        (torch.ones(4), DataError, r"\(4,\)"),
        (torch.ones(3, 1), ConfigError, "group_size is 1"),
        (torch.tensor([[0.0, 1.0], [1.0, math.nan]]), ProofError, "reward 1 of group 1 is nan"),
    ],
)
def test_rewards_that_have_no_advantages_are_refused(rewards: torch.Tensor, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        group_advantages(rewards)


def score(response: str, truth: str) -> dict[str, float]:
    right = float(response == truth)
    return {"reward": right, "format_reward": 1.0, "answer_reward": right}


def test_rollouts_are_scored_and_normalised_group_by_group() -> None:
    advantages, raw, metadata = compute_group_normalized_rewards(
        score, ["4", "5", "7", "7"], ["4", "4", "7", "7"], group_size=2, advantage_eps=0.0, normalize_by_std=True
    )
    assert raw.tolist() == [1, 0, 1, 1]
    assert advantages.tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), 0, 0])
    assert raw.shape == advantages.shape == (4,)
    assert metadata["reward_mean"] == 0.75 and metadata["equal_groups"] == 0.5 and metadata["format_reward_mean"] == 1


def test_lists_that_do_not_make_groups_and_scores_without_reward_are_refused() -> None:
    with pytest.raises(DataError, match="3 responses do not make whole groups of 2"):
        compute_group_normalized_rewards(score, ["a"] * 3, ["a"] * 3, 2, 1e-6, True)
    with pytest.raises(DataError, match="2 responses and 3 ground truths"):
        compute_group_normalized_rewards(score, ["a"] * 2, ["a"] * 3, 2, 1e-6, True)
    with pytest.raises(DataError, match="response 0 has no 'reward'"):
        compute_group_normalized_rewards(lambda response, truth: {"value": 1.0}, ["a"] * 2, ["a"] * 2, 2, 1e-6, True)


def test_rollout_advantages_are_those_worked_out_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    expected = {
        "reinforce": [[1, 0, 0], [1, 1, 1]],
        "reinforce_baseline": [[2 / 3, -1 / 3, -1 / 3], [0, 0, 0]],
        "rloo": [[1, -0.5, -0.5], [0, 0, 0]],  # 1 - mean(0, 0), 0 - mean(1, 0)
        "dr_grpo": [[2 / 3, -1 / 3, -1 / 3], [0, 0, 0]],
    }
    for name, rows in expected.items():
        found = rollout_advantages(rewards, find_algorithm(name))
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_group_std_is_of_the_group_and_the_batch_std_of_all_centred_rewards() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    grpo = with_parts(find_algorithm("grpo"), advantage_eps=0.0)
    first = rollout_advantages(rewards[:1], grpo)  # std² = (4/9 + 1/9 + 1/9) / 2 = 1/3
    assert first[0].tolist() == pytest.approx([2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5])
    batch = rollout_advantages(rewards, with_parts(grpo, scale="batch_std"))  # var = (4/9 + 1/9 + 1/9 + 0) / 5 = 2/15
    assert batch.flatten().tolist() == pytest.approx([(2 / 3) * 7.5**0.5, *[(-1 / 3) * 7.5**0.5] * 2, 0, 0, 0])
    with_eps = rollout_advantages(rewards, with_parts(grpo, advantage_eps=0.5))
    assert with_eps[0, 0].item() == pytest.approx((2 / 3) / ((1 / 3) ** 0.5 + 0.5))


@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if algorithm.baseline != "zero"])
@pytest.mark.parametrize("scale", ["one", "group_std", "batch_std"])
def test_equal_rewards_give_advantages_of_exactly_0_by_every_group_baseline(name: str, scale: str) -> None:
    rewards = torch.tensor([[0.1] * 7, [0.7] * 7])
    assert rollout_advantages(rewards, with_parts(find_algorithm(name), scale=scale)).tolist() == [[0.0] * 7] * 2


def test_rollout_advantages_refuse_one_rollout_a_group_and_rewards_that_are_not_finite() -> None:
    with pytest.raises(ConfigError, match="group_size is 1, and baseline leave_one_out"):
        rollout_advantages(torch.zeros(3, 1), find_algorithm("rloo"))
    with pytest.raises(ProofError, match="reward 1 of group 0 is nan"):
        rollout_advantages(torch.tensor([[0.0, math.nan]]), find_algorithm("reinforce"))
    with pytest.raises(DataError, match="rewards have the shape"):
        rollout_advantages(torch.zeros(4), find_algorithm("reinforce"))


def test_the_overlong_penalty_falls_in_a_line_over_the_buffer() -> None:
    lengths = (0, 80, 85, 90, 95, 100, 120)
    assert [overlong_penalty(n, 100, 20, 1.0) for n in lengths] == [0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert overlong_penalty(95, 100, 20, 0.4) == pytest.approx(-0.3)
    assert overlong_penalty(100, 100, 0, 1.0) == 0
    with pytest.raises(ConfigError, match="overlong_buffer is 101 tokens; allowed is 0 to max_tokens, 100"):
        overlong_penalty(1, 100, 101, 1.0)
