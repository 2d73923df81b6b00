"""Policy-gradient losses token by token, and the micro-batch steps that reduce them and add their gradients.

Shapes: B rollouts, T positions. Log-probs are natural; `response_mask` (B, T) selects the trained labels. Rewards and
advantages are (B, 1), one a rollout, or (B, T), one a token. Names, signatures and reductions are those of CS336 (Stanford),
assignment 5. The steps average over sequences, so that a token counts the more the shorter its response is; the learner's
losses divide by the whole optimiser step instead (see `sft_loss`).
"""

from __future__ import annotations

import torch

from grpo_gsm8k.algorithms.masking import masked_mean, masked_normalize
from grpo_gsm8k.errors import ConfigError, DataError, ProofError, unknown_name

LOSS_TYPES = ("no_baseline", "reinforce_with_baseline", "grpo_clip")

Metadata = dict[str, torch.Tensor]


def compute_naive_policy_gradient_loss(raw_rewards_or_advantages: torch.Tensor, policy_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every token (B, T): -A * log p. The rewards or advantages are constants to the gradient.

    Raises: DataError when the rewards are neither (B, 1) nor (B, T).
    Source: REINFORCE (Williams, 1992).
    """
    _check_per_rollout("raw_rewards_or_advantages", raw_rewards_or_advantages, policy_log_probs)
    return -raw_rewards_or_advantages.detach() * policy_log_probs


def compute_grpo_clip_loss(
    advantages: torch.Tensor, policy_log_probs: torch.Tensor, old_log_probs: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, Metadata]:
    """Returns the loss of every token (B, T), -min(r A, clip(r, 1 - c, 1 + c) A) with r = p / p_old, and metadata.

    The metadata, detached, (B, T): "ratio", r; "is_clipped" (bool), True where the clipped term is the smaller one, so that the
    token gets no gradient. `advantages` and `old_log_probs` are constants to the gradient.
    Raises: DataError when a shape does not fit; ConfigError for a negative `cliprange`.
    Source: PPO (arXiv 1707.06347, equation 7) with GRPO's advantages (arXiv 2402.03300, equation 3), without the KL term.
    """
    _check_per_rollout("advantages", advantages, policy_log_probs)
    if old_log_probs.shape != policy_log_probs.shape:
        shapes = f"{tuple(old_log_probs.shape)} and {tuple(policy_log_probs.shape)}"
        raise DataError(f"old_log_probs and policy_log_probs have the shapes {shapes}; they must be the same")
    if cliprange < 0:
        raise ConfigError(f"cliprange is {cliprange}; a number of at least 0 is needed")
    advantages = advantages.detach()
    ratio = torch.exp(policy_log_probs - old_log_probs.detach())
    loss, is_clipped = clipped_surrogate(ratio, advantages, cliprange, cliprange)
    return loss, {"ratio": ratio.detach(), "is_clipped": is_clipped}


def clipped_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and True where the clipped term is the smaller one.

    There the loss is constant: r is beyond the bound that A would move it towards. The shapes broadcast.
    Source: PPO (arXiv 1707.06347, equation 7); with two bounds, DAPO (arXiv 2503.14476, equation 10).
    """
    free, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(free, clipped), (clipped < free).detach()


def compute_policy_gradient_loss(
    policy_log_probs: torch.Tensor,
    loss_type: str,
    raw_rewards: torch.Tensor | None = None,
    advantages: torch.Tensor | None = None,
    old_log_probs: torch.Tensor | None = None,
    cliprange: float | None = None,
) -> tuple[torch.Tensor, Metadata]:
    """Returns the loss of every token (B, T) and its metadata ({} but for grpo_clip).

    `loss_type`: "no_baseline" needs `raw_rewards`; "reinforce_with_baseline" needs `advantages`; "grpo_clip" needs
    `advantages`, `old_log_probs` and `cliprange`.
    Raises: ConfigError for an unknown type or when what it needs is None; what the loss itself raises.
    """
    given = {"raw_rewards": raw_rewards, "advantages": advantages, "old_log_probs": old_log_probs, "cliprange": cliprange}
    if loss_type == "no_baseline":
        _check_given(loss_type, given, "raw_rewards")
        assert raw_rewards is not None
        return compute_naive_policy_gradient_loss(raw_rewards, policy_log_probs), {}
    if loss_type == "reinforce_with_baseline":
        _check_given(loss_type, given, "advantages")
        assert advantages is not None
        return compute_naive_policy_gradient_loss(advantages, policy_log_probs), {}
    if loss_type == "grpo_clip":
        _check_given(loss_type, given, "advantages", "old_log_probs", "cliprange")
        assert advantages is not None and old_log_probs is not None and cliprange is not None
        return compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)
    raise ConfigError(unknown_name("loss_type", loss_type, LOSS_TYPES))


