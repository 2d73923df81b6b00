"""Why learner and engine disagree about the same tokens: each likely cause is taken away in turn, and the difference measured.

A cause explains the disagreement when the difference without it is (nearly) nothing. All work on a few turns, those that
disagree most. |Δ| is the mean over sampled tokens of |learner's log-prob - engine's|, in nats.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.loops.policy_sync import PolicySync
from grpo_gsm8k.prompts import Tokenizer
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Prompt, Sampling

DTYPES = ("float32", "bfloat16", "float16")
MAX_NEW_TOKENS = 64  # of a turn that is sampled again
DTYPE_SHARE = 0.75  # of the difference may be left by the precision that explains it
NUM_PLACES, NUM_DRAWS = 8, 16  # of one token each
NOT_SURE = (math.log(0.03), math.log(0.97))  # a token between them has others beside it
TEMPERATURES = tuple(0.1 * 10 ** (step / 6) for step in range(13))  # 0.1 to 10
GOLDEN = (math.sqrt(5) - 1) / 2


class GateTokenizer(Tokenizer, Protocol):
    """What the diagnosis needs of a tokenizer; every Hugging Face one has it."""

    @property
    def all_special_ids(self) -> Any:
        """The ids of the special tokens."""
        ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any:
        """Returns the text of token ids."""
        ...

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Returns the vocabulary's entries of token ids."""
        ...

    def get_vocab(self) -> Any:
        """Returns the id of each entry of the vocabulary."""
        ...


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """What an engine sampled after `context`, and its log-probs."""

    context: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def sequence(self) -> TokenSequence:
        """The sequence that trains this turn's tokens."""
        return TokenSequence.of_response("turn", self.context, self.token_ids)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What testing a cause gave: |Δ| with it (`before`) and without it (`after`), in words, and what to do about it.

    `after` is None where the cause could not be tested, and `said` is why. It explains the disagreement when `after` is no
    more than `allowed`.
    """

    cause: str
    said: str
    before: float = math.nan
    after: float | None = None
    allowed: float = 0.0
    remedy: str = ""

    @property
    def explains(self) -> bool:
        """Whether the disagreement is gone without the cause."""
        return self.after is not None and self.before > self.allowed and self.after <= self.allowed


@dataclass(frozen=True)
class Probe:
    """What a diagnosis works with: the parts of the run, and the turns that disagree most."""

    learner: Learner
    engine: Engine
    sync: PolicySync
    sampling: Sampling
    tokenizer: GateTokenizer
    tolerance: float
    turns: Sequence[SampledTurn]

    def differences(self, turns: Sequence[SampledTurn], **how: Any) -> list[list[float]]:
        """Returns Δ of each turn's tokens, as far as the engine gave log-probs; `how` is what `Learner.logprobs` takes."""
        learned = self.learner.logprobs([turn.sequence for turn in turns], **how)
        return [
            [own - engine for own, engine in zip(logprobs, turn.logprobs, strict=False)]
            for logprobs, turn in zip(learned, turns, strict=True)
        ]

    def gap(self, turns: Sequence[SampledTurn], **how: Any) -> float:
        """Returns |Δ|."""
        return mean_abs(self.differences(turns, **how))

    @functools.cached_property
    def before(self) -> float:
        """|Δ| of the turns as they are."""
        return self.gap(self.turns)

    @functools.cached_property
    def again(self) -> float:
        """|Δ| of the same contexts sampled again, nothing changed."""
        return self.gap(self.sample())

    def sample(self, **changes: Any) -> list[SampledTurn]:
        """Returns the turns' contexts sampled again, each with a seed of its own, always the same."""
        longest = max(len(turn.context) for turn in self.turns)
        window = self.engine.describe().get("window_tokens") or math.inf
        max_tokens = max(1, int(min(MAX_NEW_TOKENS, self.sampling.max_tokens, window - longest)))
        return self.draw([turn.context for turn in self.turns], max_tokens, **changes)

    def draw(self, contexts: Sequence[tuple[int, ...]], max_tokens: int, **changes: Any) -> list[SampledTurn]:
        """Returns what the engine samples after each context; equal contexts are several draws."""
        prompts = [Prompt(f"turn-{index}", context) for index, context in enumerate(contexts)]
        seeds = [derive_seed(0, 0, prompt.problem_id, 0) for prompt in prompts]
        completions = self.engine.generate(prompts, replace(self.sampling, max_tokens=max_tokens, **changes), seeds)
        return [
            SampledTurn(context, completion.token_ids, completion.logprobs or ())
            for context, completion in zip(contexts, completions, strict=True)
        ]

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids, special tokens written out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Returns the token ids of a text; `special` lets the tokenizer add its own."""
        return tuple(int(token) for token in self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def found(self, cause: str, after: float, said: str, remedy: str, before: float | None = None) -> Evidence:
        """Returns the evidence of a test that explains a disagreement when nothing above the tolerance is left of it."""
        shown = f"{said}, |Δ| is {after:.2g}"
        return Evidence(cause, shown, self.before if before is None else before, after, self.tolerance, remedy)


Cause = Callable[[Probe], Evidence]


def mean_abs(differences: Sequence[Sequence[float]]) -> float:
    """Returns the mean size over all values; infinity where there is none, so that nothing is explained by nothing."""
    sizes = [abs(value) for row in differences for value in row]
    return math.fsum(sizes) / len(sizes) if sizes else math.inf


def try_temperature(probe: Probe) -> Evidence:
    """The learner's log-probs at temperature 1, at the sampling temperature, and at the one that fits best."""
    asked = probe.sampling.temperature

    @functools.cache
    def gap_at(temperature: float) -> float:
        return probe.gap(probe.turns, temperature=temperature)

    best = min((asked, 1.0), key=gap_at)
    if gap_at(best) > probe.tolerance:
        best = _minimum(gap_at)
    if math.isclose(best, asked, rel_tol=1e-3):
        remedy = f"make the learner with the sampling temperature, {asked:g}"
    elif math.isclose(best, 1.0, rel_tol=1e-3):
        remedy = f"have the engine sample at {asked:g} and report the log-probs of what it samples from, not raw ones"
    else:
        remedy = f"have the engine sample at the temperature it is asked for, {asked:g}"
    said = f"with the learner at temperature {best:.3g} (sampling asks for {asked:g})"
    return probe.found("temperature", gap_at(best), said, remedy)


