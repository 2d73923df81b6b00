"""Options of the native learner. No torch here, so that a config can be checked without it."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_gsm8k.errors import ConfigError, unknown_name

DTYPES = ("float32", "bfloat16")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class AdamWOptions:
    """AdamW without the learning rate, which each step is given. `weight_decay` is decoupled and applies to matrices only."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Low-rank adapters (peft). `target_modules` are module names, or `all-linear` (all but the head).

    `dropout` draws its noise micro-batch by micro-batch (a shared prefix is given one), so with it the split into micro-batches
    does change the result.
    """

    rank: int
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora_rank {self.rank} is no rank; give a whole number of at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora_dropout {self.dropout} is no probability; give a number from 0 to below 1")
        if not self.target_modules:
            raise ConfigError(f"lora_target_modules is empty; name modules, or {ALL_LINEAR}")


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """How the native learner trains.

    `dtype`: "float32"; "bfloat16" (weights and arithmetic in bf16, as engines sample, with float32 master weights and gradient
    sums); None leaves the model as it came. `tokens_per_microbatch` bounds activation memory and never changes the result; a
    longer sequence is a micro-batch of its own. `share_prefixes` computes the untrained tokens that sequences of a micro-batch
    begin with in common once (on a CPU; elsewhere it is ignored). `max_grad_norm` None is no clipping. `temperature` divides
    the logits, as it did when the tokens were sampled. `entropy` adds the metric `entropy`: the mean over trained tokens of the
    entropy of the predicted distribution, in nats. `keep_reference` keeps a frozen copy of the first weights (an adapter needs
    none: it is switched off instead).
    """

    dtype: str | None = None
    adamw: AdamWOptions = AdamWOptions()
    max_grad_norm: float | None = None
    gradient_checkpointing: bool = False
    tokens_per_microbatch: int = 4096
    lora: LoraOptions | None = None
    entropy: bool = False
    temperature: float = 1.0
    share_prefixes: bool = True
    keep_reference: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(unknown_name("dtype", self.dtype, DTYPES))
        if self.tokens_per_microbatch < 1:
            raise ConfigError(f"tokens_per_microbatch {self.tokens_per_microbatch} holds nothing; give at least 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ConfigError(f"max_grad_norm {self.max_grad_norm} is no norm; give a number above 0, or none for no clipping")
        if not self.temperature > 0:
            raise ConfigError(f"temperature {self.temperature} divides no logits; give a number above 0")
