"""Which tokens of a rollout are trained on, and why none is where none is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from grpo_gsm8k.runs.rollout_files import StoredRollout

Kind = Literal["prompt", "environment", "trained", "truncated", "left_out"]

KINDS: dict[Kind, str] = {
    "trained": "sampled by the model, and trained on",
    "prompt": "the prompt",
    "environment": "said by the environment",
    "truncated": "sampled, not trained on: a limit cut the rollout",
    "left_out": "sampled, not trained on: the update left the rollout out",
}
LIMITS = ("length", "max_turns", "max_tokens")


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `end` of a rollout with its prompt, all of one kind."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class MaskedRollout:
    """A rollout and the kind of each of its tokens, the prompt's first.

    `cause` says why no token is trained, None where one is. `is_fault`: it should have been trained on (a rollout that is left
    out by choice, such as one of a group whose rewards are all equal, or a truncated one under `mask_truncated`, is none).
    """

    stored: StoredRollout
    kinds: tuple[Kind, ...]
    cause: str | None
    is_fault: bool

    @property
    def name(self) -> str:
        """What messages call it: problem/sample."""
        return f"{self.stored.rollout.problem.id}/{self.stored.rollout.sample_index}"

    @property
    def counts(self) -> Counter[Kind]:
        """How many tokens there are of each kind."""
        return Counter(self.kinds)

    @property
    def spans(self) -> Iterator[Span]:
        """Yields the runs of tokens of one kind, in order."""
        start = 0
        for kind, tokens in groupby(self.kinds):
            end = start + sum(1 for _ in tokens)
            yield Span(kind, start, end)
            start = end

    @property
    def logprobs(self) -> list[float | None]:
        """The sampling log-prob of each token; None where the model did not sample it."""
        rollout = self.stored.rollout
        sampled = (value if by_model else None for value, by_model in zip(rollout.logprobs, rollout.sampled, strict=True))
        return [None] * len(rollout.prompt_token_ids) + list(sampled)

    @property
    def learner_logprobs(self) -> list[float | None]:
        """The learner's own log-prob of each token; None where it is not on record."""
        rollout, own = self.stored.rollout, iter(self.stored.learner_logprobs or ())
        return [None] * len(rollout.prompt_token_ids) + [next(own, None) if by_model else None for by_model in rollout.sampled]


def mask_rollout(stored: StoredRollout, *, mask_truncated: bool, window: int | None = None) -> MaskedRollout:
    """Returns the rollout's tokens by kind. `mask_truncated`: the run leaves rollouts that hit a limit out of the loss.

    A rollout that no update has seen (`trained` None) counts as if it were trained on. `window` is the model's, in tokens.
    """
    rollout = stored.rollout
    cut = rollout.stop_reason in LIMITS
    kept = stored.trained if stored.trained is not None else not (cut and mask_truncated)
    of_model: Kind = "trained" if kept else "truncated" if cut else "left_out"
    after: tuple[Kind, ...] = tuple(of_model if sampled else "environment" for sampled in rollout.sampled)
    prompt: Kind = "prompt"
    kinds = (prompt,) * len(rollout.prompt_token_ids) + after
    if "trained" in after:
        return MaskedRollout(stored, kinds, None, False)
    cause, is_fault = _why_untrained(stored, mask_truncated, window)
    return MaskedRollout(stored, kinds, cause, is_fault)


def _why_untrained(stored: StoredRollout, mask_truncated: bool, window: int | None) -> tuple[str, bool]:
    """Returns (the cause in words, whether it is a fault) of a rollout without a trained token."""
    rollout = stored.rollout
    cut = rollout.stop_reason in LIMITS
    num_prompt = len(rollout.prompt_token_ids)
    if not rollout.token_ids and any(turn.text for turn in rollout.turns):
        return "missing token ids: there is text without the tokens that it came from", True
    if rollout.num_sampled == 0 and window is not None and num_prompt >= window:
        return f"prompt longer than the window: {num_prompt} tokens in a window of {window}", True
    if rollout.num_sampled == 0 and rollout.stop_reason == "error":
        return f"the environment failed before the first answer: {rollout.score.explanation}", True
    if rollout.num_sampled == 0:
        return f"truncated before the first answer: ended by {rollout.stop_reason} with no sampled token", True
    if rollout.score.status == "error":
        return f"its grader or environment failed, so it has no reward: {rollout.score.explanation}", False
    if cut and mask_truncated:
        limit = f"ended by {rollout.stop_reason} after {rollout.num_sampled} sampled tokens"
        return f"masked as asked for by mask_truncated: {limit}", False
    return "left out of the update by choice: its group's rewards are all equal, or it was not kept", False


def count_kinds(masked: Iterable[MaskedRollout]) -> Counter[Kind]:
    """Returns how many tokens of each kind the rollouts hold together."""
    total: Counter[Kind] = Counter()
    for one in masked:
        total.update(one.counts)
    return total
