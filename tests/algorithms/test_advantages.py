"""Group-normalised advantages, against values worked out by hand and NumPy."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from grpo_gsm8k.algorithms.advantages import compute_group_normalized_rewards, group_advantages
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
