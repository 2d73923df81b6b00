"""An engine that says what it is told to: a real part that ships, for tests and for trying a loop without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from grpo_gsm8k.engines.protocol import Capabilities, OnCompletion
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.errors import EngineError
from grpo_gsm8k.types import Completion, Prompt, Sampling, StopReason

Script = Callable[[Prompt, int], Completion]
Texts = Mapping[str, str | Sequence[str]]


class TextTokenizer(Protocol):
    """What of a tokenizer the scripted engine needs."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of `text`."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Returns the text of `token_ids`."""
        ...


class ScriptedEngine:
    """Gives the completions of a script.

    The script is a function of (prompt, seed), or texts by problem id: one, or several of which the seed picks (seed modulo
    their number). Texts are encoded by `tokenizer` and end in its end-of-sequence token; `max_tokens` and stop strings cut them
    as they would a model's. Without a tokenizer, texts are given as texts, with no token ids. The log-probs of texts are 0:
    the script was sure.
    """

    def __init__(self, script: Script | Texts, tokenizer: TextTokenizer | None = None) -> None:
        self._script = script
        self._tokenizer = tokenizer
        self._weights_version: int | None = None
        self._calls = 0

    @property
    def name(self) -> str:
        """The engine's registered name."""
        return "scripted"

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        tokens = self._tokenizer is not None or callable(self._script)
        return Capabilities(
            logprobs=tokens,
            weight_updates=True,
            per_request_seeds=True,
            token_ids=tokens,
            repeats=True,
            batch_size=64,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Returns the script's completion of each prompt. Raises: EngineError for a problem that the script does not hold."""
        check_request(prompts, sampling, seeds, window=None, need_tokens=False)
        done: list[Completion] = []
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if callable(self._script):
                completion = self._script(prompt, seed)
            else:
                completion = self._complete(self._text(self._script, prompt, seed), sampling)
            self._calls += 1
            done.append(completion)
            if on_completion is not None:
                on_completion(index, completion)
        return done

    def load_weights(self, path: Path, version: int) -> None:
        """Notes the version: a script has no weights to change. Raises: EngineError when there is no such folder."""
        if not path.is_dir():
            raise EngineError(f"no weights folder {str(path)!r}")
        self._weights_version = version

    def describe(self) -> Mapping[str, Any]:
        """Returns what was really got."""
        return {"engine": self.name, "completions_given": self._calls, "weights_version": self._weights_version}

    def close(self) -> None:
        """Holds nothing to free."""

    @staticmethod
    def _text(texts: Texts, prompt: Prompt, seed: int) -> str:
        if prompt.problem_id not in texts:
            raise EngineError(f"the script has no completion for problem {prompt.problem_id!r}")
        found = texts[prompt.problem_id]
        return found if isinstance(found, str) else found[seed % len(found)]

    def _complete(self, text: str, sampling: Sampling) -> Completion:
        if self._tokenizer is None:
            ends = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
            return Completion((), None, "stop" if ends else "eos", text[: min(ends)] if ends else text)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        reason: StopReason = "eos"
        for count in range(1, len(ids) + 1):
            so_far = self._tokenizer.decode(ids[:count]) if sampling.stop else ""
            if any(stop in so_far for stop in sampling.stop):
                ids, reason = ids[:count], "stop"
                break
        if reason == "eos" and self._tokenizer.eos_token_id is not None:
            ids = [*ids, self._tokenizer.eos_token_id]
        if len(ids) > sampling.max_tokens:
            ids, reason = ids[: sampling.max_tokens], "length"
        return Completion(tuple(ids), (0.0,) * len(ids), reason)
