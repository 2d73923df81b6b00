"""Advantages: how much better a rollout is than the others of its group, as its algorithm measures it.

Shapes: G groups (problems), K rollouts a group. The standard deviation is the unbiased one (K - 1 in the denominator,
torch's default), as CS336 and TRL have it; NumPy's default is the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from grpo_gsm8k.algorithms.algorithm import Algorithm, check_group_size
from grpo_gsm8k.errors import ConfigError, DataError, ProofError


def group_advantages(rewards_GK: torch.Tensor, *, eps: float = 1e-6, normalize_by_std: bool = True) -> torch.Tensor:
    """Returns the advantages (G, K): (reward - group mean) / (group std + eps), or without the division.

    A group whose rewards are all equal gets exactly 0, where rounding in the mean divided by eps would leave noise.
    Raises: DataError when the shape is not (G, K); ConfigError when K is 1 and the std is asked for; ProofError for a
    reward that is not finite.
    Source: GRPO (arXiv 2402.03300, section 4.1.2); without the division, Dr. GRPO (arXiv 2503.20783).
    """
    _check_rewards(rewards_GK)
    if normalize_by_std and rewards_GK.shape[1] == 1:
        raise ConfigError("group_size is 1: one reward has no standard deviation; take 2 or more, or normalize_by_std False")
    centred = rewards_GK - rewards_GK.mean(dim=1, keepdim=True)
    if normalize_by_std:
        centred = centred / (rewards_GK.std(dim=1, keepdim=True) + eps)
    return centred.masked_fill((rewards_GK == rewards_GK[:, :1]).all(dim=1, keepdim=True), 0.0)


def rollout_advantages(rewards_GK: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
    """Returns the advantages (G, K) of all rollouts of a step, float64, by the algorithm's `baseline` and `scale`.

    With a group baseline, a group whose rewards are all equal gets exactly 0. All standard deviations have n - 1 below; that of
    "group_std" is of the group's rewards, that of "batch_std" of all centred rewards of the step.
    Raises: DataError when the shape is not (G, K); ConfigError when K is too small for the baseline; ProofError for a reward
    that is not finite.
    Source: leave-one-out, R_i - mean of the others = K / (K - 1) (R_i - mean), Kool et al. (2019); group_std, GRPO (arXiv
    2402.03300, section 4.1.2); batch_std, REINFORCE++-baseline (arXiv 2501.03262).
    """
    _check_rewards(rewards_GK)
    rewards_GK = rewards_GK.double()
    group_size = rewards_GK.shape[1]
    check_group_size(algorithm, group_size)
    if algorithm.baseline == "zero":
        return rewards_GK
    centred_GK = group_advantages(rewards_GK, normalize_by_std=False)
    if algorithm.baseline == "leave_one_out":
        centred_GK = centred_GK * (group_size / (group_size - 1))
    if algorithm.scale == "one":
        return centred_GK
    std = rewards_GK.std(dim=1, keepdim=True) if algorithm.scale == "group_std" else centred_GK.std()
    return (centred_GK / (std + algorithm.advantage_eps)).masked_fill(centred_GK == 0, 0.0)  # 0/0 where eps is 0


def overlong_penalty(num_tokens: int, max_tokens: int, buffer: int, penalty: float) -> float:
    """Returns what is added to the reward of a rollout of `num_tokens`: 0 down to -`penalty` over the last `buffer` tokens.

    0 up to `max_tokens` - `buffer`, then falling in a line to -`penalty` at `max_tokens` and beyond; a buffer of 0 is off.
    Raises: ConfigError for a buffer below 0 or above `max_tokens`.
    Source: DAPO (arXiv 2503.14476, equation 13), where the penalty is 1.
    """
    if not 0 <= buffer <= max_tokens:
        raise ConfigError(f"overlong_buffer is {buffer} tokens; allowed is 0 to max_tokens, {max_tokens}")
    if buffer == 0:
        return 0.0
    return -penalty * min(1.0, max(0, num_tokens - (max_tokens - buffer)) / buffer)


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


def _check_rewards(rewards_GK: torch.Tensor) -> None:
    if rewards_GK.dim() != 2 or rewards_GK.numel() == 0:
        raise DataError(f"rewards have the shape {tuple(rewards_GK.shape)}; (groups, rollouts a group) is needed")
    if not torch.isfinite(rewards_GK).all():
        group, rollout = (int(index) for index in torch.nonzero(~torch.isfinite(rewards_GK))[0])
        raise ProofError(f"reward {rollout} of group {group} is {rewards_GK[group, rollout].item()}; rewards must be finite")
