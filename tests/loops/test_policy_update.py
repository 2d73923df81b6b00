"""The second half of a step: which rollouts train, in which updates, against which old policy, and when none do."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, permutations
from typing import Any

import pytest
import torch
from envs_for_tests import problem

from grpo_gsm8k.algorithms.algorithm import with_parts
from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
from grpo_gsm8k.algorithms.registry import find_algorithm
from grpo_gsm8k.algorithms.rollout_sequences import build_sequences, plain_sequence
from grpo_gsm8k.engines.loading import load_model
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions
from grpo_gsm8k.learners.protocol import Loss
from grpo_gsm8k.loops.collect import Group
from grpo_gsm8k.loops.policy_update import PolicyUpdate, Updated, check_learnable, group_advantages_of, update_policy
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Rollout, RolloutStop, Score, Status, Turn

torch.set_num_threads(1)

GRPO = find_algorithm("grpo")
MAX_TOKENS = 12


class WatchedLearner(NativeLearner):
    """A learner that keeps the sequences of each update."""

    def __init__(self, model: Any, options: LearnerOptions) -> None:
        super().__init__(model, options)
        self.seen: list[list[TokenSequence]] = []

    def forward_backward(self, sequences: Sequence[TokenSequence], loss: Loss) -> Mapping[str, float]:
        self.seen.append(list(sequences))
        return super().forward_backward(sequences, loss)

    @property
    def seen_ids(self) -> list[list[str]]:
        return [[sequence.id for sequence in update] for update in self.seen]


@functools.cache
def loaded() -> Any:
    return load_model("tiny", None, device="cpu", dtype="float32")


def learner_of(dtype: torch.dtype = torch.float32) -> WatchedLearner:
    return WatchedLearner(copy.deepcopy(loaded()).to(dtype), LearnerOptions())


def rollout(
    number: int, sample: int, reward: float, status: Status | None = None, stop_reason: RolloutStop = "answered", extra: int = 0
) -> Rollout:
    """Tokens, their number and the engine's log-probs follow from the address; a few, from 2 to 6 (and `extra`)."""
    drawn = torch.Generator().manual_seed(100 * number + sample)
    num = 2 + (number + 2 * sample) % 5 + extra
    ids = tuple(torch.randint(5, 200, (num,), generator=drawn).tolist())
    logprobs = tuple((-3 * torch.rand(num, generator=drawn, dtype=torch.float64)).tolist())
    prompt = tuple(range(10 + number, 16 + number))
    score = Score(reward, None, status or ("correct" if reward == 1.0 else "wrong"))
    turn = Turn(0, num, "", "eos")
    return Rollout(problem(number), sample, 0, prompt, ids, (True,) * num, logprobs, (turn,), stop_reason, score)


def group(number: int, *rewards: float) -> Group:
    return [rollout(number, sample, reward) for sample, reward in enumerate(rewards)]


def broken(group: Group) -> Group:
    """The same group, its first reward lost to a failed grader."""
    return [replace(group[0], score=Score(0.0, None, "error", "it died")), *group[1:]]


def truncated(group: Group, *which: int) -> Group:
    return [replace(r, stop_reason="length") if r.sample_index in which else r for r in group]


def plan(**changed: Any) -> PolicyUpdate:
    usual: dict[str, Any] = {
        "algorithm": GRPO,
        "max_tokens": MAX_TOKENS,
        "num_updates": 1,
        "num_minibatches": 1,
        "correction": "none",
        "correction_cap": 2.0,
        "mask_truncated": False,
        "stale": False,
        "seed": 3,
    }
    return PolicyUpdate(**{**usual, **changed})


def update(
    how: PolicyUpdate, groups: Sequence[Group], learner: NativeLearner, step: int = 0, on_first: Any = None, lr: float = 1e-4
) -> Updated:
    return update_policy(how, groups, learner, step, lr, contextlib.nullcontext(), on_first)


