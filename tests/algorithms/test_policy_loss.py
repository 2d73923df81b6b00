"""The policy loss against values worked out by hand, split in every way, and its diagnostics. Shapes: N tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from grpo_gsm8k.algorithms.algorithm import Algorithm, with_parts
from grpo_gsm8k.algorithms.packing import PackedBatch, pack
from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
from grpo_gsm8k.algorithms.registry import ALGORITHMS, find_algorithm
from grpo_gsm8k.errors import ConfigError, ProofError
from grpo_gsm8k.tokenize import TokenSequence

LOGS = [math.log(ratio) for ratio in (1.5, 0.5, 1.1, 2.0)]  # one sequence of one token, one of three


def sequence(name: str, num: int, **extras: Sequence[float]) -> TokenSequence:
    padded = {key: (0.0, *values) for key, values in extras.items()}
    return TokenSequence(name, tuple(range(num + 1)), (False, *(True,) * num), padded)


def batch(logs: Sequence[float] = LOGS, advantages: tuple[float, float] = (2.0, -1.0), sampling: float = -1.0) -> PackedBatch:
    """Two sequences, of the first token and of the rest, whose present log-probs are `logs` above the old ones, -1.

    Each token weighs 0.1 in the first and 0.2 in the second; the reference gives every token -1.5.
    """
    nums = (1, len(logs) - 1)
    return pack(
        [
            sequence(
                name,
                num,
                advantage=[advantage] * num,
                weight=[weight] * num,
                old_logprob=[-1.0] * num,
                sampling_logprob=[sampling] * num,
                reference_logprob=[-1.5] * num,
            )
            for name, num, advantage, weight in zip("ab", nums, advantages, (0.1, 0.2), strict=True)
        ],
        [0, 1],
    )


def outcome(loss: PolicyLoss, logs: Sequence[float] = LOGS, **made: Any) -> tuple[float, list[float]]:
    """Returns the loss and its gradient by each log-prob."""
    logprobs = (torch.tensor(logs, dtype=torch.float64) - 1).requires_grad_()
    value = loss(logprobs, batch(logs, **made))
    (gradient,) = torch.autograd.grad(value, logprobs)
    return value.item(), gradient.tolist()


def off_policy(name: str, **parts: Any) -> PolicyLoss:
    return PolicyLoss(with_parts(find_algorithm(name), **parts), on_policy=False)


def test_reinforce_is_minus_the_weighted_advantage_times_the_log_prob() -> None:
    for name in ("reinforce", "reinforce_baseline", "rloo"):
        value, gradient = outcome(off_policy(name))
        logprobs = [log - 1 for log in LOGS]
        assert value == pytest.approx(-0.1 * 2 * logprobs[0] + 0.2 * sum(logprobs[1:]))
        assert gradient == pytest.approx([-0.2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_the_clip_cuts_what_goes_beyond_its_bounds(name: str) -> None:
    high = 1.28 if name == "dapo" else 1.2
    value, gradient = outcome(off_policy(name))
    # A = 2: r 1.5 counts as the bound. A = -1: r 0.5 counts as 0.8; 1.1 and 2.0 as they are.
    assert value == pytest.approx(-0.1 * 2 * high + 0.2 * (0.8 + 1.1 + 2.0))
    assert gradient == pytest.approx([0, 0, 0.2 * 1.1, 0.2 * 2.0])


def test_cispo_cuts_the_weight_and_keeps_every_gradient() -> None:
    value, gradient = outcome(off_policy("cispo", clip_high=0.4))
    weights = [1.4, 0.5, 1.1, 1.4]
    terms = [w * (log - 1) for w, log in zip(weights, LOGS, strict=True)]
    assert value == pytest.approx(-0.1 * 2 * terms[0] + 0.2 * sum(terms[1:]))
    assert gradient == pytest.approx([-0.2 * 1.4, 0.2 * 0.5, 0.2 * 1.1, 0.2 * 1.4])


def test_gspo_takes_the_geometric_mean_of_the_sequence() -> None:
    value, gradient = outcome(off_policy("gspo", clip_low=0.3, clip_high=0.3))
    second = (0.5 * 1.1 * 2.0) ** (1 / 3)  # within the clip; the first sequence's 1.5 is beyond it
    assert value == pytest.approx(-0.1 * 2 * 1.3 + 0.6 * second)
    assert gradient == pytest.approx([0, *[0.6 * second / 3] * 3])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_on_policy_every_algorithm_has_the_gradient_of_reinforce(name: str) -> None:
    value, gradient = outcome(PolicyLoss(find_algorithm(name), on_policy=True))
    assert gradient == pytest.approx([-0.2, 0.2, 0.2, 0.2], abs=1e-15)
    if find_algorithm(name).objective == "clip":
        assert value == pytest.approx(-0.1 * 2 + 0.2 * 3)


def test_the_kl_and_the_entropy_bonus_are_weighed_like_the_tokens() -> None:
    plain, _ = outcome(off_policy("grpo"))
    loss = off_policy("grpo", kl_beta=0.5, entropy_coef=0.01)
    value, _ = outcome(loss)
    deltas = [log - 1 + 1.5 for log in LOGS]
    terms = [math.exp(-delta) - 1 + delta for delta in deltas]
    assert value - plain == pytest.approx(0.5 * (0.1 * terms[0] + 0.2 * sum(terms[1:])))
    weights = loss.entropy_weights(batch())
    assert weights is not None and weights.tolist() == pytest.approx([-0.001, -0.002, -0.002, -0.002])
    assert off_policy("grpo").entropy_weights(batch()) is None


def test_truncated_importance_sampling_weighs_each_token_or_the_whole_sequence() -> None:
    logs, sampling = [0.0, 0.0, 0.0, 0.0], -1.0 - math.log(1.5)  # the old policy is 1.5 times the engine's
    value, gradient = outcome(PolicyLoss(find_algorithm("grpo"), on_policy=False), logs, sampling=sampling)
    assert (value, gradient) == (pytest.approx(-0.2 + 0.6), pytest.approx([-0.2, 0.2, 0.2, 0.2]))
    for on_policy in (False, True):
        token = PolicyLoss(find_algorithm("grpo"), on_policy=on_policy, correction="token", cap=2.0)
        assert outcome(token, logs, sampling=sampling)[1] == pytest.approx([-0.3, 0.3, 0.3, 0.3])
        capped = PolicyLoss(find_algorithm("grpo"), on_policy=on_policy, correction="token", cap=1.2)
        assert outcome(capped, logs, sampling=sampling)[1] == pytest.approx([-0.24, 0.24, 0.24, 0.24])
        whole = PolicyLoss(find_algorithm("grpo"), on_policy=on_policy, correction="sequence", cap=3.0)
        assert outcome(whole, logs, sampling=sampling)[1] == pytest.approx([-0.3, 0.6, 0.6, 0.6])  # 1.5 and min(1.5³, 3)
    assert token.diagnostics()["correction/mean"] == pytest.approx(1.5)
    assert capped.diagnostics()["correction/capped_fraction"] == 1
    assert whole.diagnostics()["correction/mean"] == pytest.approx((1.5 + 9) / 4)


def test_a_loss_is_separable_wherever_each_term_is_of_its_own_token() -> None:
    grpo, gspo = find_algorithm("grpo"), find_algorithm("gspo")
    assert PolicyLoss(grpo, on_policy=False).separable
    assert PolicyLoss(grpo, on_policy=False, correction="token").separable
    assert PolicyLoss(gspo, on_policy=True).separable
    assert not PolicyLoss(gspo, on_policy=False).separable
    assert not PolicyLoss(gspo, on_policy=True, correction="token").separable  # weights differ within a sequence
    assert not PolicyLoss(grpo, on_policy=True, correction="sequence").separable


def drawn_sequences(num: int) -> list[TokenSequence]:
    rng = torch.Generator().manual_seed(1)
    found = []
    for index in range(num):
        length = 1 + index % 5

        def values(scale: float = 0.3, length: int = length) -> list[float]:
            return (-1 + scale * torch.randn(length, generator=rng, dtype=torch.float64)).tolist()

        advantage = [float(torch.randn(1, generator=rng))] * length
        extras = {"old_logprob": values(), "sampling_logprob": values(), "reference_logprob": values()}
        found.append(sequence(str(index), length, advantage=advantage, weight=[1 / (num * length)] * length, **extras))
    return found


CASES = [
    (name, on_policy, correction) for name in ALGORITHMS for on_policy in (False, True) for correction in ("token", "none")
]


@pytest.mark.parametrize(("name", "on_policy", "correction"), [*CASES, ("grpo", False, "sequence"), ("gspo", True, "sequence")])
def test_micro_batches_and_slices_change_neither_loss_nor_gradient_nor_diagnostics(
    name: str, on_policy: bool, correction: str
) -> None:
    algorithm = with_parts(find_algorithm(name), kl_beta=0.1)
    sequences = drawn_sequences(13)
    num_tokens = sum(one.num_trained for one in sequences)
    rng = torch.Generator().manual_seed(2)
    logprobs_N = (-1 + 0.3 * torch.randn(num_tokens, generator=rng, dtype=torch.float64)).requires_grad_()
    starts = [0]
    for one in sequences:
        starts.append(starts[-1] + one.num_trained)

    def run(plan: Sequence[Sequence[int]], part: int | None) -> tuple[float, torch.Tensor, dict[str, float]]:
        loss = PolicyLoss(algorithm, on_policy=on_policy, correction=correction, cap=1.1)
        total = torch.zeros((), dtype=torch.float64)
        for indices in plan:
            packed = pack(sequences, indices)
            own_N = torch.cat([logprobs_N[starts[index] : starts[index + 1]] for index in indices])
            step = part if part is not None and loss.separable else len(own_N)
            for start in range(0, len(own_N), step):
                total = total + loss(own_N[start : start + step], packed.tokens(slice(start, start + step)))
        return total.item(), torch.autograd.grad(total, logprobs_N)[0], loss.diagnostics()

    value, gradient, diagnostics = run([range(13)], None)
    assert gradient.abs().max() > 1e-3
    for plan in ([[index] for index in range(13)], [[12, 3, 5], [0, 1], [2, 4, 6, 7, 11], [8, 9, 10]]):
        found, found_gradient, found_diagnostics = run(plan, part=2)
        assert abs(found - value) < 1e-12 and (found_gradient - gradient).abs().max() < 1e-12
        assert found_diagnostics == pytest.approx(diagnostics, rel=1e-12, abs=1e-12)


def test_diagnostics_are_those_worked_out_by_hand() -> None:
    loss = off_policy("grpo", kl_beta=0.1)
    outcome(loss, sampling=-1.0 - math.log(2))
    found = loss.diagnostics()
    assert found["policy/ratio_mean"] == pytest.approx((1.5 + 0.5 + 1.1 + 2) / 4)
    assert found["policy/ratio_max"] == pytest.approx(2)
    assert found["policy/clip_high_fraction"] == 0.25  # 1.5, with a positive advantage; 2.0 has a negative one
    assert found["policy/clip_low_fraction"] == 0.25  # 0.5
    assert found["policy/kl_k1"] == pytest.approx(-sum(LOGS) / 4)
    assert found["policy/kl"] == pytest.approx((5.1 - 4 - sum(LOGS)) / 4)
    deltas = [log + 0.5 for log in LOGS]
    assert found["policy/kl_reference"] == pytest.approx(sum(math.exp(-delta) - 1 + delta for delta in deltas) / 4)
    assert found["mismatch/mean_abs"] == found["mismatch/max_abs"] == pytest.approx(math.log(2))  # old against engine
    assert found["mismatch/effective_sample_size"] == pytest.approx(1)
    assert not any(name.startswith("correction/") for name in found)
    reinforce = off_policy("rloo")
    outcome(reinforce)
    assert not any("clip" in name or "reference" in name for name in reinforce.diagnostics())


def test_on_policy_the_ratio_is_exactly_1_and_the_mismatch_is_of_the_present_policy() -> None:
    loss = PolicyLoss(find_algorithm("gspo"), on_policy=True)
    outcome(loss, [0.25, -0.5, 0.125, 0.0])
    found = loss.diagnostics()
    assert found["policy/ratio_mean"] == found["policy/ratio_max"] == 1.0
    assert found["policy/kl"] == found["policy/kl_k1"] == found["policy/clip_high_fraction"] == 0.0
    assert found["mismatch/max_abs"] == 0.5 and found["mismatch/mean_abs"] == pytest.approx(0.875 / 4)


def test_float32_log_probs_are_reduced_in_float64_and_keep_their_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    value = off_policy("grpo")(logprobs, batch())
    value.backward()
    assert value.dtype == torch.float64 and logprobs.grad is not None and logprobs.grad.dtype == torch.float32


def test_what_is_missing_or_unknown_is_named() -> None:
    grpo = find_algorithm("grpo")
    with pytest.raises(ConfigError, match="unknown correction 'tokens'; did you mean 'token'"):
        PolicyLoss(grpo, on_policy=True, correction="tokens")
    with pytest.raises(ConfigError, match="correction_cap is 0"):
        PolicyLoss(grpo, on_policy=True, correction="token", cap=0.0)
    with pytest.raises(ProofError, match="never called"):
        PolicyLoss(grpo, on_policy=True).diagnostics()
    bare = pack([sequence("a", 1, advantage=[1.0], weight=[1.0], sampling_logprob=[-1.0])], [0])
    for algorithm, name in ((grpo, "old_logprob"), (with_parts(grpo, kl_beta=0.1), "reference_logprob")):
        with pytest.raises(ProofError, match=f"the sequences have no '{name}'"):
            PolicyLoss(algorithm, on_policy=name != "old_logprob")(torch.tensor([-1.0]), bare)


def test_the_clip_of_an_algorithm_of_ones_own_is_read() -> None:
    own = Algorithm(
        name="own", baseline="zero", scale="one", objective="clip", clip_low=0.5, clip_high=0.6, denominator="tokens"
    )
    value, _ = outcome(PolicyLoss(own, on_policy=False))
    assert value == pytest.approx(-0.1 * 2 * 1.5 + 0.2 * (0.5 + 1.1 + 2.0))
