"""The first half of a step: no sample is drawn twice, what cannot be compared is replaced, too many failures stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest
from envs_for_tests import EOS, SumEnv, decode, problem, prompt

from grpo_gsm8k.data import gym
from grpo_gsm8k.engines.scripted import ScriptedEngine
from grpo_gsm8k.envs.dataset import DatasetEnv
from grpo_gsm8k.envs.protocol import Exchange, Outcome, Reply
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.loops.collect import Collected, Collector, collected_metrics
from grpo_gsm8k.loops.curriculum import PassOrder, PassRateOrder
from grpo_gsm8k.loops.rollouts import RolloutLimits, RolloutRequest, RolloutSampler
from grpo_gsm8k.rewards.gym import GymScorer
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.runs.rollout_metrics import has_distinct_rewards
from grpo_gsm8k.types import Completion, Prompt, Rollout, Sampling, Score

SEED, GROUP = 11, 4
Judge = Callable[[str, int], Score]
RIGHT, WRONG = Score(1.0, "1", "correct"), Score(0.0, "0", "wrong")
BROKEN = Score(0.0, None, "error", "the grader died")


@dataclass
class JudgedEnv(SumEnv):
    """One turn; the score is a function of the problem and of the token that was sampled, 1 to 9."""

    turns: int = 1
    judge: Judge = field(default=lambda name, token: RIGHT if token % 2 else WRONG)

    def reply(self, exchanges: Sequence[Exchange]) -> list[Reply]:
        return [Outcome(self.judge(e.problem.id, int(e.completions[-1].split()[0]))) for e in exchanges]


def draw(prompt: Prompt, seed: int) -> Completion:
    """A token that follows from the seed, the seed's own digits behind it, and the end token."""
    ids = (1 + seed % 9, *(100 + int(digit) for digit in str(seed)), EOS)
    return Completion(ids, (-0.5,) * len(ids), "eos")


def collector(
    num_problems: int, *, resamples: int = 0, max_error_rate: float = 0.05, order: type[PassOrder] = PassOrder
) -> Collector:
    problems = [problem(number) for number in range(num_problems)]
    prompts = [prompt(number) for number in range(num_problems)]
    return Collector(problems, prompts, order(problems, SEED), GROUP, SEED, max_error_rate, resamples)


def sampler(judge: Judge | None = None) -> RolloutSampler:
    env = JudgedEnv() if judge is None else JudgedEnv(judge=judge)
    return RolloutSampler(env, ScriptedEngine(draw), Sampling(1.0), RolloutLimits(1, 64), decode)


def names(groups: Iterable[Sequence[Rollout]]) -> list[str]:
    """The problem of each group, all of one problem."""
    found = []
    for group in groups:
        (name,) = {rollout.problem.id for rollout in group}
        found.append(name)
    return found


def test_a_step_samples_a_group_of_each_problem_at_its_own_addresses() -> None:
    found = collector(5).collect(sampler(), 5, 3)
    assert sorted(names(found.groups)) == [f"p{number}" for number in range(5)]
    for rollout in found.rollouts:
        assert rollout.seed == derive_seed(SEED, 3, rollout.problem.id, rollout.sample_index)
    assert all([rollout.sample_index for rollout in group] == [0, 1, 2, 3] for group in found.groups)
    assert (found.num_sampled, found.num_errors, found.num_replaced) == (20, 0, 0)
    assert found.num_tokens == sum(len(rollout.token_ids) for rollout in found.rollouts)


@pytest.mark.parametrize("order", [PassOrder, PassRateOrder])
def test_a_problem_that_a_step_draws_twice_gets_further_and_different_samples(order: type[PassOrder]) -> None:
    found = collector(2, order=order).collect(sampler(), 5, 0)
    assert Counter(names(found.groups)) in ({"p0": 3, "p1": 2}, {"p0": 2, "p1": 3})
    ids = {(rollout.problem.id, rollout.sample_index) for rollout in found.rollouts}
    assert len(ids) == len({rollout.seed for rollout in found.rollouts}) == 5 * GROUP
    assert len({rollout.token_ids for rollout in found.rollouts}) == 5 * GROUP
    for name in ("p0", "p1"):
        indices = [rollout.sample_index for rollout in found.rollouts if rollout.problem.id == name]
        assert indices == list(range(len(indices)))