def minibatches(how: PolicyUpdate, groups: Sequence[Group], step: int = 0) -> list[list[str]]:
    learner = learner_of()
    update(how, groups, learner, step)
    return learner.seen_ids


def ids_of(groups: Sequence[Group]) -> list[str]:
    return [plain_sequence(rollout).id for group in groups for rollout in group]


DISTINCT = [group(number, 1.0, 0.0, 0.0, 1.0) for number in range(5)]  # every rollout has an advantage


class FirstUpdate:
    """What `on_first` was given, and the weights then."""

    def __init__(self, learner: NativeLearner) -> None:
        self.learner = learner
        self.calls: list[tuple[list[str], bool, str]] = []

    def __call__(self, sequences: Sequence[TokenSequence], loss: PolicyLoss) -> None:
        self.calls.append(([sequence.id for sequence in sequences], loss.on_policy, self.learner.weights_digest()))


@pytest.mark.parametrize("num_updates", [1, 2])
@pytest.mark.parametrize("at", range(4))
def test_the_first_update_that_is_really_taken_is_checked_wherever_it_is_among_the_minibatches(
    at: int, num_updates: int
) -> None:
    groups = [group(number, *([1.0, 0.0] if number == at else [1.0, 1.0])) for number in range(4)]
    learner = learner_of()
    first, digest = FirstUpdate(learner), learner.weights_digest()
    done = update(plan(num_minibatches=4, num_updates=num_updates), groups, learner, on_first=first)
    assert [(ids, then) for ids, _, then in first.calls] == [([f"p{at}/0", f"p{at}/1"], digest)]
    assert len(done.losses) == num_updates and learner.weights_digest() != digest


def test_nothing_is_checked_after_an_update_or_without_one() -> None:
    learner = learner_of()
    first, digest = FirstUpdate(learner), learner.weights_digest()
    done = update(plan(num_minibatches=5, num_updates=2), DISTINCT, learner, on_first=first)
    assert len(done.losses) == 10
    assert [then for _, _, then in first.calls] == [digest]
    assert first.calls[0][0] == learner.seen_ids[0]
    learner = learner_of()
    first = FirstUpdate(learner)
    done = update(plan(num_minibatches=2), [group(0, 1.0, 1.0), group(1, 0.0, 0.0)], learner, on_first=first)
    assert first.calls == [] and learner.seen == [] and done.losses == [] and done.num_learnable == 0


def test_an_error_of_the_check_is_raised_before_any_weight_changes() -> None:
    def refuse(sequences: Sequence[TokenSequence], loss: PolicyLoss) -> None:
        raise ProofError("not the same policy")

    learner = learner_of()
    digest = learner.weights_digest()
    with pytest.raises(ProofError, match="not the same policy"):
        update(plan(num_minibatches=5), DISTINCT, learner, on_first=refuse)
    assert learner.weights_digest() == digest


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 5])
def test_minibatches_are_whole_groups_and_a_pass_sees_everything_once(num_minibatches: int) -> None:
    seen = minibatches(plan(num_minibatches=num_minibatches, num_updates=2), DISTINCT)
    assert len(seen) == 2 * num_minibatches
    for start in (0, num_minibatches):
        one_pass = seen[start : start + num_minibatches]
        assert sorted(chain.from_iterable(one_pass)) == ids_of(DISTINCT)
        sizes = [len(part) // 4 for part in one_pass]
        assert max(sizes) - min(sizes) <= 1
    for part in seen:
        names = {name.partition("/")[0] for name in part}
        assert sorted(part) == sorted(f"{name}/{sample}" for name in names for sample in range(4))


def test_minibatches_follow_from_seed_step_and_pass() -> None:
    how = plan(num_minibatches=3, num_updates=2)
    seen = minibatches(how, DISTINCT, step=4)
    assert minibatches(how, DISTINCT, step=4) == seen
    worse = [group(number, 0.0, 1.0, 1.0, 1.0) for number in range(5)]
    assert minibatches(how, worse, step=4) == seen  # whatever the rewards
    orders = [seen[:3], seen[3:], minibatches(how, DISTINCT, step=5)[:3], minibatches(replace(how, seed=4), DISTINCT, 4)[:3]]
    assert all(one != other for one, other in permutations(orders, 2))


def test_what_is_masked_leaves_the_rest_of_its_group_together() -> None:
    groups = [truncated(DISTINCT[0], 1, 2), *DISTINCT[1:]]
    seen = minibatches(plan(num_minibatches=5, mask_truncated=True), groups)
    assert sorted(seen, key=lambda part: part[0]) == [["p0/0", "p0/3"], *([f"p{n}/{s}" for s in range(4)] for n in range(1, 5))]
    kept = minibatches(plan(num_minibatches=5, mask_truncated=False), groups)
    assert sorted(chain.from_iterable(kept)) == ids_of(DISTINCT)


def test_a_masked_rollouts_reward_still_counts_in_its_group() -> None:
    groups = [truncated(group(0, 1.0, 0.0), 1)]
    learner = learner_of()
    done = update(plan(mask_truncated=True), groups, learner)
    assert learner.seen_ids == [["p0/0"]]
    assert done.trained == [True, False] and done.num_learnable == 1
    assert done.advantages == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-5)


