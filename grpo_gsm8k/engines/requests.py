"""What every engine checks of a request before it samples anything."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_gsm8k.errors import InputError, PromptError
from grpo_gsm8k.types import Prompt, Sampling

SEED_LIMIT = 2**48


def check_sampling(sampling: Sampling) -> None:
    """Raises InputError when a sampling value is out of its range."""
    if not sampling.temperature >= 0:
        raise InputError(f"temperature is {sampling.temperature}; it must be 0 (greedy) or more")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p is {sampling.top_p}; it must be above 0 and at most 1")
    if sampling.top_k < 0:
        raise InputError(f"top_k is {sampling.top_k}; it must be 0 (off) or more")
    if sampling.max_tokens < 1:
        raise InputError(f"max_tokens is {sampling.max_tokens}; it must be 1 or more")
    if any(not stop for stop in sampling.stop):
        raise InputError("a stop string is empty; leave it out")


def check_request(
    prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], *, window: int | None, need_tokens: bool = True
) -> None:
    """Raises InputError when a request cannot be served at all; PromptError names the problem.

    `window`: how many tokens a prompt and its completion may have together (None: not known here).
    """
    check_sampling(sampling)
    if len(seeds) != len(prompts):
        raise InputError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt")
    for seed in seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise InputError(f"seed {seed} is out of range; it must be at least 0 and below 2**48")
    for prompt in prompts:
        length = len(prompt.token_ids)
        if need_tokens and length == 0:
            raise PromptError(f"problem {prompt.problem_id!r}: its prompt has no tokens")
        if window is not None and length + sampling.max_tokens > window:
            raise PromptError(
                f"problem {prompt.problem_id!r}: {length} prompt tokens and max_tokens {sampling.max_tokens} do not fit "
                f"the model's window of {window}; shorten the prompt or use max_tokens {max(window - length, 0)} or less"
            )
