"""How far the trainer's log-probs are from the engine's, for the same sampled tokens. Shapes: N tokens, natural logs.

Were trainer and engine the same function, every difference would be 0. Δ = trainer - engine; the engine drew the tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from grpo_gsm8k.errors import ProofError


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Statistics of Δ over tokens, in nats, but for the last.

    `mean_abs`, `p99_abs` (the 99th percentile, interpolated) and `max_abs` of |Δ|; `kl`, the k3 estimate E[exp(Δ) - 1 - Δ] of
    KL(engine‖trainer); `effective_sample_size`, (Σ w)² / (N Σ w²) with w = exp(Δ), the share of the tokens that importance
    weights leave: 1 where the two agree, 1/N where a single token has all the weight.
    """

    mean_abs: float
    p99_abs: float
    max_abs: float
    kl: float
    effective_sample_size: float

    def metrics(self) -> dict[str, float]:
        """Returns the statistics as metrics, "mismatch/mean_abs" and so on."""
        return {f"mismatch/{name}": value for name, value in asdict(self).items()}


def mismatch(trainer_N: npt.ArrayLike, engine_N: npt.ArrayLike) -> Mismatch:
    """Returns the statistics of two log-probs a token. Raises: ProofError for none, for unlike lengths or one not finite."""
    trainer, engine = np.asarray(trainer_N, dtype=np.float64), np.asarray(engine_N, dtype=np.float64)
    if trainer.shape != engine.shape or trainer.ndim != 1 or trainer.size == 0:
        raise ProofError(
            f"log-probs of shapes {trainer.shape} and {engine.shape} cannot be compared; one a token of each is needed"
        )
    delta = trainer - engine
    if not np.isfinite(delta).all():
        at = int(np.flatnonzero(~np.isfinite(delta))[0])
        raise ProofError(f"token {at} has the log-probs {trainer[at]} (trainer) and {engine[at]} (engine); both must be finite")
    size = np.abs(delta)
    scaled = np.exp(delta - delta.max())  # the share does not change when all weights are scaled, and none overflows
    with np.errstate(over="ignore"):
        kl = float(np.mean(np.expm1(delta) - delta))
    share = float(scaled.sum() ** 2 / (delta.size * np.square(scaled).sum()))
    return Mismatch(float(size.mean()), float(np.quantile(size, 0.99)), float(size.max()), kl, share)
