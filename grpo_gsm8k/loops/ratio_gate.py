"""The gate before the first update: learner and engine are the same policy, or the run stops.

At the first update of a start no weight has changed, so the learner's log-prob of every sampled token is the engine's, up to
rounding. Where it is not, each likely cause is tested, and the one that explains the difference is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from grpo_gsm8k.algorithms.mismatch import mismatch
from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
from grpo_gsm8k.algorithms.rollout_sequences import sampled_sequence
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.errors import HarnessError, ProofError
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.loops.policy_sync import PolicySync
from grpo_gsm8k.loops.ratio_causes import (
    Cause,
    Evidence,
    GateTokenizer,
    Probe,
    SampledTurn,
    mean_abs,
    try_dtype,
    try_stale_weights,
    try_temperature,
    try_template,
    try_truncation,
)
from grpo_gsm8k.loops.ratio_retokenised import try_retokenisation
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Rollout, Sampling

log = logging.getLogger("grpo_gsm8k")

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05
FULL = ("float32", "float64")
NUM_TURNS = 8

# Stale weights come last: testing them changes the engine.
CAUSES: Mapping[str, Cause] = {
    "temperature": try_temperature,
    "top-p/top-k": try_truncation,
    "template or special tokens": try_template,
    "re-tokenisation": try_retokenisation,
    "dtype": try_dtype,
    "stale weights": try_stale_weights,
}


class RatioGate:
    """Sees the first update's log-probs before the weights change (`GrpoTask.check_ratio`)."""

    def __init__(
        self,
        *,
        learner: Learner,
        engine: Engine,
        sync: PolicySync,
        sampling: Sampling,
        tokenizer: GateTokenizer,
        tolerance: float | None,
        on_pass: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """`tolerance` is of the mean |Δ| in nats a token; None is 1e-3, or 0.05 where learner or engine are in half precision.

        `sampling` is what the rollouts were sampled with. `on_pass` is given the record of a gate that was passed.
        """
        self._learner, self._engine, self._sync = learner, engine, sync
        self._sampling, self._tokenizer, self._on_pass = sampling, tokenizer, on_pass
        dtypes = [str(part.describe().get("dtype")) for part in (learner, engine)]
        usual = TOLERANCE if all(dtype in FULL for dtype in dtypes) else HALF_TOLERANCE
        self.tolerance = usual if tolerance is None else tolerance

    def __call__(self, sequences: Sequence[TokenSequence], loss: PolicyLoss) -> None:
        """Lets the run go on, or says why not. Raises: ProofError."""
        self._judge(sequences, self._measure(sequences, loss))

    def check_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Does the same of rollouts that are not yet trained on (`GrpoTask.check_rollouts`). Raises: ProofError."""
        sequences = [sampled_sequence(rollout) for rollout in rollouts if rollout.num_sampled]
        if sequences:
            self._judge(sequences, self._compare(sequences))

    def _judge(self, sequences: Sequence[TokenSequence], measured: Mapping[str, float]) -> None:
        if measured["mean_abs"] <= self.tolerance:
            self._on_pass(
                {
                    "tolerance": self.tolerance,
                    "num_sequences": len(sequences),
                    "num_tokens": sum(sequence.num_trained for sequence in sequences),
                    **measured,
                    "sampling": asdict(self._sampling),
                    "learner": dict(self._learner.describe()),
                    "engine": dict(self._engine.describe()),
                }
            )
            return
        raise ProofError(
            f"learner and engine are not the same policy before the first update: their log-probs of the sampled tokens differ "
            f"by {measured['mean_abs']:.2g} nats on average (at most {measured['max_abs']:.2g}; ratio_tolerance is "
            f"{self.tolerance:g}); {self._diagnose(sequences)}"
        )

    def _measure(self, sequences: Sequence[TokenSequence], loss: PolicyLoss) -> dict[str, float]:
        """Returns the statistics of the mismatch, without their prefix.

        The loss saw the learner's own log-probs where it is on-policy; otherwise its old log-probs are the engine's.
        """
        return _named(loss.diagnostics()) if loss.on_policy else self._compare(sequences)

    def _compare(self, sequences: Sequence[TokenSequence]) -> dict[str, float]:
        """Returns the same, of the learner's log-probs worked out now against the engine's."""
        learned = [value for values in self._learner.logprobs(sequences) for value in values]
        sampled = [value for sequence in sequences for value in _sampling_logprobs(sequence)]
        return _named(mismatch(learned, sampled).metrics())

    def _diagnose(self, sequences: Sequence[TokenSequence]) -> str:
        """Returns the likely cause, or which were tested in vain."""
        turns = worst_turns(self._learner, sequences, self.tolerance)
        if not turns:
            return "scored again they agree, so the learner's forward pass in training gives other values than outside of it"
        probe = Probe(self._learner, self._engine, self._sync, self._sampling, self._tokenizer, self.tolerance, turns)
        tested = [_try(name, cause, probe) for name, cause in CAUSES.items()]
        for evidence in tested:
            log.warning("ratio gate: %s: %s", evidence.cause, evidence.said)
        explaining = [evidence for evidence in tested if evidence.explains]
        if explaining:
            best = min(explaining, key=lambda evidence: evidence.after or 0.0)
            return (
                f"likely cause: {best.cause}: {best.said}, from {best.before:.2g} on the {len(turns)} turns that differ most; "
                f"{best.remedy}"
            )
        shown = "; ".join(f"{evidence.cause}: {evidence.said}" for evidence in tested)
        return f"no cause explains it; on the {len(turns)} turns that differ most |Δ| is {probe.before:.2g}, tested: {shown}"


def worst_turns(learner: Learner, sequences: Sequence[TokenSequence], tolerance: float) -> list[SampledTurn]:
    """Returns the few turns that learner and engine disagree about most, the worst first, none within the tolerance."""
    found = []
    for sequence, learned in zip(sequences, learner.logprobs(sequences), strict=True):
        own = iter(learned)
        for turn in turns_of(sequence):
            found.append((mean_abs([[next(own) - engine for engine in turn.logprobs]]), turn))
    found.sort(key=lambda pair: -pair[0])
    return [turn for gap, turn in found[:NUM_TURNS] if gap > tolerance]


def turns_of(sequence: TokenSequence) -> list[SampledTurn]:
    """Returns each run of trained tokens, with all that is before it."""
    ids, trained, logprobs = sequence.token_ids, sequence.trained, sequence.extras["sampling_logprob"]
    changes = [at for at in range(1, len(ids)) if trained[at] != trained[at - 1]]
    if trained[-1]:
        changes.append(len(ids))
    edges = zip(changes[::2], changes[1::2], strict=True)
    return [SampledTurn(ids[:start], ids[start:end], logprobs[start:end]) for start, end in edges]


def _sampling_logprobs(sequence: TokenSequence) -> list[float]:
    values = sequence.extras["sampling_logprob"]
    return [value for value, trained in zip(values, sequence.trained, strict=True) if trained]


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    prefix = "mismatch/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _try(name: str, cause: Cause, probe: Probe) -> Evidence:
    """A test that the learner or the engine refuses (a longer prompt than the window) says nothing, and says so."""
    try:
        return cause(probe)
    except HarnessError as error:
        return Evidence(name, f"not tested: {error}")