def test_a_problem_that_is_drawn_again_to_replace_a_group_gets_further_samples() -> None:
    asked: list[str] = []

    def never(name: str, token: int) -> Score:
        asked.append(name)
        return WRONG

    found = collector(3, resamples=2).collect(sampler(never), 3, 0)
    assert Counter(asked) == {f"p{number}": 3 * GROUP for number in range(3)}  # each round is a pass over the three
    assert found.num_sampled == 9 * GROUP and found.num_replaced == 6
    for group in found.groups:  # of the third round
        assert [rollout.sample_index for rollout in group] == [8, 9, 10, 11]
        assert [rollout.seed for rollout in group] == [derive_seed(SEED, 0, group[0].problem.id, n) for n in range(8, 12)]


def test_only_groups_of_equal_rewards_are_replaced_and_as_many_as_they_are() -> None:
    def judge(name: str, token: int) -> Score:
        return WRONG if int(name[1:]) % 2 else (RIGHT if token % 2 else WRONG)

    without = collector(30).collect(sampler(judge), 10, 2)
    found = collector(30, resamples=1).collect(sampler(judge), 10, 2)
    kept = [group for group in without.groups if has_distinct_rewards(group)]
    assert 0 < len(kept) < 10
    assert found.groups[: len(kept)] == kept
    assert len(found.groups) == 10 and found.num_replaced == 10 - len(kept)
    assert found.num_sampled == (20 - len(kept)) * GROUP
    assert collected_metrics(found)["groups/replaced"] == 10 - len(kept)


def test_what_replaces_a_group_does_not_depend_on_how_many_are_replaced() -> None:
    def replaced_by(lost: set[str]) -> list[str]:
        judge: Judge = lambda name, token: WRONG if name in lost else Score(float(token), None, "wrong")  # noqa: E731
        return names(collector(30, resamples=1).collect(sampler(judge), 10, 2).groups)

    first = names(collector(30).collect(sampler(), 10, 2).groups)
    one, three = replaced_by({first[0]}), replaced_by(set(first[:3]))
    assert one[:9] == first[1:] and three[:7] == first[3:]
    assert one[9] == three[7]


def test_sampling_again_stops_when_every_group_can_be_compared() -> None:
    always: Judge = lambda name, token: Score(float(token), None, "wrong")  # noqa: E731
    found = collector(30, resamples=9).collect(sampler(always), 10, 2)
    assert found.num_sampled == 10 * GROUP and found.num_replaced == 0


def test_pass_rates_count_the_groups_that_were_thrown_away_too() -> None:
    def judge(name: str, token: int) -> Score:
        return RIGHT if name == "p0" or (name == "p1" and token % 2) else WRONG

    asked = collector(3, resamples=2, order=PassRateOrder)
    found = asked.collect(sampler(judge), 3, 0)
    state = asked.order.state()
    assert sum(sampled for sampled, _ in state.values()) == found.num_sampled > len(found.rollouts)
    assert state["p0"][0] == state["p0"][1] >= GROUP and state["p2"][1] == 0 < state["p2"][0]
    again = collector(3, resamples=2, order=PassRateOrder)
    assert again.collect(sampler(judge), 3, 0).rollouts == found.rollouts
    assert again.order.state() == state


def failed_on(lost: str, status: Score) -> Judge:
    """Tokens are the rewards, so that groups differ; on the odd tokens of one problem the grader fails."""
    return lambda name, token: status if name == lost and token % 2 else Score(float(token), None, "wrong")


