"""Group-normalised advantages: how much better a rollout is than the others of its group.

Shapes: G groups (problems), K rollouts a group. The standard deviation is the unbiased one (K - 1 in the denominator,
torch's default), as CS336 and TRL have it; NumPy's default is the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from grpo_gsm8k.errors import ConfigError, DataError, ProofError


def group_advantages(rewards_GK: torch.Tensor, *, eps: float = 1e-6, normalize_by_std: bool = True) -> torch.Tensor:
    """Returns the advantages (G, K): (reward - group mean) / (group std + eps), or without the division.

    A group whose rewards are all equal gets exactly 0, where rounding in the mean divided by eps would leave noise.
    Raises: DataError when the shape is not (G, K); ConfigError when K is 1 and the std is asked for; ProofError for a
    reward that is not finite.
    Source: GRPO (arXiv 2402.03300, section 4.1.2); without the division, Dr. GRPO (arXiv 2503.20783).
    """
    if rewards_GK.dim() != 2 or rewards_GK.numel() == 0:
        raise DataError(f"rewards have the shape {tuple(rewards_GK.shape)}; (groups, rollouts a group) is needed")
    if normalize_by_std and rewards_GK.shape[1] == 1:
        raise ConfigError("group_size is 1: one reward has no standard deviation; take 2 or more, or normalize_by_std False")
    if not torch.isfinite(rewards_GK).all():
        group, rollout = (int(index) for index in torch.nonzero(~torch.isfinite(rewards_GK))[0])
        raise ProofError(f"reward {rollout} of group {group} is {rewards_GK[group, rollout].item()}; rewards must be finite")
    centred = rewards_GK - rewards_GK.mean(dim=1, keepdim=True)
    if normalize_by_std:
        centred = centred / (rewards_GK.std(dim=1, keepdim=True) + eps)
    return centred.masked_fill((rewards_GK == rewards_GK[:, :1]).all(dim=1, keepdim=True), 0.0)


def compute_group_normalized_rewards(
    reward_fn: Callable[[str, str], Mapping[str, float]],
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Returns (advantages, raw rewards, metadata) of rollouts that lie group after group; both float32 of shape (G * K,).

    `reward_fn(response, ground_truth)` gives a mapping with "reward", usually "format_reward" and "answer_reward" too.
    The metadata holds mean, std, min and max of the raw rewards, the mean of every other number `reward_fn` gave, the number
    of groups and the share of them whose rewards are all equal (they train nothing).
    Raises: DataError when the lists differ in length or do not make whole groups, or a score has no "reward"; what
    `group_advantages` raises.
    Source: CS336 (Stanford), assignment 5, `compute_group_normalized_rewards`.
    """
    num = len(rollout_responses)
    if num != len(repeated_ground_truths):
        raise DataError(f"{num} responses and {len(repeated_ground_truths)} ground truths; there must be one for each")
    if group_size < 1 or num == 0 or num % group_size:
        raise DataError(f"{num} responses do not make whole groups of {group_size}")
    pairs = zip(rollout_responses, repeated_ground_truths, strict=True)
    scores = [reward_fn(response, truth) for response, truth in pairs]
    for index, score in enumerate(scores):
        if "reward" not in score:
            raise DataError(f"the score of response {index} has no 'reward' (it has: {', '.join(score) or 'nothing'})")
    rewards = torch.tensor([float(score["reward"]) for score in scores])
    rewards_GK = rewards.view(-1, group_size)
    advantages_GK = group_advantages(rewards_GK, eps=advantage_eps, normalize_by_std=normalize_by_std)
    equal_G = (rewards_GK == rewards_GK[:, :1]).all(dim=1)
    metadata = {
        "reward_mean": rewards.mean().item(),
        "reward_std": rewards.std().item() if num > 1 else 0.0,
        "reward_min": rewards.min().item(),
        "reward_max": rewards.max().item(),
        "num_groups": float(len(rewards_GK)),
        "equal_groups": equal_G.float().mean().item(),
    }
    for key in sorted({key for score in scores for key in score} - {"reward"}):
        if all(key in score for score in scores):
            metadata[f"{key}_mean"] = sum(float(score[key]) for score in scores) / num
    return advantages_GK.reshape(-1), rewards, metadata
