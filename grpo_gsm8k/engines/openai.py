"""The engine over any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted API …).

What differs between servers is asked at the start with one request of one token: whether the server takes vLLM's extra
parameters, and whether it gives token ids back. Text is never re-encoded: without token ids a completion has text alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx

from grpo_gsm8k.engines.http_requests import Pace, Refusal, Sender
from grpo_gsm8k.engines.protocol import Capabilities, OnCompletion
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.errors import ConfigError, EngineError, HarnessError, InputError, PromptError, unknown_name
from grpo_gsm8k.types import Completion, Prompt, Sampling, StopReason

T = TypeVar("T")

APIS = ("chat", "completions")
KEY_VARIABLE = "OPENAI_API_KEY"
_PATHS = {"chat": "chat/completions", "completions": "completions"}
_PROBE_RETRIES = 1
# A server may take sampling defaults from the model's folder (Qwen2.5 sets a repetition penalty): they are put back to neutral.
_NEUTRAL = {"repetition_penalty": 1.0, "min_p": 0.0}


class OpenAIEngine:
    """Samples from an OpenAI-compatible server, many requests at a time.

    `completions` sends the prompt's token ids (its text where it has none); `chat` sends its messages, and the server applies
    its own template. The key is read from the environment variable OPENAI_API_KEY alone and is never shown.

    `logprobs_mode` is what the server gives: "raw" (vLLM's default, OpenAI) means before temperature, top-p and top-k, so that
    log-probs are passed on only where that is the distribution sampled from (greedy, or temperature 1, top-p and top-k off);
    "processed" (vLLM with --logprobs-mode processed_logprobs) passes them on always.

    A server without `stop_reason` (vLLM's) does not tell a stop string from the model's own end: then a completion counts as
    stopped by a string when its text ends in one, and as ended by the model otherwise.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api: Literal["completions", "chat"] = "completions",
        concurrency: int = 32,
        max_retries: int = 6,
        timeout_s: float = 600.0,
        requests_per_minute: float | None = None,
        logprobs_mode: Literal["raw", "processed"] = "raw",
    ) -> None:
        """Raises: ConfigError for a wrong option; EngineError or InputError when the server refuses one small request."""
        if api not in APIS:
            raise ConfigError(unknown_name("api", api, APIS))
        if logprobs_mode not in ("raw", "processed"):
            raise ConfigError(unknown_name("logprobs_mode", logprobs_mode, ("raw", "processed")))
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url {base_url!r} is no address; it must start with http:// or https://")
        if concurrency < 1 or max_retries < 0 or timeout_s <= 0:
            raise ConfigError("concurrency must be 1 or more, max_retries 0 or more, timeout_s above 0")
        if requests_per_minute is not None and not requests_per_minute > 0:
            raise ConfigError(f"requests_per_minute is {requests_per_minute}; it must be above 0, or left out")
        self._base_url = httpx.URL(base_url.rstrip("/") + "/")
        self._model = model
        self._api = api
        self._concurrency = concurrency
        self._processed = logprobs_mode == "processed"
        key = os.environ.get(KEY_VARIABLE, "").strip() or None
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        # Made once: reading the certificates takes longer than a request. Plain http has nothing to verify.
        self._verify = httpx.create_ssl_context() if self._base_url.scheme == "https" else False
        self._sender = Sender(timeout_s, max_retries, Pace(requests_per_minute), secret=key)
        self._passed_logprobs = False
        self._extended, self._gives_token_ids = _run(self._probe())

    @property
    def name(self) -> str:
        """The engine's registered name."""
        return "openai"

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do with this server. `per_request_seeds`: the seed is sent; a server may still ignore it."""
        return Capabilities(
            logprobs=self._gives_token_ids,
            weight_updates=False,
            per_request_seeds=True,
            token_ids=self._gives_token_ids,
            repeats=False,
            batch_size=self._concurrency * 8,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Returns one completion a prompt, in order; at most `concurrency` requests run at a time.

        When a request fails for good the others are cancelled; what had finished was already given to `on_completion`.
        Raises: InputError (the server refuses a request), EngineError (key, quota, server down or broken after all retries).
        """
        check_request(prompts, sampling, seeds, window=None, need_tokens=False)
        if sampling.top_k and not self._extended:
            raise InputError(f"top_k is {sampling.top_k}, but the server takes no top_k; use 0 (off)")
        for prompt in prompts:
            if self._api == "chat" and not prompt.messages:
                raise PromptError(f"problem {prompt.problem_id!r}: no chat messages; use a chat template, or api completions")
            if self._api == "completions" and not prompt.token_ids and not prompt.text:
                raise PromptError(f"problem {prompt.problem_id!r}: its prompt has neither tokens nor text")
        return _run(self._generate(prompts, sampling, seeds, on_completion))

    def load_weights(self, path: Path, version: int) -> None:
        """Raises: EngineError: the server owns its weights."""
        raise EngineError(f"the openai engine cannot take weights (version {version}, {str(path)!r}); use transformers or vllm")

    def describe(self) -> Mapping[str, Any]:
        """Returns what was really got.

        `vllm_extensions`: the server does as vLLM's parameters ask (one that ignores them gives no token ids).
        `logprobs_mode` is null until a completion with log-probs was passed on.
        """
        return {
            "engine": self.name,
            "base_url": str(self._base_url.copy_with(userinfo=b"")),
            "model_id": self._model,
            "api": self._api,
            "concurrency": self._concurrency,
            "vllm_extensions": self._extended and self._gives_token_ids,
            "gives_token_ids": self._gives_token_ids,
            "logprobs_mode": ("processed" if self._processed else "raw") if self._passed_logprobs else None,
            "num_requests": self._sender.num_requests,
            "num_retries": self._sender.num_retries,
        }

    def close(self) -> None:
        """Holds nothing between calls."""

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        return httpx.AsyncClient(
            base_url=self._base_url, headers=self._headers, limits=limits, timeout=None, verify=self._verify
        )

    async def _probe(self) -> tuple[bool, bool]:
        """Returns whether the server takes vLLM's extra parameters, and whether it gives token ids."""
        prompt = Prompt("probe", (), "1", ({"role": "user", "content": "1"},))
        one = Sampling(temperature=0.0, max_tokens=1)
        usual = self._sender
        quick = Sender(usual.timeout_s, min(usual.max_retries, _PROBE_RETRIES), usual.pace, usual.secret)
        async with self._client() as client:
            for extended in (True, False):
                body = self._body(prompt, one, 0, extended)
                try:
                    answer = await quick.post(client, _PATHS[self._api], body)
                except Refusal as refusal:
                    if extended and refusal.status in (400, 422):
                        continue
                    raise self._explain(refusal, "a first small request") from refusal
                return extended, isinstance(_choice(answer).get("token_ids"), list)
        raise AssertionError("the second form of the request returns or raises")

    async def _generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int], on_completion: OnCompletion | None
    ) -> list[Completion]:
        done: list[Completion | None] = [None] * len(prompts)

        async def work(client: httpx.AsyncClient, waiting: Iterator[int]) -> None:
            for index in waiting:
                done[index] = completion = await self._complete(client, prompts[index], sampling, seeds[index])
                if on_completion is not None:
                    on_completion(index, completion)

        waiting = iter(range(len(prompts)))
        async with self._client() as client, asyncio.TaskGroup() as tasks:
            for _ in range(min(self._concurrency, len(prompts))):
                tasks.create_task(work(client, waiting))
        return [completion for completion in done if completion is not None]

    async def _complete(self, client: httpx.AsyncClient, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        try:
            body = self._body(prompt, sampling, seed, self._extended)
            answer = await self._sender.post(client, _PATHS[self._api], body, self._fault)
        except Refusal as refusal:
            raise self._explain(refusal, f"problem {prompt.problem_id!r}") from refusal
        try:
            return self._read(_choice(answer), sampling)
        except EngineError as error:
            raise EngineError(f"problem {prompt.problem_id!r}: {error}") from error

    def _body(self, prompt: Prompt, sampling: Sampling, seed: int, extended: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if self._api == "chat":
            body |= {"messages": [dict(message) for message in prompt.messages], "logprobs": True}
        else:
            body |= {"prompt": list(prompt.token_ids) or prompt.text, "logprobs": 1}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if extended:
            body |= {**_NEUTRAL, "top_k": sampling.top_k or -1, "return_token_ids": True, "include_stop_str_in_output": True}
            if self._api == "completions":
                body["add_special_tokens"] = False
        return body

    def _read(self, choice: Mapping[str, Any], sampling: Sampling) -> Completion:
        text = self._text(choice)
        assert isinstance(text, str)  # else `_fault` had it asked for again
        token_ids = tuple(choice.get("token_ids") or ())
        logprobs: tuple[float, ...] | None = None
        unchanged = sampling.temperature == 0 or (sampling.temperature, sampling.top_p, sampling.top_k) == (1, 1, 0)
        if token_ids and (self._processed or unchanged):
            logprobs = _read_logprobs(choice.get("logprobs"))
            if logprobs is not None and len(logprobs) != len(token_ids):
                raise EngineError(f"the server gave {len(token_ids)} tokens but {len(logprobs)} log-probs")
        self._passed_logprobs = self._passed_logprobs or logprobs is not None
        return Completion(token_ids, logprobs, _stop_reason(choice, text, sampling), text)

    def _text(self, choice: Mapping[str, Any]) -> Any:
        if self._api == "completions":
            return choice.get("text")
        message = choice.get("message")
        return message.get("content") if isinstance(message, dict) else None

    def _fault(self, answer: dict[str, Any]) -> str | None:
        """No text is not an empty text: a completion that is graded must have come from the model."""
        choice = _choice(answer)
        if isinstance(self._text(choice), str):
            return None
        where = "message.content" if self._api == "chat" else "text"
        message = choice.get("message")
        if isinstance(message, dict) and (message.get("reasoning_content") or message.get("reasoning")):
            return f"the server's answer has reasoning but no {where}; start the server without a reasoning parser"
        return f"the server's answer has no {where}"

    def _explain(self, refusal: Refusal, what: str) -> HarnessError:
        said = f"the server refused {what} (HTTP {refusal.status}): {refusal.reason}"
        if refusal.status == 401:
            return EngineError(f"{said}; set {KEY_VARIABLE} to a key that the server takes")
        return InputError(said) if refusal.status in (400, 404, 413, 422) else EngineError(said)


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineError("the server's answer holds no choices; is base_url that of an OpenAI-compatible API (…/v1)?")
    return choices[0]


def _read_logprobs(found: Any) -> tuple[float, ...] | None:
    """Returns the sampled tokens' log-probs from either API's shape, or None where there are none."""
    if not isinstance(found, dict):
        return None
    values = found.get("token_logprobs")
    if values is None and isinstance(found.get("content"), list):
        values = [token["logprob"] for token in found["content"]]
    return None if values is None else tuple(float(value) for value in values)


def _stop_reason(choice: Mapping[str, Any], text: str, sampling: Sampling) -> StopReason:
    finish = choice.get("finish_reason")
    if finish == "length":
        return "length"
    if finish != "stop":
        raise EngineError(f"the server ended a completion with finish_reason {finish!r}; only stop and length are whole")
    if "stop_reason" in choice:
        return "stop" if isinstance(choice["stop_reason"], str) else "eos"
    return "stop" if any(text.endswith(stop) for stop in sampling.stop) else "eos"


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs to the end in this thread; the first real failure comes out by itself, not in a group."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        coroutine.close()
        raise EngineError("the openai engine was called inside a running event loop; call it from a plain thread")
    try:
        return asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from first.__cause__
