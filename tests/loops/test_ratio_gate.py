"""The gate before the first update, against engines that are really wrong, each in one way: it names that one."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
from grpo_gsm8k.algorithms.registry import find_algorithm
from grpo_gsm8k.algorithms.rollout_sequences import build_sequences
from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.engines.protocol import OnCompletion
from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions
from grpo_gsm8k.loops.policy_sync import PolicySync
from grpo_gsm8k.loops.policy_update import PolicyUpdate, update_policy
from grpo_gsm8k.loops.ratio_gate import RatioGate, turns_of
from grpo_gsm8k.prompts import render_batch
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.runs.weight_folders import WeightFolders, choose_place
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Completion, Problem, Prompt, Rollout, Sampling, Score, Turn

GRPO = find_algorithm("grpo")
PROBLEMS = generate("train", 6, 3)
GROUP = 4
WARM = Sampling(temperature=1.5, max_tokens=24)  # at 1 the tiny model is too sure of itself for much to differ


class Engine(TransformersEngine):
    """The real engine, with what it is asked and what it gives put through functions that make it wrong."""

    prompt: Callable[[Prompt], Prompt] = staticmethod(lambda prompt: prompt)
    sampling: Callable[[Sampling], Sampling] = staticmethod(lambda sampling: sampling)
    completion: Callable[[Prompt, Completion, Sampling], Completion] = staticmethod(lambda prompt, done, sampling: done)
    claims: Mapping[str, Any] = {}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        done = super().generate([self.prompt(p) for p in prompts], self.sampling(sampling), seeds)
        return [self.completion(p, c, sampling) for p, c in zip(prompts, done, strict=True)]

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), **self.claims}


@functools.cache
def loaded(dtype: str) -> Engine:
    return Engine("tiny", dtype=dtype)


def engine_of(dtype: str = "float32") -> Engine:
    """An engine of its own, read from disk once."""
    return copy.deepcopy(loaded(dtype))


def learner_of(temperature: float = 1.0) -> NativeLearner:
    torch.set_num_threads(1)
    model = copy.deepcopy(loaded("float32")._live_model())
    return NativeLearner(model, LearnerOptions("float32", temperature=temperature))


def rollouts_of(engine: TransformersEngine, sampling: Sampling, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
    """One group a problem, whose rewards differ."""
    addresses = [
        (problem, prompt, sample) for problem, prompt in zip(PROBLEMS, prompts, strict=True) for sample in range(GROUP)
    ]
    seeds = [derive_seed(1, 0, problem.id, sample) for problem, _, sample in addresses]
    done = engine.generate([prompt for _, prompt, _ in addresses], sampling, seeds)
    rows = [rollout(*address, seed, one) for address, seed, one in zip(addresses, seeds, done, strict=True)]
    return [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]


def rollout(problem: Problem, prompt: Prompt, sample: int, seed: int, done: Completion) -> Rollout:
    num, logprobs = len(done.token_ids), done.logprobs or ()
    turn = Turn(0, num, "", done.stop_reason)
    score = Score(float(sample % 2), None, "correct" if sample % 2 else "wrong")
    ids = prompt.token_ids
    return Rollout(problem, sample, seed, ids, done.token_ids, (True,) * num, logprobs, (turn,), "answered", score)


@contextlib.contextmanager
def opened(
    path: Path, engine: TransformersEngine, sampling: Sampling, learner: NativeLearner, tolerance: float | None
) -> Iterator[tuple[RatioGate, list[Mapping[str, Any]]]]:
    passed: list[Mapping[str, Any]] = []
    with contextlib.closing(WeightFolders(choose_place(path, 1 << 20, 1))) as folders:
        sync = PolicySync(learner, engine, folders)
        gate = RatioGate(
            learner=learner,
            engine=engine,
            sync=sync,
            sampling=sampling,
            tokenizer=engine.tokenizer,
            tolerance=tolerance,
            on_pass=passed.append,
        )
        yield gate, passed


def plan(*, stale: bool = False) -> PolicyUpdate:
    return PolicyUpdate(
        algorithm=GRPO,
        max_tokens=24,
        num_updates=1,
        num_minibatches=1,
        correction="none",
        correction_cap=2.0,
        mask_truncated=False,
        stale=stale,
        seed=0,
    )


def step(
    path: Path,
    engine: TransformersEngine,
    sampling: Sampling = WARM,
    *,
    temperature: float | None = None,
    tolerance: float | None = None,
    prompts: Sequence[Prompt] = (),
    stale: bool = False,
) -> Mapping[str, Any]:
    """Returns what a passed gate records, having taken a real first step of GRPO."""
    learner = learner_of(sampling.temperature if temperature is None else temperature)
    groups = rollouts_of(engine, sampling, prompts or render_batch(engine.tokenizer, PROBLEMS, template="question"))
    with opened(path, engine, sampling, learner, tolerance) as (gate, passed):
        update_policy(plan(stale=stale), groups, learner, 0, 1e-4, contextlib.nullcontext(), gate)
    return passed[0]


def refusal(path: Path, engine: TransformersEngine, sampling: Sampling = WARM, **how: Any) -> str:
    with pytest.raises(ProofError) as caught:
        step(path, engine, sampling, **how)
    text = str(caught.value)
    assert "\n" not in text
    assert "learner and engine are not the same policy" in text
    return text


def cause_in(text: str) -> str:
    return text.partition("likely cause: ")[2].partition(": ")[0]


def test_a_right_engine_passes_and_what_was_measured_is_recorded(tmp_path: Path) -> None:
    record = step(tmp_path, engine_of())
    assert record["tolerance"] == 1e-3
    assert 0 < record["mean_abs"] < 1e-5 and record["max_abs"] < 1e-4
    assert record["effective_sample_size"] == pytest.approx(1.0)
    assert record["num_sequences"] == len(PROBLEMS) * GROUP
    assert record["engine"]["dtype"] == "float32" and "transformers" in record["engine"]
    assert json.loads(json.dumps(record))["sampling"]["temperature"] == 1.5


def test_rollouts_sampled_ahead_are_measured_against_the_learner_and_not_against_themselves(tmp_path: Path) -> None:
    assert 0 < step(tmp_path, engine_of(), stale=True)["mean_abs"] < 1e-5
    engine = engine_of()
    engine.sampling = lambda sampling: replace(sampling, temperature=1.0)
    assert cause_in(refusal(tmp_path, engine, stale=True)) == "temperature"


@pytest.mark.parametrize("really", [1.5, 1.0])
def test_rollouts_that_are_not_trained_on_yet_pass_the_gate_or_are_refused_with_the_cause(
    tmp_path: Path, really: float
) -> None:
    engine = engine_of()
    engine.sampling = lambda sampling: replace(sampling, temperature=really)
    groups = rollouts_of(engine, WARM, render_batch(engine.tokenizer, PROBLEMS, template="question"))
    ahead = [one for group in groups for one in group]
    with opened(tmp_path, engine, WARM, learner_of(WARM.temperature), None) as (gate, passed):
        if really == WARM.temperature:
            gate.check_rollouts(ahead)
            assert passed[0]["num_sequences"] == len(ahead)
            assert 0 < passed[0]["mean_abs"] < 1e-5
            return
        with pytest.raises(ProofError, match="not the same policy") as caught:
            gate.check_rollouts(ahead)
    assert cause_in(str(caught.value)) == "temperature"
    assert not passed


def test_half_precision_has_a_wider_tolerance(tmp_path: Path) -> None:
    record = step(tmp_path, engine_of("bfloat16"))
    assert record["tolerance"] == 0.05
    assert 1e-4 < record["mean_abs"] < 0.05


@pytest.mark.parametrize("really", [0.9, pytest.param(2.2, marks=pytest.mark.slow)])
def test_an_engine_that_samples_at_another_temperature_is_named_with_that_temperature(tmp_path: Path, really: float) -> None:
    engine = engine_of()
    engine.sampling = lambda sampling: replace(sampling, temperature=really)
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "temperature"
    assert f"at temperature {really:.3g} (sampling asks for 1.5)" in text


def test_an_engine_that_reports_raw_logprobs_is_named(tmp_path: Path) -> None:
    raw = learner_of()

    def completion(prompt: Prompt, done: Completion, sampling: Sampling) -> Completion:
        sequence = TokenSequence.of_response("raw", prompt.token_ids, done.token_ids)
        return replace(done, logprobs=raw.logprobs([sequence])[0])

    engine = engine_of()
    engine.completion = completion
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "temperature"
    assert "not raw ones" in text


def test_a_learner_at_another_temperature_than_sampling_is_named(tmp_path: Path) -> None:
    text = refusal(tmp_path, engine_of(), temperature=1.0)
    assert cause_in(text) == "temperature"
    assert "make the learner with the sampling temperature, 1.5" in text


@pytest.mark.parametrize("asked", [{"top_p": 0.8}, pytest.param({"top_k": 5}, marks=pytest.mark.slow)])
def test_top_p_and_top_k_that_were_asked_for_are_named(tmp_path: Path, asked: dict[str, Any]) -> None:
    text = refusal(tmp_path, engine_of(), replace(WARM, **asked))
    assert cause_in(text) == "top-p/top-k"
    assert "set top_p 1 and top_k 0" in text


@pytest.mark.parametrize(
    "own",
    [
        {"top_p": 0.8},
        pytest.param({"top_k": 5}, marks=pytest.mark.slow),
        pytest.param({"top_p": 0.95, "top_k": 20}, marks=pytest.mark.slow),
    ],
)
def test_top_p_and_top_k_of_the_engines_own_are_named(tmp_path: Path, own: dict[str, Any]) -> None:
    engine = engine_of()
    engine.sampling = lambda sampling: replace(sampling, **own)
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "top-p/top-k"
    assert "the engine's own" in text


@pytest.mark.parametrize("spread", [0.02, pytest.param(0.3, marks=pytest.mark.slow)])
def test_stale_weights_are_named(tmp_path: Path, spread: float) -> None:
    other = learner_of()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1 + spread * torch.randn(weight.shape, generator=generator))
    weights = tmp_path / "other"
    weights.mkdir()
    other.publish_weights(weights)
    engine = engine_of()
    engine.load_weights(weights, 7)
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "stale weights"
    assert "publish the learner's weights" in text


@pytest.mark.parametrize(
    ("dtype", "claims"),
    [
        ("bfloat16", {}),
        ("float16", {"dtype": "float32"}),
        pytest.param("bfloat16", {"dtype": "float32"}, marks=pytest.mark.slow),
        pytest.param("float16", {}, marks=pytest.mark.slow),
    ],
)
def test_an_engine_in_half_precision_is_named_whatever_it_says_of_itself(
    tmp_path: Path, dtype: str, claims: dict[str, str]
) -> None:
    engine = engine_of(dtype)
    engine.claims = claims
    text = refusal(tmp_path, engine, tolerance=2e-4 if dtype == "float16" else 1e-3)
    assert cause_in(text) == "dtype"
    assert f"with the learner in {dtype}" in text


def test_an_engine_that_puts_a_special_token_in_front_is_named_with_that_token(tmp_path: Path) -> None:
    engine = engine_of()
    first = engine.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    engine.prompt = lambda prompt: replace(prompt, token_ids=(first, *prompt.token_ids))
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "template or special tokens"
    assert "with the prompt after <|endoftext|>" in text


def test_an_engine_that_leaves_out_the_first_special_token_is_named(tmp_path: Path) -> None:
    engine = engine_of()
    engine.prompt = lambda prompt: replace(prompt, token_ids=prompt.token_ids[1:])
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "template or special tokens"
    assert "without its first special token" in text


def test_an_engine_that_applies_the_chat_template_once_more_is_named(tmp_path: Path) -> None:
    engine = engine_of()
    tokenizer = engine.tokenizer

    def twice(prompt: Prompt) -> Prompt:
        chat = [{"role": "user", "content": tokenizer.decode(prompt.token_ids)}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return replace(prompt, token_ids=tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))

    engine.prompt = twice
    text = refusal(tmp_path, engine)
    assert cause_in(text) == "template or special tokens"
    assert "put into the chat template" in text


def encoded_again(engine: TransformersEngine, token_ids: Sequence[int]) -> tuple[int, ...]:
    text = engine.tokenizer.decode(token_ids, skip_special_tokens=False)
    return tuple(engine.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    "temperature", [pytest.param(1.7, marks=pytest.mark.slow), 2.0, pytest.param(2.5, marks=pytest.mark.slow)]
)
def test_an_engine_whose_tokens_are_its_text_encoded_again_is_named(tmp_path: Path, temperature: float) -> None:
    engine = engine_of()

    def completion(prompt: Prompt, done: Completion, sampling: Sampling) -> Completion:
        pairs = list(zip(encoded_again(engine, done.token_ids), done.logprobs or (), strict=False))
        return replace(done, token_ids=tuple(token for token, _ in pairs), logprobs=tuple(value for _, value in pairs))

    engine.completion = completion
    text = refusal(tmp_path, engine, replace(WARM, temperature=temperature))
    assert cause_in(text) == "re-tokenisation"
    assert "encode no text again" in text


@pytest.mark.parametrize(
    "temperature", [pytest.param(1.7, marks=pytest.mark.slow), 2.0, pytest.param(2.5, marks=pytest.mark.slow)]
)
def test_an_engine_whose_logprobs_are_of_its_text_encoded_again_is_named(tmp_path: Path, temperature: float) -> None:
    engine = engine_of()
    scorer = learner_of(temperature)

    def completion(prompt: Prompt, done: Completion, sampling: Sampling) -> Completion:
        again = encoded_again(engine, done.token_ids)
        (scored,) = scorer.logprobs([TokenSequence.of_response("scored", prompt.token_ids, again)])
        num = min(len(scored), len(done.token_ids))
        return replace(done, token_ids=done.token_ids[:num], logprobs=scored[:num])

    engine.completion = completion
    assert cause_in(refusal(tmp_path, engine, replace(WARM, temperature=temperature))) == "re-tokenisation"


def test_an_engine_that_encodes_the_prompts_text_again_is_named(tmp_path: Path) -> None:
    engine = engine_of()
    tokenizer = engine.tokenizer
    letters = []
    for prompt in render_batch(tokenizer, PROBLEMS, template="question"):
        pieces = [tokenizer.convert_ids_to_tokens(token) for token in prompt.token_ids]
        special = set(tokenizer.all_special_tokens)
        spelled = [part for piece in pieces for part in ([piece] if piece in special else piece)]
        letters.append(replace(prompt, token_ids=tuple(tokenizer.convert_tokens_to_ids(spelled))))
    assert step(tmp_path, engine_of(), prompts=letters)["mean_abs"] < 1e-5
    engine.prompt = lambda prompt: replace(prompt, token_ids=encoded_again(engine, prompt.token_ids))
    text = refusal(tmp_path, engine, prompts=letters)
    assert cause_in(text) == "re-tokenisation"
    assert "the context's text encoded again" in text


def test_where_no_cause_explains_it_the_tested_ones_are_listed_with_what_was_left(tmp_path: Path) -> None:
    engine = engine_of()
    engine.completion = lambda prompt, done, sampling: replace(
        done,
        logprobs=tuple(value - 0.1 * (token % 7) for token, value in zip(done.token_ids, done.logprobs or (), strict=True)),
    )
    text = refusal(tmp_path, engine)
    assert "no cause explains it" in text
    for cause in ("temperature", "top-p/top-k", "template or special tokens", "re-tokenisation", "dtype", "stale weights"):
        assert f"{cause}: " in text


def test_a_learner_whose_training_gives_other_values_than_its_scoring_is_named(tmp_path: Path) -> None:
    engine = engine_of()
    groups = rollouts_of(engine, WARM, render_batch(engine.tokenizer, PROBLEMS, template="question"))
    sequences = build_sequences([one for group in groups for one in group], [1.0] * len(PROBLEMS) * GROUP, GRPO, 24)
    loss = PolicyLoss(GRPO, on_policy=True)
    learner_of(1.0).forward_backward(sequences, loss)
    with opened(tmp_path, engine, WARM, learner_of(1.5), None) as (gate, passed), pytest.raises(ProofError) as caught:
        gate(sequences, loss)
    assert "scored again they agree" in str(caught.value) and not passed


def test_turns_of_a_sequence_are_its_runs_of_trained_tokens() -> None:
    flags = (False, False, True, True, False, True)
    values = tuple(-0.1 * place for place in range(6))
    turns = turns_of(TokenSequence("p/0", (5, 6, 7, 8, 9, 10), flags, {"sampling_logprob": values}))
    assert [(turn.context, turn.token_ids) for turn in turns] == [((5, 6), (7, 8)), ((5, 6, 7, 8, 9), (10,))]
    assert [turn.logprobs for turn in turns] == [values[2:4], values[5:]]


def test_a_mismatch_in_a_second_turn_alone_is_found_there(tmp_path: Path) -> None:
    engine, learner = engine_of(), learner_of(1.5)
    prompts = render_batch(engine.tokenizer, PROBLEMS, template="question")
    observation = tuple(engine.tokenizer("\nAgain: ", add_special_tokens=False)["input_ids"])
    first = engine.generate(prompts, WARM, range(len(prompts)))
    later = [
        Prompt(prompt.problem_id, prompt.token_ids + done.token_ids + observation)
        for prompt, done in zip(prompts, first, strict=True)
    ]
    engine.sampling = lambda sampling: replace(sampling, temperature=1.0)
    second = engine.generate(later, WARM, range(len(prompts)))
    rollouts = []
    for problem, prompt, one, two in zip(PROBLEMS, prompts, first, second, strict=True):
        parts = [(one.token_ids, True, one.logprobs), (observation, False, (0.0,) * len(observation))]
        parts.append((two.token_ids, True, two.logprobs))
        start = len(one.token_ids) + len(observation)
        turns = (Turn(0, len(one.token_ids), "", "eos"), Turn(start, start + len(two.token_ids), "", "eos"))
        rollouts.append(
            replace(
                rollout(problem, prompt, 0, 0, one),
                token_ids=tuple(token for ids, _, _ in parts for token in ids),
                sampled=tuple(flag for ids, flag, _ in parts for _ in ids),
                logprobs=tuple(value for _, _, values in parts for value in values or ()),
                turns=turns,
            )
        )
    sequences = build_sequences(rollouts, [1.0] * len(rollouts), GRPO, 100)
    loss = PolicyLoss(GRPO, on_policy=True)
    learner.forward_backward(sequences, loss)
    with opened(tmp_path, engine, WARM, learner, None) as (gate, _), pytest.raises(ProofError) as caught:
        gate(sequences, loss)
    assert cause_in(str(caught.value)) == "temperature"
