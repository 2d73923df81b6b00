"""Rollouts are exact at token level, end for the reason they say, and depend on nothing but their addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from envs_for_tests import EOS, SumEnv, decode, extend, problem, prompt

from grpo_gsm8k.engines.protocol import OnCompletion
from grpo_gsm8k.engines.scripted import ScriptedEngine
from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.envs.protocol import Exchange, Reply
from grpo_gsm8k.errors import ConfigError, PromptError, ProofError
from grpo_gsm8k.loops.rollouts import RolloutLimits, RolloutRequest, RolloutSampler, turn_seeds
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.rollout_files import write_rollouts
from grpo_gsm8k.types import Completion, Prompt, Rollout, Sampling

torch.set_num_threads(1)

LIMITS = RolloutLimits(max_turns=5, max_tokens_per_turn=8)
SEEDS = turn_seeds(11, 2)


def hashed_completion(prompt: Prompt, seed: int) -> Completion:
    """Two to six tokens, and their log-probs, that follow from all the prompt's tokens and the seed; then the end token."""
    drawn = hashlib.sha256(f"{prompt.token_ids} {seed}".encode()).digest()
    ids = (*(1 + byte % 9 for byte in drawn[: 2 + drawn[31] % 5]), EOS)
    return Completion(ids, tuple(-drawn[8 + place] / 64 for place in range(len(ids))), "eos")


class WatchedEngine(ScriptedEngine):
    """A scripted engine that keeps what went through it, call by call: (prompt tokens, seed, completion)."""

    def __init__(self, script: Any = hashed_completion, tokenizer: Any = None) -> None:
        super().__init__(script, tokenizer)
        self.calls: list[list[tuple[tuple[int, ...], int, Completion]]] = []
        self.asked: list[Sampling] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], on_completion: OnCompletion | None = None
    ) -> list[Completion]:
        done = super().generate(prompts, sampling, seeds, on_completion)
        self.asked.append(sampling)
        self.calls.append([(p.token_ids, s, c) for p, s, c in zip(prompts, seeds, done, strict=True)])
        return done


def requests(num_problems: int = 4, num_samples: int = 2, gold: str = "1") -> list[RolloutRequest]:
    return [RolloutRequest(problem(n, gold), prompt(n), sample) for n in range(num_problems) for sample in range(num_samples)]


def say(*turns: tuple[int, ...]) -> Any:
    """A script that says the turns one after another, whatever the problem; the seed must be the turn's number."""

    def script(prompt: Prompt, seed: int) -> Completion:
        ids = turns[seed % len(turns)]
        return Completion(ids, (-0.5,) * len(ids), "eos" if ids[-1] == EOS else "stop")

    return script


def by_turn(problem_id: str, sample_index: int, turn: int) -> int:
    return turn


def sample_one(script: Any) -> Rollout:
    sampler = RolloutSampler(SumEnv(), ScriptedEngine(script), Sampling(), LIMITS, decode, extend)
    (rollout,) = sampler.sample(requests(1, 1), by_turn).rollouts
    return rollout


def test_a_rollout_holds_the_models_tokens_as_sampled_and_the_environments_between_them() -> None:
    rollout = sample_one(say((3, 4, EOS), (5, 6), (1, EOS)))
    assert rollout.prompt_token_ids == (700, 701)
    assert rollout.token_ids == (3, 4, EOS, 901, 1, 50, 902, 5, 6, 900, 901, 2, 50, 902, 1, EOS)
    assert rollout.sampled == (True,) * 3 + (False,) * 4 + (True,) * 2 + (False,) * 5 + (True,) * 2
    assert rollout.logprobs == tuple(-0.5 if sampled else 0.0 for sampled in rollout.sampled)
    assert [(turn.start, turn.end, turn.text, turn.stop_reason) for turn in rollout.turns] == [
        (0, 3, "3 4", "eos"),
        (7, 9, "5 6", "stop"),
        (14, 16, "1", "eos"),
    ]
    assert (rollout.stop_reason, rollout.score.status, rollout.score.value) == ("answered", "correct", 1.0)
    assert rollout.metrics == {"turns_used": 3.0}


def test_every_turn_was_sampled_from_exactly_the_tokens_that_stand_before_it() -> None:
    engine = WatchedEngine()
    asked = requests()
    rollouts = RolloutSampler(SumEnv(), engine, Sampling(1.0), LIMITS, decode, extend).sample(asked, SEEDS).rollouts
    for turn, call in enumerate(engine.calls):
        assert len(call) == len(asked)  # every live rollout's next turn in one call
        for rollout, (context, seed, completion) in zip(rollouts, call, strict=True):
            start, end = rollout.turns[turn].start, rollout.turns[turn].end
            assert context == rollout.prompt_token_ids + rollout.token_ids[:start]
            assert completion.token_ids == rollout.token_ids[start:end]
            assert completion.logprobs == rollout.logprobs[start:end]
            assert seed == SEEDS(rollout.problem.id, rollout.sample_index, turn)
    assert len(engine.calls) == 3


