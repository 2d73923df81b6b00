"""The policy-gradient loss of one update, for every algorithm, as a learner takes it: on the trained tokens' log-probs.

Shapes: N trained tokens of a micro-batch, or of a part of one. Log-probs are natural; everything is computed in float64.
The tokens come with the extras that `rollout_sequences.build_sequences` gave them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grpo_gsm8k.algorithms.algorithm import Algorithm
from grpo_gsm8k.algorithms.kl import kl_terms
from grpo_gsm8k.algorithms.mismatch import mismatch
from grpo_gsm8k.algorithms.packing import PackedBatch
from grpo_gsm8k.algorithms.policy_gradient import clipped_surrogate
from grpo_gsm8k.errors import ConfigError, ProofError, unknown_name

CORRECTIONS = ("none", "token", "sequence")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one call saw, detached, (N) each; `reference_kl_N` only where there is a reference."""

    old_N: torch.Tensor
    sampling_N: torch.Tensor
    delta_N: torch.Tensor
    ratio_N: torch.Tensor
    is_low_N: torch.Tensor
    is_high_N: torch.Tensor
    correction_N: torch.Tensor
    reference_kl_N: torch.Tensor | None


class PolicyLoss:
    """The loss of `algorithm`, for one update; it also gathers `diagnostics` of all it was called with.

    `on_policy`: this is the first update on these rollouts, so the old policy is the learner as it is, and each ratio is
    exactly 1 in value and has the gradient of the log-prob; otherwise the extra "old_logprob" is the old policy. `correction`:
    truncated importance sampling, each token's term times min(exp(old - sampling), cap), "token" by token or for the
    "sequence" the product over its tokens; a constant to the gradient. kl_beta above 0 needs the extra "reference_logprob".
    Raises: ConfigError for an unknown correction or a cap that is not above 0.
    Source: the algorithm's own file; the correction, Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training (2025).
    """

    def __init__(self, algorithm: Algorithm, *, on_policy: bool, correction: str = "none", cap: float = 2.0) -> None:
        if correction not in CORRECTIONS:
            raise ConfigError(unknown_name("correction", correction, CORRECTIONS))
        if not cap > 0:
            raise ConfigError(f"correction_cap is {cap}; a number above 0 is needed")
        self.algorithm = algorithm
        self.on_policy = on_policy
        self.correction = correction
        self.cap = cap
        # On-policy, a sequence's ratio has the gradient of its mean log-prob, which weights that are the same for all its
        # tokens (as they are without a correction token by token) make a sum over tokens again.
        self._by_token = algorithm.ratio == "token" or (on_policy and correction == "none")
        self._seen: list[_Seen] = []

    @property
    def separable(self) -> bool:
        """Whether the loss is a sum over tokens of functions of each one's log-prob; otherwise it needs whole sequences."""
        return self._by_token and self.correction != "sequence"

    def __call__(self, logprobs_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns the scalar loss, float64. Raises: ProofError when an extra is missing."""
        logprobs_N = logprobs_N.double()
        advantages_N, weights_N = _extra(batch, "advantage"), _extra(batch, "weight")
        sampling_N = _extra(batch, "sampling_logprob")
        old_N = logprobs_N.detach() if self.on_policy else _extra(batch, "old_logprob")
        log_ratio_N = logprobs_N - old_N
        ratio_N = torch.exp(log_ratio_N if self._by_token else sequence_mean(log_ratio_N, batch.sequence_index_N))
        terms_N, is_low_N, is_high_N = self._objective(logprobs_N, ratio_N, advantages_N)
        correction_N = self._correction(old_N - sampling_N, batch)
        terms_N = terms_N * correction_N
        reference_kl_N = None
        if self.algorithm.kl_beta > 0:
            reference_kl_N = kl_terms(logprobs_N, _extra(batch, "reference_logprob"), self.algorithm.kl_estimator)
            terms_N = terms_N + self.algorithm.kl_beta * reference_kl_N
        self._seen.append(
            _Seen(
                old_N=old_N,
                sampling_N=sampling_N,
                delta_N=log_ratio_N.detach(),
                ratio_N=ratio_N.detach(),
                is_low_N=is_low_N,
                is_high_N=is_high_N,
                correction_N=correction_N,
                reference_kl_N=None if reference_kl_N is None else reference_kl_N.detach(),
            )
        )
        return (weights_N * terms_N).sum()

    def entropy_weights(self, batch: PackedBatch) -> torch.Tensor | None:
        """Returns (N), -entropy_coef · weight: the loss falls by that much entropy; None where the bonus is off."""
        if self.algorithm.entropy_coef == 0:
            return None
        return -self.algorithm.entropy_coef * _extra(batch, "weight")

    def diagnostics(self) -> dict[str, float]:
        """Returns metrics over the tokens of all calls since the loss was made.

        "policy/ratio_mean", "policy/ratio_max"; "policy/clip_low_fraction" and "policy/clip_high_fraction", shares of tokens
        whose ratio was beyond the bound and cut (absent for REINFORCE); "policy/kl" and "policy/kl_k1", estimates k3 and k1 of
        KL(old‖new); "policy/kl_reference" by the algorithm's own estimator; "mismatch/…" of the old policy against the engine;
        "correction/mean" (weight) and "correction/capped_fraction" where there is a correction. KLs in nats a token.
        Raises: ProofError when the loss was never called.
        """
        if not self._seen:
            raise ProofError("the loss was never called, so there is nothing to diagnose")
        ratio_N = self._all("ratio_N")
        log_ratio_N = self._all("delta_N")
        found = {"policy/ratio_mean": ratio_N.mean(), "policy/ratio_max": ratio_N.max()}
        if self.algorithm.objective != "reinforce":
            found["policy/clip_low_fraction"] = self._all("is_low_N").double().mean()
            found["policy/clip_high_fraction"] = self._all("is_high_N").double().mean()
        found["policy/kl"] = (torch.expm1(log_ratio_N) - log_ratio_N).mean()
        found["policy/kl_k1"] = -log_ratio_N.mean() + 0.0
        if self.algorithm.kl_beta > 0:
            found["policy/kl_reference"] = self._all("reference_kl_N").mean()
        if self.correction != "none":
            correction_N = self._all("correction_N")
            found["correction/mean"] = correction_N.mean()
            found["correction/capped_fraction"] = (correction_N >= self.cap).double().mean()
        metrics = {name: value.item() for name, value in found.items()}
        return metrics | mismatch(self._all("old_N").cpu().numpy(), self._all("sampling_N").cpu().numpy()).metrics()

    def _objective(
        self, logprobs_N: torch.Tensor, ratio_N: torch.Tensor, advantages_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns each token's term, and whether its ratio was cut at the lower and at the upper bound."""
        low, high = self.algorithm.clip_low, self.algorithm.clip_high
        if low is None or high is None:  # REINFORCE
            nowhere_N = torch.zeros_like(advantages_N, dtype=torch.bool)
            return -advantages_N * logprobs_N, nowhere_N, nowhere_N
        if self.algorithm.objective == "clip":
            terms_N, is_cut_N = clipped_surrogate(ratio_N, advantages_N, low, high)
            return terms_N, is_cut_N & (advantages_N < 0), is_cut_N & (advantages_N > 0)
        weight_N = ratio_N.detach()
        terms_N = -weight_N.clamp(1 - low, 1 + high) * advantages_N * logprobs_N
        return terms_N, weight_N < 1 - low, weight_N > 1 + high

    def _correction(self, delta_N: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        if self.correction == "none":
            return torch.ones_like(delta_N)
        if self.correction == "sequence":
            delta_N = _sequence_sum(delta_N, batch.sequence_index_N)
        return torch.exp(delta_N).clamp(max=self.cap)

    def _all(self, name: str) -> torch.Tensor:
        return torch.cat([getattr(seen, name) for seen in self._seen])


def sequence_mean(values_N: torch.Tensor, sequence_index_N: torch.Tensor) -> torch.Tensor:
    """Returns (N), at each token the mean over its sequence's tokens."""
    return _sequence_sum(values_N, sequence_index_N) / _sequence_sum(torch.ones_like(values_N), sequence_index_N)


def _sequence_sum(values_N: torch.Tensor, sequence_index_N: torch.Tensor) -> torch.Tensor:
    sums = values_N.new_zeros(int(sequence_index_N.max()) + 1)
    return sums.index_add(0, sequence_index_N, values_N)[sequence_index_N]


def _extra(batch: PackedBatch, name: str) -> torch.Tensor:
    if name not in batch.extras:
        raise ProofError(
            f"the sequences have no {name!r} (they have {', '.join(sorted(batch.extras)) or 'nothing'}); the loss needs it"
        )
    return batch.extras[name].double()