def test_a_group_in_which_a_grader_failed_cannot_be_compared_is_counted_and_replaced() -> None:
    first = names(collector(30).collect(sampler(), 10, 2).groups)
    judge = failed_on(first[0], BROKEN)
    left = collector(30).collect(sampler(judge), 10, 2)
    assert 0 < left.num_errors < GROUP  # the others of its group have rewards, and different ones
    assert not has_distinct_rewards(left.groups[0]) and all(map(has_distinct_rewards, left.groups[1:]))
    assert collected_metrics(left)["rollout/errors"] == left.num_errors
    assert collected_metrics(left)["reward/zero_variance_groups"] == 1
    found = collector(30, resamples=1).collect(sampler(judge), 10, 2)
    assert found.groups[:9] == left.groups[1:] and found.num_replaced == 1
    assert first[0] not in names(found.groups) and found.num_errors == left.num_errors
    assert collected_metrics(found)["rollout/errors"] == left.num_errors  # also those that were thrown away


@pytest.mark.parametrize("resamples", [0, 1])
def test_more_failures_than_allowed_stop_the_run_in_one_line_that_names_the_first(resamples: int) -> None:
    broken = replace(BROKEN, explanation="the grader died:\nTraceback\n  of three lines")
    order = names(collector(4).collect(sampler(), 4, 6).groups)
    judge = failed_on(order[1], broken)
    num = collector(4, max_error_rate=1.0, resamples=resamples).collect(sampler(judge), 4, 6)
    rate = num.num_errors / num.num_sampled
    assert rate > 0.05
    collector(4, max_error_rate=rate, resamples=resamples).collect(sampler(judge), 4, 6)
    with pytest.raises(ProofError) as caught:
        collector(4, resamples=resamples).collect(sampler(judge), 4, 6)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"step 7: grader or environment failed on {num.num_errors} of {num.num_sampled} rollouts")
    assert "max_error_rate allows 5 %" in text
    assert text.endswith(f"the first: {order[1]}: the grader died: Traceback of three lines")


@pytest.mark.slow
def test_a_scorer_that_hangs_is_recorded_on_its_rollout_and_too_many_stop_the_run() -> None:
    problems, _ = gym.generate_mixture(gym.parse_mixture({"datasets": {"countdown": {}}}), "train", 2, 0)
    hung = problems[1].id
    says = {problems[0].id: [problems[0].answer, "1+1"], hung: [problems[1].answer, "9**9**9**9"]}

    def write(prompt: Prompt, seed: int) -> Completion:
        return Completion((seed, EOS), (-0.5, 0.0), "eos")

    def read(ids: Sequence[int]) -> str:  # the seed is written so that it says which text of which problem this is
        return f"<answer>{says[problems[ids[0] // 2].id][ids[0] % 2]}</answer>"

    def by_place(problem_id: str, sample_index: int, turn: int) -> int:
        return 2 * [one.id for one in problems].index(problem_id) + sample_index

    requests = [RolloutRequest(one, Prompt(one.id, (1,), one.question), sample) for one in problems for sample in range(2)]
    with closing(DatasetEnv("gym", {"train": problems}, GymScorer(num_workers=1, timeout_s=1.0))) as env:
        sampler = RolloutSampler(env, ScriptedEngine(write), Sampling(1.0), RolloutLimits(1, 64), read)
        batch = sampler.sample(requests, by_place)
    assert [rollout.score.status for rollout in batch.rollouts] == ["correct", "wrong", "correct", "error"]
    assert batch.num_grader_errors == 1
    found = Collected()
    found.add(batch, 2)
    with pytest.raises(ProofError) as caught:
        collector(2)._check_errors(found, 0)
    assert "failed on 1 of 4 rollouts (25 %" in str(caught.value)
    assert str(caught.value).endswith(f"{hung}: reasoning-gym's scorer of countdown: timed out after 1 s")