def test_the_first_turn_has_the_seed_of_its_sample_and_later_turns_have_others() -> None:
    assert SEEDS("p", 3, 0) == derive_seed(11, 2, "p", 3)
    seeds = {SEEDS(name, sample, turn) for name in ("p", "q") for sample in range(4) for turn in range(4)}
    assert len(seeds) == 32


def test_the_order_of_the_requests_changes_no_rollout() -> None:
    def sample(asked: list[RolloutRequest]) -> tuple[Rollout, ...]:
        sampler = RolloutSampler(SumEnv(), ScriptedEngine(hashed_completion), Sampling(1.0), LIMITS, decode, extend)
        return sampler.sample(asked, SEEDS).rollouts

    asked = requests()
    backwards = sample(asked[::-1])
    assert sample(asked) == backwards[::-1]
    assert sample(asked[3:5]) == backwards[::-1][3:5]
    assert [rollout.problem.id for rollout in backwards] == [request.problem.id for request in asked[::-1]]


def test_the_same_seeds_give_the_same_bytes_and_others_do_not(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    written = []
    for step, seeds in enumerate([SEEDS, SEEDS, turn_seeds(12, 2)]):
        sampler = RolloutSampler(SumEnv(), ScriptedEngine(hashed_completion), Sampling(1.0), LIMITS, decode, extend)
        written.append(write_rollouts(run, step, sampler.sample(requests(), seeds).rollouts).read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    ("limits", "stop_reason", "num_turns", "tokens"),
    [
        (RolloutLimits(2, 8), "max_turns", 2, (3, 4, EOS, 901, 1, 50, 902, 5, 6)),
        (RolloutLimits(5, 2), "length", 1, (3, 4)),  # the turn's own limit
        (RolloutLimits(5, 8, 2), "max_tokens", 1, (3, 4)),  # the turn is cut by the rollout's limit
        (RolloutLimits(5, 8, 7), "max_tokens", 1, (3, 4, EOS)),  # the observation takes the last token
        (RolloutLimits(5, 8, 8), "max_tokens", 2, (3, 4, EOS, 901, 1, 50, 902, 5)),
        (RolloutLimits(5, 8, 14), "max_tokens", 2, (3, 4, EOS, 901, 1, 50, 902, 5, 6)),
    ],
)
def test_a_limit_ends_a_rollout_under_its_own_name_without_reward(
    limits: RolloutLimits, stop_reason: str, num_turns: int, tokens: tuple[int, ...]
) -> None:
    texts = {"p0": ["34", "56", "1"]}
    engine = ScriptedEngine(texts, DigitTokenizer())
    (rollout,) = (
        RolloutSampler(SumEnv(), engine, Sampling(stop=("6",)), limits, decode, extend).sample(requests(1, 1), by_turn).rollouts
    )
    assert (rollout.stop_reason, len(rollout.turns), rollout.token_ids) == (stop_reason, num_turns, tokens)
    assert (rollout.score.value, rollout.score.status) == (0.0, "unparsed")
    assert "the environment wanted another turn" in rollout.score.explanation
    assert rollout.sampled[-1]
    assert len(rollout.token_ids) == len(rollout.sampled) == len(rollout.logprobs) == rollout.turns[-1].end


class DigitTokenizer:
    """One token a digit; token 0 ends a text."""

    eos_token_id = EOS

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [int(digit) for digit in text]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(str, token_ids))


def test_the_environment_still_scores_a_last_turn_that_was_cut() -> None:
    engine = ScriptedEngine({"p0": "123"}, DigitTokenizer())
    for limits, stop_reason in ((RolloutLimits(1, 2), "length"), (RolloutLimits(1, 8, 2), "max_tokens")):
        sampler = RolloutSampler(SumEnv(turns=1), engine, Sampling(), limits, decode)
        (rollout,) = sampler.sample(requests(1, 1), by_turn).rollouts
        assert (rollout.stop_reason, rollout.score.explanation) == (stop_reason, "cut by length")
        assert rollout.turns[0].stop_reason == "length"


