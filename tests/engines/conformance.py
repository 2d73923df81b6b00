"""What every engine must do, as plain checks over a factory. Used by the test file of each engine.

    from conformance import CHECKS, Subject
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_engine_conforms(check, subject): check(subject)

`Subject.engine` is a live engine; `decode` turns its token ids into text (None where it gives text alone); `prompts` are at
least eight different ones with room for 48 new tokens, on a model that is not sure of itself (so that seeds matter) in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.errors import InputError
from grpo_gsm8k.types import Completion, Prompt, Sampling


@dataclass(frozen=True)
class Subject:
    """An engine under test, and what the checks need to know of it."""

    engine: Engine
    prompts: Sequence[Prompt]
    decode: Callable[[Sequence[int]], str] | None = None

    def text(self, completion: Completion) -> str:
        if completion.text is not None:
            return completion.text
        assert self.decode is not None
        return self.decode(completion.token_ids)

    def key(self, completion: Completion) -> tuple[object, ...]:
        return (completion.token_ids, completion.text, completion.stop_reason)


GREEDY = Sampling(temperature=0.0, max_tokens=24)
WARM = Sampling(temperature=1.0, max_tokens=24)


def order_is_restored(subject: Subject) -> None:
    seeds = list(range(len(subject.prompts)))
    forward = subject.engine.generate(subject.prompts, GREEDY, seeds)
    backward = subject.engine.generate(subject.prompts[::-1], GREEDY, seeds[::-1])
    assert [subject.key(c) for c in forward] == [subject.key(c) for c in backward[::-1]]
    assert len({subject.key(c) for c in forward}) > 1


def nothing_asked_gives_nothing(subject: Subject) -> None:
    assert subject.engine.generate([], GREEDY, []) == []


def greedy_ignores_the_seed(subject: Subject) -> None:
    prompt = subject.prompts[0]
    first, second = subject.engine.generate([prompt, prompt], GREEDY, [1, 2])
    assert subject.key(first) == subject.key(second)


def different_seeds_give_different_samples(subject: Subject) -> None:
    if not subject.engine.capabilities.per_request_seeds:
        pytest.skip("the engine takes no seeds")
    out = subject.engine.generate([subject.prompts[0]] * 8, WARM, range(8))
    assert len({subject.key(c) for c in out}) > 1


def same_seed_gives_same_tokens_whatever_the_batch(subject: Subject) -> None:
    if not subject.engine.capabilities.per_request_seeds:
        pytest.skip("the engine takes no seeds")
    prompts = list(subject.prompts)
    seeds = [2**48 - 1 - i for i in range(len(prompts))]
    together = subject.engine.generate(prompts * 2, WARM, seeds + [s - 1000 for s in seeds])
    alone = [subject.engine.generate([p], WARM, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert [subject.key(c) for c in together[: len(prompts)]] == [subject.key(c) for c in alone]


def a_repeat_is_identical(subject: Subject) -> None:
    if not subject.engine.capabilities.per_request_seeds:
        pytest.skip("the engine takes no seeds")
    seeds = list(range(len(subject.prompts)))
    assert subject.engine.generate(subject.prompts, WARM, seeds) == subject.engine.generate(subject.prompts, WARM, seeds)


def logprobs_are_there_and_are_log_probabilities(subject: Subject) -> None:
    for sampling in (GREEDY, WARM):
        out = subject.engine.generate(subject.prompts, sampling, range(len(subject.prompts)))
        for completion in out:
            if not subject.engine.capabilities.logprobs:
                assert completion.logprobs is None
                continue
            assert completion.logprobs is not None
            assert len(completion.logprobs) == len(completion.token_ids) > 0
            assert all(value <= 0 for value in completion.logprobs)
            assert any(value < 0 for value in completion.logprobs)


def length_stops_and_is_said(subject: Subject) -> None:
    out = subject.engine.generate(subject.prompts, Sampling(temperature=1.0, max_tokens=3), range(len(subject.prompts)))
    assert any(c.stop_reason == "length" for c in out)
    if subject.engine.capabilities.token_ids:
        assert all(len(c.token_ids) == 3 for c in out if c.stop_reason == "length")
        assert all(len(c.token_ids) <= 3 for c in out)


def a_stop_string_ends_and_is_kept(subject: Subject) -> None:
    free = subject.engine.generate(subject.prompts, GREEDY, [0] * len(subject.prompts))
    texts = [subject.text(completion) for completion in free]
    fit = [(i, text) for i, text in enumerate(texts) if len(text) >= 8 and "\ufffd" not in text[2:6]]
    assert fit, f"no completion of whole characters to stop in: {texts}"
    i, text = fit[0]
    stop = text[3:5]
    sampling = Sampling(temperature=0.0, max_tokens=GREEDY.max_tokens, stop=("never-said", stop))
    (stopped,) = subject.engine.generate([subject.prompts[i]], sampling, [0])
    assert stopped.stop_reason == "stop"
    stopped_text = subject.text(stopped)
    assert stop in stopped_text
    assert text.startswith(stopped_text)
    if subject.engine.capabilities.token_ids and subject.decode is not None:
        assert stopped.token_ids == free[i].token_ids[: len(stopped.token_ids)]
        assert stop not in subject.decode(stopped.token_ids[:-1])


def each_completion_is_reported_once(subject: Subject) -> None:
    seen: dict[int, Completion] = {}

    def on_completion(index: int, completion: Completion) -> None:
        assert index not in seen
        seen[index] = completion

    prompts = [*subject.prompts, subject.prompts[0]]
    out = subject.engine.generate(prompts, WARM, range(len(prompts)), on_completion)
    assert [seen[i] for i in range(len(prompts))] == out


def bad_requests_are_refused_before_sampling(subject: Subject) -> None:
    seen: list[int] = []

    def report(index: int, _completion: Completion) -> None:
        seen.append(index)

    prompts = list(subject.prompts)
    for sampling, seeds in (
        (GREEDY, [0]),
        (GREEDY, [-1] * len(prompts)),
        (Sampling(temperature=-0.5), [0] * len(prompts)),
        (Sampling(temperature=float("nan")), [0] * len(prompts)),
        (Sampling(top_p=0.0), [0] * len(prompts)),
        (Sampling(max_tokens=0), [0] * len(prompts)),
        (Sampling(stop=("",)), [0] * len(prompts)),
    ):
        with pytest.raises(InputError):
            subject.engine.generate(prompts, sampling, seeds, report)
    assert seen == []


def it_says_what_it_is(subject: Subject) -> None:
    description = subject.engine.describe()
    assert description["engine"] == subject.engine.name
    assert subject.engine.capabilities.batch_size >= 1


CHECKS = (
    order_is_restored,
    nothing_asked_gives_nothing,
    greedy_ignores_the_seed,
    different_seeds_give_different_samples,
    same_seed_gives_same_tokens_whatever_the_batch,
    a_repeat_is_identical,
    logprobs_are_there_and_are_log_probabilities,
    length_stops_and_is_said,
    a_stop_string_ends_and_is_kept,
    each_completion_is_reported_once,
    bad_requests_are_refused_before_sampling,
    it_says_what_it_is,
)