@pytest.mark.parametrize("scale", ["one", "group_std", "batch_std"])
@pytest.mark.parametrize("zero_variance", ["keep", "drop", "resample"])
def test_a_group_with_a_failed_grader_changes_nothing_of_the_update(scale: str, zero_variance: str) -> None:
    algorithm = with_parts(GRPO, scale=scale, zero_variance=zero_variance)
    others = [group(1, 1.0, 0.0, 0.0, 0.0), group(2, 1.0, 1.0, 0.0, 0.0)]
    without, within = learner_of(), learner_of()
    expected = update(plan(algorithm=algorithm), others, without)
    done = update(plan(algorithm=algorithm), [others[0], broken(group(0, 0.0, 1.0, 1.0, 1.0)), others[1]], within)
    assert within.seen == without.seen and within.weights_digest() == without.weights_digest()
    assert done.losses == expected.losses and done.num_learnable == expected.num_learnable == 8
    assert done.trained == [True] * 4 + [False] * 4 + [True] * 4
    assert done.advantages == [*expected.advantages[:4], 0.0, 0.0, 0.0, 0.0, *expected.advantages[4:]]


def test_a_step_in_which_every_group_has_a_failed_grader_trains_nothing() -> None:
    learner = learner_of()
    done = update(plan(), [broken(one) for one in DISTINCT[:2]], learner)
    assert (done.losses, done.num_learnable, done.num_tokens, done.metrics) == ([], 0, 0, {})
    assert done.advantages == [0.0] * 8 and done.trained == [False] * 8 and learner.seen == []


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
def test_without_an_epsilon_equal_groups_have_advantages_of_exactly_0(scale: str) -> None:
    how = plan(algorithm=with_parts(GRPO, scale=scale, advantage_eps=0.0))
    equal = [group(0, 0.1, 0.1, 0.1), group(1, 1.0, 1.0, 1.0)]
    assert group_advantages_of(equal, how) == [[0.0] * 3] * 2
    mixed = group_advantages_of([*equal, group(2, 1.0, 0.5, 0.0)], how)  # the middle is exactly the mean
    std = 0.5 if scale == "group_std" else (0.5 / 8) ** 0.5  # of nine centred rewards, 1/2, -1/2 and zeros
    assert mixed == [[0.0] * 3, [0.0] * 3, pytest.approx([0.5 / std, 0.0, -0.5 / std])]
    learner = learner_of()
    assert update(how, equal, learner).losses == [] and learner.seen == []