def test_what_is_sampled_beyond_a_rollouts_own_limit_is_cut_as_if_sampled_under_it() -> None:
    """One call serves all: the rollout with less room gets a prefix of what it would have said."""
    asked = [RolloutRequest(problem(0), prompt(0), 0), RolloutRequest(problem(1), prompt(1), 0)]
    engine = WatchedEngine({"p0": ["1", "12345"], "p1": ["11111", "12345"]}, DigitTokenizer())
    sampler = RolloutSampler(SumEnv(), engine, Sampling(), RolloutLimits(5, 6, 12), decode, extend)
    first, second = sampler.sample(asked, by_turn).rollouts
    assert [len(call) for call in engine.calls] == [2, 2]
    assert engine.asked[1].max_tokens == 6
    assert first.token_ids[first.turns[1].start :] == (1, 2, 3, 4, 5, EOS)
    assert second.token_ids[second.turns[1].start :] == (1, 2)
    assert [(r.stop_reason, len(r.token_ids)) for r in (first, second)] == [("max_tokens", 12), ("max_tokens", 12)]
    assert first.turns[1].stop_reason == "eos"
    assert second.turns[1].stop_reason == "length"


def test_stop_strings_of_the_environment_end_turns_that_the_model_did_not_end() -> None:
    engine = WatchedEngine({"p0": ["345", "1"]}, DigitTokenizer())
    sampler = RolloutSampler(SumEnv(turns=2, stop=("4",)), engine, Sampling(stop=("9",)), LIMITS, decode, extend)
    (rollout,) = sampler.sample(requests(1, 1), by_turn).rollouts
    assert engine.asked[0].stop == ("9", "4")
    assert rollout.token_ids == (3, 4, 900, 901, 1, 50, 902, 1, EOS)


def test_an_environment_that_raises_spoils_only_the_rollout_it_raised_on() -> None:
    def sample(env: SumEnv) -> Any:
        return RolloutSampler(env, ScriptedEngine(hashed_completion), Sampling(1.0), LIMITS, decode, extend).sample(
            requests(), SEEDS
        )

    plain, failing = sample(SumEnv()), sample(SumEnv(raises_on="p2"))
    assert (plain.num_env_errors, failing.num_env_errors, failing.num_grader_errors) == (0, 2, 0)
    for expected, rollout in zip(plain.rollouts, failing.rollouts, strict=True):
        if rollout.problem.id != "p2":
            assert rollout == expected
        else:
            assert (rollout.stop_reason, rollout.score.status, rollout.score.value) == ("error", "error", 0.0)
            assert rollout.score.explanation == "RuntimeError: the tool is broken"
            assert rollout.token_ids == expected.token_ids[: expected.turns[0].end]


def test_an_environment_that_finds_the_run_at_fault_stops_it() -> None:
    class WrongVersion(SumEnv):
        def reply(self, exchanges: Sequence[Exchange]) -> list[Reply]:
            raise ProofError("made by another version")

    sampler = RolloutSampler(WrongVersion(), ScriptedEngine(hashed_completion), Sampling(1.0), LIMITS, decode, extend)
    with pytest.raises(ProofError, match="made by another version"):
        sampler.sample(requests(), SEEDS)


def test_the_environments_own_number_of_turns_is_a_limit_too() -> None:
    class Endless(SumEnv):
        max_turns = 2

    for limits in (RolloutLimits(5, 8), RolloutLimits(2, 8)):
        sampler = RolloutSampler(Endless(turns=9), ScriptedEngine(hashed_completion), Sampling(1.0), limits, decode, extend)
        rollouts = sampler.sample(requests(), SEEDS).rollouts
        assert {(rollout.stop_reason, len(rollout.turns)) for rollout in rollouts} == {("max_turns", 2)}


def test_a_grader_that_says_it_failed_is_counted_apart_from_zero() -> None:
    sampler = RolloutSampler(SumEnv(1, fails_on="p1"), ScriptedEngine(hashed_completion), Sampling(1.0), LIMITS, decode)
    batch = sampler.sample(requests(), SEEDS)
    assert (batch.num_env_errors, batch.num_grader_errors) == (0, 2)
    assert [r.problem.id for r in batch.rollouts if r.score.status == "error"] == ["p1", "p1"]
    assert batch.num_tokens == sum(rollout.num_sampled for rollout in batch.rollouts) > 0


def test_what_no_rollout_can_be_sampled_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="engine scripted cannot do what this run needs: logprobs"):
        RolloutSampler(SumEnv(), ScriptedEngine({"p0": "x"}), Sampling(), LIMITS, decode, extend)
    with pytest.raises(ConfigError, match="sum has several turns and nothing renders its observations; use max_turns 1"):
        RolloutSampler(SumEnv(), ScriptedEngine(hashed_completion), Sampling(), LIMITS, decode)
    with pytest.raises(ConfigError, match="max_tokens of a rollout is 0; it must be 1 or more"):
        RolloutLimits(1, 1, 0)


