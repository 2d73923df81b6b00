"""Whether training data hold the prompts of an eval set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Prompt


def overlapping(sequences: Iterable[TokenSequence], prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    """Returns (training id, eval problem id) for each example whose tokens before the first trained one are an eval prompt's.

    The comparison is of token ids, so it finds the same rendering of the same question; near-duplicates it does not find.
    """
    evaluated = {prompt.token_ids: prompt.problem_id for prompt in prompts}
    found = []
    for sequence in sequences:
        prefix = sequence.token_ids[: sequence.trained.index(True)]
        if prefix in evaluated:
            found.append((sequence.id, evaluated[prefix]))
    return found