def _minimum(gap_at: Callable[[float], float]) -> float:
    """Returns the temperature with the least gap: the best of a grid, then golden section between its neighbours."""
    grid = [math.log(temperature) for temperature in TEMPERATURES]
    gaps = [gap_at(math.exp(place)) for place in grid]
    index = min(range(len(grid)), key=gaps.__getitem__)
    low, high = grid[max(0, index - 1)], grid[min(len(grid) - 1, index + 1)]
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    gap_left, gap_right = gap_at(math.exp(left)), gap_at(math.exp(right))
    while high - low > 1e-5:
        if gap_left <= gap_right:
            high, right, gap_right = right, left, gap_left
            left = high - GOLDEN * (high - low)
            gap_left = gap_at(math.exp(left))
        else:
            low, left, gap_left = left, right, gap_right
            right = low + GOLDEN * (high - low)
            gap_right = gap_at(math.exp(right))
    return math.exp((low + high) / 2)


def try_truncation(probe: Probe) -> Evidence:
    """Sampling without top-p and top-k where the run asks for them; else, whether the engine cuts of its own accord.

    An engine that cuts and renormalises gives every token that it keeps at one place the same factor. So one token is drawn
    many times at places with several likely tokens: what is left of Δ without its mean at each place is then nothing.
    """
    asked = probe.sampling
    if asked.top_p < 1 or asked.top_k > 0:
        after = probe.gap(probe.sample(top_p=1.0, top_k=0))
        said = f"sampled again without top_p {asked.top_p:g} and top_k {asked.top_k}"
        return probe.found("top-p/top-k", after, said, "set top_p 1 and top_k 0: they are no part of the policy", probe.again)
    places = [
        (delta, logprob, turn.context + turn.token_ids[:at])
        for turn, deltas in zip(probe.turns, probe.differences(probe.turns), strict=True)
        for at, (delta, logprob) in enumerate(zip(deltas, turn.logprobs, strict=True))
    ]
    several = _shared_places(probe, [(abs(delta), ids) for delta, p, ids in places if NOT_SURE[0] < p < NOT_SURE[1]])
    if not several:
        return Evidence("top-p/top-k", "at no place did the engine give two different tokens")
    alone = [delta for delta, logprob, _ in places if logprob == 0.0]  # where all others were cut, if anything was
    if _mean([*alone, *(value for values in several for value in values)]) > probe.tolerance:
        return Evidence("top-p/top-k", "nothing was cut: the engine gives its tokens less than the learner does")
    before = mean_abs([*several, alone])
    spread = mean_abs([[value - _mean(values) for value in values] for values in several])
    said = f"without what tokens drawn at one place share, as when the rest is cut ({len(several)} places)"
    remedy = "switch off the engine's own top-p, top-k or min-p (a model's generation config may set them)"
    return probe.found("top-p/top-k", spread, said, remedy, before)