def sampled_logprobs(sequence: TokenSequence, name: str) -> list[float]:
    return [value for value, flag in zip(sequence.extras[name], sequence.trained, strict=True) if flag]


def test_rollouts_of_older_weights_have_the_engines_logprobs_as_old_ones_and_no_mismatch() -> None:
    learner = learner_of()
    done = update(plan(stale=True, num_updates=2, num_minibatches=2), DISTINCT, learner, step=1)
    engine = {plain_sequence(r).id: list(r.logprobs) for one in DISTINCT for r in one}
    assert len(learner.seen) == 4
    for sequence in chain.from_iterable(learner.seen):
        assert sampled_logprobs(sequence, "old_logprob") == engine[sequence.id]
    assert not [name for name in done.metrics if name.startswith("mismatch/")]
    assert done.metrics["policy/ratio_max"] != 1.0


def test_at_the_first_step_rollouts_sampled_ahead_are_on_policy_and_their_mismatch_is_known() -> None:
    learner = learner_of()
    done = update(plan(stale=True), DISTINCT, learner, step=0)
    assert all("old_logprob" not in sequence.extras for sequence in learner.seen[0])
    assert done.metrics["policy/ratio_max"] == 1.0
    values = learner_of().logprobs([plain_sequence(r) for one in DISTINCT for r in one])
    gaps = [
        a - b
        for own, r in zip(values, chain.from_iterable(DISTINCT), strict=True)
        for a, b in zip(own, r.logprobs, strict=True)
    ]
    assert done.metrics["mismatch/mean_abs"] == pytest.approx(sum(map(abs, gaps)) / len(gaps), rel=1e-5)


def test_later_updates_compare_with_the_policy_before_the_first_one() -> None:
    learner = learner_of()
    before = dict(zip(ids_of(DISTINCT), learner.logprobs([plain_sequence(r) for g in DISTINCT for r in g]), strict=True))
    done = update(plan(num_updates=2, num_minibatches=2), DISTINCT, learner, step=1, lr=1e-3)
    assert all("old_logprob" not in sequence.extras for sequence in learner.seen[0])
    for sequence in chain.from_iterable(learner.seen[1:]):
        assert sampled_logprobs(sequence, "old_logprob") == pytest.approx(before[sequence.id], abs=1e-6)
    assert done.metrics["policy/ratio_max"] > 1.0


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("at", range(5))
def test_at_the_first_step_the_mismatch_is_of_all_minibatches(at: int, stale: bool) -> None:
    groups = [
        [replace(r, logprobs=(-70.0,) * len(r.logprobs)) for r in one] if n == at else one for n, one in enumerate(DISTINCT)
    ]
    done = update(plan(stale=stale, num_minibatches=5), groups, learner_of(), step=0)
    assert done.metrics["mismatch/max_abs"] > 30


SKIPPING = [with_parts(GRPO, denominator=name) for name in ("tokens", "sequences", "sequence_sum", "constant")]
SKIPPING += [find_algorithm("gspo"), find_algorithm("cispo"), find_algorithm("rloo"), find_algorithm("reinforce")]