def grpo_microbatch_train_step(
    policy_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    gradient_accumulation_steps: int,
    loss_type: str,
    raw_rewards: torch.Tensor | None = None,
    advantages: torch.Tensor | None = None,
    old_log_probs: torch.Tensor | None = None,
    cliprange: float | None = None,
    constant_normalize_factor: float | None = None,
) -> tuple[torch.Tensor, Metadata]:
    """Adds the gradient of a micro-batch; returns its loss (scalar, detached, divided for accumulation) and metadata.

    The losses of a rollout's response tokens are averaged (with `constant_normalize_factor`: summed and divided by it), then
    averaged over the B rollouts, then divided by `gradient_accumulation_steps`. The metadata of the loss (ratio: 1 outside the
    response), and for grpo_clip "clip_fraction", the share of the response tokens that are clipped.
    Raises: ProofError when a rollout has no response token or the loss is not finite (no gradient is added);
    ConfigError; DataError.
    Source: GRPO (arXiv 2402.03300, equation 3); with the constant, Dr. GRPO (arXiv 2503.20783).
    """
    _check_step(policy_log_probs, response_mask, gradient_accumulation_steps)
    left_out = ~response_mask.bool()  # what stands there may be infinite, and 0 times an infinite gradient is NaN
    policy_log_probs = policy_log_probs.masked_fill(left_out, 0.0)
    old_log_probs = None if old_log_probs is None else old_log_probs.masked_fill(left_out, 0.0)
    loss_BT, metadata = compute_policy_gradient_loss(
        policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange
    )
    if constant_normalize_factor is None:
        loss_B = masked_mean(loss_BT, response_mask, dim=-1)
    else:
        loss_B = masked_normalize(loss_BT, response_mask, constant_normalize_factor, dim=-1)
    if "is_clipped" in metadata:
        metadata["clip_fraction"] = masked_mean(metadata["is_clipped"].to(loss_B.dtype), response_mask)
    return _add_gradient(loss_B.mean() / gradient_accumulation_steps), metadata


def sft_microbatch_train_step(
    policy_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> tuple[torch.Tensor, Metadata]:
    """Adds the gradient of a micro-batch of supervised examples; returns its loss (scalar, detached, divided) and metadata.

    The negative log-probs of an example's response tokens are summed and divided by `normalize_constant`, then averaged over
    the B examples, then divided by `gradient_accumulation_steps`. The metadata: "mean_log_prob", of the response tokens, and
    "num_response_tokens".
    Raises: ProofError when an example has no response token or the loss is not finite (no gradient is added);
    ConfigError; DataError.
    """
    _check_step(policy_log_probs, response_mask, gradient_accumulation_steps)
    loss_B = -masked_normalize(policy_log_probs, response_mask, normalize_constant, dim=-1)
    loss = _add_gradient(loss_B.mean() / gradient_accumulation_steps)
    mean = masked_mean(policy_log_probs.detach(), response_mask)
    return loss, {"mean_log_prob": mean, "num_response_tokens": response_mask.bool().sum()}


def _check_per_rollout(name: str, values: torch.Tensor, policy_log_probs: torch.Tensor) -> None:
    """Refuses what would broadcast to something else, above all (B,) against (B, T) where B equals T."""
    allowed = ((policy_log_probs.shape[0], 1), tuple(policy_log_probs.shape))
    if policy_log_probs.dim() != 2 or tuple(values.shape) not in allowed:
        raise DataError(f"{name} has the shape {tuple(values.shape)}; allowed is {allowed[0]}, one a rollout, or {allowed[1]}")


def _check_given(loss_type: str, given: dict[str, torch.Tensor | float | None], *needed: str) -> None:
    missing = [name for name in needed if given[name] is None]
    if missing:
        raise ConfigError(f"loss_type {loss_type} needs {', '.join(missing)}")


def _check_step(policy_log_probs: torch.Tensor, response_mask: torch.Tensor, gradient_accumulation_steps: int) -> None:
    if gradient_accumulation_steps < 1:
        raise ConfigError(f"gradient_accumulation_steps is {gradient_accumulation_steps}; a whole number from 1 is needed")
    if policy_log_probs.shape != response_mask.shape or policy_log_probs.dim() != 2:
        shapes = f"{tuple(policy_log_probs.shape)} and {tuple(response_mask.shape)}"
        raise DataError(f"policy_log_probs and response_mask have the shapes {shapes}; both must be (batch, positions)")
    empty = (~response_mask.bool().any(dim=-1)).nonzero().flatten().tolist()
    if empty:
        raise ProofError(f"sequence {empty[0]} has no response token, so it trains nothing; leave it out of the micro-batch")


def _add_gradient(loss: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(loss):
        raise ProofError(f"the loss is {loss.item()}; no gradient was added")
    torch.autograd.backward(loss)
    return loss.detach()