def _shared_places(probe: Probe, places: Sequence[tuple[float, tuple[int, ...]]]) -> list[list[float]]:
    """Returns Δ of the different tokens drawn at each of the places that differ most, where there are several."""
    worst = sorted(places, key=lambda place: -place[0])[:NUM_PLACES]
    if not worst:
        return []
    drawn = probe.draw([context for _, context in worst for _ in range(NUM_DRAWS)], 1)
    distinct = list({(turn.context, turn.token_ids): turn for turn in drawn}.values())
    by_place: dict[tuple[int, ...], list[float]] = {}
    for turn, (delta,) in zip(distinct, probe.differences(distinct), strict=True):
        by_place.setdefault(turn.context, []).append(delta)
    return [values for values in by_place.values() if len(values) > 1]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def try_template(probe: Probe) -> Evidence:
    """The learner's log-probs after other contexts: a special token more or less in front, or the text as a chat once more."""
    gaps = {name: probe.gap(turns) for name, turns in _other_contexts(probe)}
    if not gaps:
        return Evidence("template or special tokens", "there is no other way to write the prompts")
    best = min(gaps, key=gaps.__getitem__)
    remedy = "give the engine the prompt's token ids as they are, without a template or special tokens of its own"
    return probe.found("template or special tokens", gaps[best], f"with the prompt {best}", remedy)


def _other_contexts(probe: Probe) -> Iterator[tuple[str, list[SampledTurn]]]:
    specials = sorted(probe.tokenizer.all_special_ids)
    rules: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {}
    for special in specials:
        rules[f"after {probe.text([special])}"] = functools.partial(operator.add, (special,))
    rules["without its first special token"] = lambda ids: ids[1:] if ids[0] in specials and len(ids) > 1 else ids
    rules["with the tokenizer's special tokens"] = lambda ids: _with_specials(probe, ids)
    if probe.tokenizer.chat_template:
        rules["put into the chat template"] = lambda ids: probe.encode(_as_chat(probe, probe.text(ids)))
    for name, rule in rules.items():
        turns = [replace(turn, context=rule(turn.context)) for turn in probe.turns]
        if turns != list(probe.turns):
            yield name, turns


def _with_specials(probe: Probe, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the ids as they are where the tokenizer adds none: text encoded again is another cause."""
    text = probe.text(ids)
    encoded = probe.encode(text, special=True)
    return ids if encoded == probe.encode(text) else encoded


def _as_chat(probe: Probe, text: str) -> str:
    messages: list[Mapping[str, str]] = [{"role": "user", "content": text}]
    return str(probe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def try_dtype(probe: Probe) -> Evidence:
    """The learner's log-probs by a copy of its weights in each other precision; less is an explanation.

    Not autocast, which keeps the residual stream in float32 and so rounds unlike an engine in half precision. No copy rounds
    exactly like an engine with other kernels, so much can be left.
    """
    own, said = str(probe.learner.describe().get("dtype")), str(probe.engine.describe().get("dtype"))
    gaps = {dtype: probe.gap(probe.turns, dtype=dtype) for dtype in DTYPES if dtype != own}
    best = min(gaps, key=gaps.__getitem__)
    remedy = f"run the engine in {own}, or set ratio_tolerance to what {best} needs"
    shown = f"with the learner in {best} (it is in {own}; the engine says {said}), |Δ| is {gaps[best]:.2g}"
    return Evidence("dtype", shown, probe.before, gaps[best], DTYPE_SHARE * probe.before, remedy)


def try_stale_weights(probe: Probe) -> Evidence:
    """The same contexts sampled again with the same seeds, before and after the learner's weights are published once more."""
    before = probe.again
    probe.sync.publish(0)
    after = probe.gap(probe.sample())
    said = f"sampled again after the learner's weights were published again (before that: {before:.2g})"
    remedy = "publish the learner's weights to the engine before anything is sampled, and see that they are loaded"
    return probe.found("stale weights", after, said, remedy, before)