@pytest.mark.parametrize("completion", [Completion((1,), None, "eos"), Completion((1, 2), (-0.5,), "eos")])
def test_an_engine_that_gives_no_log_prob_for_a_token_stops_the_run(completion: Completion) -> None:
    with pytest.raises(ProofError, match="p0: engine scripted gave"):
        sample_one(lambda prompt, seed: completion)


@cache
def tiny_engine() -> TransformersEngine:
    return TransformersEngine("tiny", device="cpu")


@cache
def tiny_requests(num_problems: int = 6, num_samples: int = 2) -> tuple[RolloutRequest, ...]:
    from grpo_gsm8k.data import word_problems
    from grpo_gsm8k.prompts import render_batch

    problems = word_problems.generate("test", num_problems, 0)
    rendered = render_batch(tiny_engine().tokenizer, problems, template="question")
    return tuple(RolloutRequest(p, r, s) for p, r in zip(problems, rendered, strict=True) for s in range(num_samples))


def tiny_sampler(limits: RolloutLimits, turns: int = 3) -> RolloutSampler:
    tokenizer: Any = tiny_engine().tokenizer

    def tiny_extend(observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
        end = "<|im_end|>" if eos_token_id is None else ""
        text = f"{end}\n<|im_start|>user\n{observation}<|im_end|>\n<|im_start|>assistant\n"
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def tiny_decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    return RolloutSampler(SumEnv(turns), tiny_engine(), Sampling(0.9), limits, tiny_decode, tiny_extend)


def test_the_tiny_models_log_probs_are_those_of_one_forward_over_the_whole_rollout() -> None:
    """Only the right context in front of every turn gives these; the model itself is the oracle."""
    from transformers import AutoModelForCausalLM

    from grpo_gsm8k.models import tiny_path

    model = AutoModelForCausalLM.from_pretrained(tiny_path())
    batch = tiny_sampler(RolloutLimits(3, 30)).sample(tiny_requests(), SEEDS)
    assert max(len(rollout.turns) for rollout in batch.rollouts) == 3
    for rollout in batch.rollouts:
        ids = torch.tensor([rollout.prompt_token_ids + rollout.token_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1].float() / 0.9, -1)
        told = logprobs.gather(1, ids[0, 1:, None])[len(rollout.prompt_token_ids) - 1 :, 0]
        mask = torch.tensor(rollout.sampled)
        torch.testing.assert_close(torch.tensor(rollout.logprobs)[mask], told[mask], atol=2e-5, rtol=0)
        assert not torch.tensor(rollout.logprobs)[~mask].any()


def test_the_tiny_models_rollouts_do_not_depend_on_the_order_of_the_requests() -> None:
    asked = tiny_requests()
    forwards = tiny_sampler(RolloutLimits(2, 30)).sample(asked, SEEDS).rollouts
    backwards = tiny_sampler(RolloutLimits(2, 30)).sample(asked[::-1], SEEDS).rollouts[::-1]
    assert [r.token_ids for r in forwards] == [r.token_ids for r in backwards]
    assert [r.seed for r in forwards] == [derive_seed(11, 2, r.problem.id, r.sample_index) for r in asked]
    assert tiny_sampler(RolloutLimits(2, 30)).sample(asked, SEEDS).rollouts == forwards


@pytest.mark.parametrize(("left", "num_turns"), [(3, 2), (1, 2), (0, 1), (-9, 1)])
def test_a_rollout_may_fill_the_models_window_to_its_last_token(left: int, num_turns: int) -> None:
    """The engine refuses what is over its window, so a limit that is one too high would raise."""
    (request,) = tiny_requests()[:1]
    window = tiny_engine().describe()["window_tokens"]
    first_turn = tiny_sampler(RolloutLimits(1, 40)).sample([request], SEEDS).rollouts[0].token_ids
    before = len(request.prompt.token_ids + first_turn)

    def filling(observation: str, *, eos_token_id: int | None) -> tuple[int, ...]:
        return (50,) * (window - before - left)

    sampler = RolloutSampler(SumEnv(), tiny_engine(), Sampling(0.9), RolloutLimits(3, 40), str, filling)
    (rollout,) = sampler.sample([request], SEEDS).rollouts
    assert (rollout.stop_reason, len(rollout.turns)) == ("max_tokens", num_turns)
    assert len(rollout.prompt_token_ids + rollout.token_ids) == (window if num_turns == 2 else before)


def test_a_first_turn_that_does_not_fit_the_window_is_refused() -> None:
    with pytest.raises(PromptError, match="do not fit the model's window of 4096"):
        tiny_sampler(RolloutLimits(1, 4096)).sample(tiny_requests(), SEEDS)