@pytest.mark.parametrize("algorithm", SKIPPING, ids=lambda algorithm: f"{algorithm.name} {algorithm.denominator}")
def test_leaving_out_what_has_no_advantage_changes_no_gradient(algorithm: Any) -> None:
    groups = [group(0, 1.0, 0.0, 0.0), group(1, 1.0, 1.0, 1.0), group(2, 0.0, 0.0, 0.0), group(3, 1.0, 0.5, 0.0)]
    rollouts = list(chain.from_iterable(groups))
    short, full = learner_of(torch.float64), learner_of(torch.float64)
    gradients: dict[str, torch.Tensor] = {}

    def keep(sequences: Sequence[TokenSequence], loss: PolicyLoss) -> None:
        gradients.update(
            {name: weight.grad.to_dense() for name, weight in short.model.named_parameters() if weight.grad is not None}
        )

    done = update(plan(algorithm=algorithm), groups, short, on_first=keep)
    (seen,) = short.seen
    zero = [plain_sequence(r).id for r, value in zip(rollouts, done.advantages, strict=True) if value == 0.0]
    assert len(zero) >= 4 and not {sequence.id for sequence in seen} & set(zero)
    assert len(seen) == len(rollouts) - len(zero) == done.num_learnable
    loss = PolicyLoss(algorithm, on_policy=True)
    found = full.forward_backward(build_sequences(rollouts, done.advantages, algorithm, MAX_TOKENS), loss)
    expected = {name: weight.grad.to_dense() for name, weight in full.model.named_parameters() if weight.grad is not None}
    assert gradients.keys() == expected.keys() and len(expected) > 5
    assert max(gradient.abs().max().item() for gradient in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-10)
    full.optim_step(1e-4)
    assert done.losses == [pytest.approx(found["loss"], abs=1e-9)]
    assert full.weights_digest() != learner_of(torch.float64).weights_digest()
    for name, weight in full.model.named_parameters():
        torch.testing.assert_close(short.model.get_parameter(name), weight, rtol=0, atol=1e-7)


def test_with_a_reference_or_an_entropy_bonus_what_has_no_advantage_is_trained_too() -> None:
    groups = [group(0, 1.0, 0.0), group(1, 1.0, 1.0)]
    model = copy.deepcopy(loaded())
    learner = WatchedLearner(model, LearnerOptions(keep_reference=True))
    update(plan(algorithm=with_parts(GRPO, kl_beta=0.1)), groups, learner)
    update(plan(algorithm=with_parts(GRPO, entropy_coef=0.1)), groups, learner)
    assert learner.seen_ids == [ids_of(groups)] * 2


def num_learnable(groups: Sequence[Group], **how: Any) -> int:
    return update(plan(**how), groups, learner_of()).num_learnable


def test_what_could_be_learned_from_is_what_was_trained_and_has_an_advantage() -> None:
    equal, mixed = [group(0, 1.0, 1.0)], [group(1, 1.0, 0.0)]
    assert num_learnable(equal) == 0
    assert num_learnable(equal, algorithm=find_algorithm("reinforce")) == 2  # equal rewards train without a baseline
    assert num_learnable([group(0, 0.0, 0.0)], algorithm=find_algorithm("reinforce")) == 0
    assert num_learnable(mixed) == 2
    assert num_learnable([truncated(mixed[0], 0, 1)], mask_truncated=True) == 0
    assert num_learnable([truncated(mixed[0], 0)], mask_truncated=True) == 1
    assert num_learnable([truncated(mixed[0], 0, 1)]) == 2
    assert num_learnable([broken(group(0, 1.0, 0.0, 1.0))]) == 0
    assert num_learnable([group(0, 0.0, 0.5, 1.0)]) == 2  # the middle one is the mean


def test_too_many_steps_with_nothing_to_learn_from_stop_the_run_and_say_how_the_groups_came_out() -> None:
    solved, missed, mixed = group(0, 1.0, 1.0), group(1, 0.0, 0.0), group(2, 1.0, 0.0)
    check_learnable(2, 3, [missed])
    with pytest.raises(ProofError) as caught:
        check_learnable(3, 3, [solved, solved, missed])
    text = str(caught.value)
    assert "no rollout had an advantage for 3 steps" in text and "\n" not in text
    assert "of the last 3 groups 2 were all right and 1 all wrong: the task is solved" in text
    with pytest.raises(ProofError, match="0 were all right and 2 all wrong: the task is too hard"):
        check_learnable(5, 3, [missed, missed, mixed])
    with pytest.raises(ProofError, match="or its prompt or its limits are wrong"):
        check_learnable(3, 3, [truncated(mixed, 0, 1)])
