"""The sampling seam: what every engine does, whatever library or server is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.types import Completion, Prompt, Sampling

OnCompletion = Callable[[int, Completion], None]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A config that needs what is missing is refused before anything starts.

    `logprobs`: gives log-probs of the sampled tokens. `weight_updates`: takes new weights while running.
    `per_request_seeds`: honours a seed for each request. `token_ids`: takes and gives token ids (not just text).
    `repeats`: sampling the same batch again gives the same bits (on a CPU, or in strict mode); a server gives no such promise.
    `batch_size`: how many requests one `generate` call should carry.
    """

    logprobs: bool
    weight_updates: bool
    per_request_seeds: bool
    token_ids: bool
    repeats: bool
    batch_size: int


class Engine(Protocol):
    """Samples completions. Tokens in, tokens out."""

    @property
    def name(self) -> str:
        """The engine's registered name."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Returns one completion a prompt, in the order of `prompts`.

        `seeds` (one a prompt, 0 ≤ seed < 2**48) address the randomness: the same prompt with the same seed gives the same
        tokens. Several samples of one problem are the prompt repeated with several seeds. `on_completion(index, completion)`
        is called as each finishes, in any order, in the calling thread.
        Raises: EngineError when the engine or its server fails; InputError when a request cannot be served at all.
        """
        ...

    def load_weights(self, path: Path, version: int) -> None:
        """Takes the weights in `path` (a Hugging Face folder) and calls them `version`; any cached prefix is dropped."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Returns what was really got: library version, device, dtype, parallelism (goes into the run directory)."""
        ...

    def close(self) -> None:
        """Frees what the engine holds; safe to call twice."""
        ...


def require(engine: Engine, **needs: bool) -> None:
    """Refuses an engine without a capability that is needed (`require(engine, logprobs=True)`). Raises: ConfigError."""
    for name, needed in needs.items():
        if needed and not getattr(engine.capabilities, name):
            raise ConfigError(
                f"engine {engine.name} cannot do what this run needs: {name.replace('_', ' ')}; choose another engine"
            )
