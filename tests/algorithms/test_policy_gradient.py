"""Policy-gradient losses and micro-batch steps, against values worked out by hand and loops in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_gsm8k.algorithms.policy_gradient import (
    compute_grpo_clip_loss,
    compute_naive_policy_gradient_loss,
    compute_policy_gradient_loss,
    grpo_microbatch_train_step,
    sft_microbatch_train_step,
)
from grpo_gsm8k.errors import ConfigError, DataError, ProofError


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_naive_loss_is_minus_the_reward_times_the_log_prob() -> None:
    loss = compute_naive_policy_gradient_loss(torch.tensor([[2.0], [-1.0]]), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]))
    assert loss.tolist() == [[2, 4], [-3, -4]]


def test_the_clipped_loss_is_that_worked_out_by_hand() -> None:
    ratios = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1]], dtype=torch.float64)
    old = torch.full((2, 3), -1.0, dtype=torch.float64)
    policy = (old + ratios.log()).requires_grad_()
    advantages = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    loss, metadata = compute_grpo_clip_loss(advantages, policy, old, cliprange=0.2)
    assert loss[0].tolist() == pytest.approx([-2.4, -1.0, -2.2])  # a good token: above 1.2 it is enough
    assert loss[1].tolist() == pytest.approx([3.0, 1.6, 2.2])  # a bad one: below 0.8 it is enough
    assert metadata["is_clipped"].tolist() == [[True, False, False], [False, True, False]]
    assert metadata["ratio"].tolist() == [pytest.approx(row) for row in ratios.tolist()]
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert (gradient == 0).tolist() == metadata["is_clipped"].tolist()


def test_on_policy_the_clipped_loss_has_the_gradient_of_the_naive_one() -> None:
    policy, advantages = drawn(3, 4).requires_grad_(), drawn(3, 1, seed=1)
    clipped, _ = compute_grpo_clip_loss(advantages, policy, policy, cliprange=0.2)
    (found,) = torch.autograd.grad(clipped.sum(), policy)
    (expected,) = torch.autograd.grad(compute_naive_policy_gradient_loss(advantages, policy).sum(), policy)
    torch.testing.assert_close(found, expected)


def test_each_loss_type_is_its_own_function() -> None:
    policy, old, rewards, advantages = drawn(2, 3), drawn(2, 3, seed=1), drawn(2, 1, seed=2), drawn(2, 1, seed=3)
    given = {"raw_rewards": rewards, "advantages": advantages, "old_log_probs": old, "cliprange": 0.5}
    none, nothing = compute_policy_gradient_loss(policy, "no_baseline", **given)  # type: ignore[arg-type]
    assert torch.equal(none, -rewards * policy) and nothing == {}
    base, _ = compute_policy_gradient_loss(policy, "reinforce_with_baseline", **given)  # type: ignore[arg-type]
    assert torch.equal(base, -advantages * policy)
    clip, _ = compute_policy_gradient_loss(policy, "grpo_clip", **given)  # type: ignore[arg-type]
    for row in range(2):
        for at in range(3):
            ratio = math.exp(policy[row, at].item() - old[row, at].item())
            terms = (ratio * advantages[row].item(), min(max(ratio, 0.5), 1.5) * advantages[row].item())
            assert clip[row, at].item() == pytest.approx(-min(terms), rel=1e-12)


def test_a_loss_without_what_it_needs_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="grpo_clip needs old_log_probs, cliprange"):
        compute_policy_gradient_loss(drawn(2, 3), "grpo_clip", advantages=drawn(2, 1))
    with pytest.raises(ConfigError, match="unknown loss_type 'grpo_clop'; did you mean 'grpo_clip'"):
        compute_policy_gradient_loss(drawn(2, 3), "grpo_clop")


def test_rewards_that_would_broadcast_to_something_else_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\); allowed is \(3, 1\)"):
        compute_naive_policy_gradient_loss(drawn(3), drawn(3, 3))
    with pytest.raises(DataError, match="old_log_probs"):
        compute_grpo_clip_loss(drawn(3, 1), drawn(3, 3), drawn(3, 2), 0.2)


MASK = torch.tensor([[False, True, True], [False, True, False]])


def test_the_sft_step_is_that_worked_out_by_hand_gradient_and_all() -> None:
    policy = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -4.0, -9.0]], requires_grad=True)
    loss, metadata = sft_microbatch_train_step(policy, MASK, gradient_accumulation_steps=2, normalize_constant=4.0)
    assert loss.item() == pytest.approx(((1 + 2) / 4 + 4 / 4) / 2 / 2) and not loss.requires_grad
    assert policy.grad is not None
    assert policy.grad.tolist() == [[0, -1 / 16, -1 / 16], [0, -1 / 16, 0]]
    assert metadata["mean_log_prob"].item() == pytest.approx(-7 / 3) and metadata["num_response_tokens"].item() == 3


@pytest.mark.parametrize("constant", [None, 5.0])
def test_the_grpo_step_averages_over_tokens_then_rollouts_then_micro_batches(constant: float | None) -> None:
    policy, old, advantages = drawn(2, 3).requires_grad_(), drawn(2, 3, seed=1), drawn(2, 1, seed=2)
    loss, metadata = grpo_microbatch_train_step(
        policy,
        MASK,
        4,
        "grpo_clip",
        advantages=advantages,
        old_log_probs=old,
        cliprange=0.2,
        constant_normalize_factor=constant,
    )
    twin = policy.detach().clone().requires_grad_()
    total, num_clipped = torch.zeros((), dtype=torch.float64), 0
    for row in range(2):
        terms = []
        for at in range(3):
            if MASK[row, at]:
                ratio, gain = torch.exp(twin[row, at] - old[row, at]), advantages[row, 0]
                bounded = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2)) * gain
                terms.append(-min(ratio * gain, bounded))
                num_clipped += int((bounded < ratio * gain).item())
        total = total + sum(terms) / (constant or len(terms))
    (total / 2 / 4).backward()
    assert loss.item() == pytest.approx((total / 8).item(), rel=1e-6)
    torch.testing.assert_close(policy.grad, twin.grad, rtol=1e-6, atol=1e-9)
    assert metadata["clip_fraction"].item() == pytest.approx(num_clipped / 3)


def test_what_stands_outside_the_response_never_reaches_the_gradient() -> None:
    policy = torch.tensor([[math.inf, -1.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[0, 1, 1]])
    for step in (
        lambda: sft_microbatch_train_step(policy, mask, 1),
        lambda: grpo_microbatch_train_step(
            policy, mask, 1, "grpo_clip", advantages=torch.ones(1, 1), old_log_probs=torch.zeros(1, 3), cliprange=0.2
        ),
    ):
        policy.grad = None
        step()
        assert policy.grad is not None and policy.grad.isfinite().all() and policy.grad[0, 0] == 0


def test_a_step_that_trains_nothing_or_is_not_finite_adds_no_gradient() -> None:
    policy = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(ProofError, match="sequence 1 has no response token"):
        sft_microbatch_train_step(policy, torch.tensor([[1, 0, 0], [0, 0, 0]]), 1)
    with pytest.raises(ProofError, match="the loss is nan"):
        grpo_microbatch_train_step(policy, MASK, 1, "no_baseline", raw_rewards=torch.tensor([[math.nan], [1.0]]))
    with pytest.raises(ConfigError, match="gradient_accumulation_steps is 0"):
        sft_microbatch_train_step(policy, MASK, 0)
    with pytest.raises(DataError, match=r"\(2, 3\) and \(2, 2\)"):
        sft_microbatch_train_step(policy, MASK[:, :2], 1)
    assert policy.grad is None
