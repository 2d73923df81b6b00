"""POST requests to a server that may be slow, busy or broken: paced, retried with back-off, and ended with its own reason."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from grpo_gsm8k.errors import EngineError

RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx
BACKOFF_BASE_S = 0.5
BACKOFF_LIMIT_S = 30.0
LONGEST_RETRY_AFTER_S = 120.0


Fault = Callable[[dict[str, Any]], str | None]  # says what is broken in an answer, or None


class Refusal(Exception):
    """The server will not serve this request, however often it is asked."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.reason = reason


class _Passing(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Pace:
    """When the next request may start: `requests_per_minute` apart (None: at once), and not before a server's Retry-After."""

    requests_per_minute: float | None = None
    _next_s: float = field(default=0.0, init=False)
    _not_before_s: float = field(default=0.0, init=False)

    def hold(self, seconds: float) -> None:
        """Starts no request for `seconds`."""
        self._not_before_s = max(self._not_before_s, time.monotonic() + seconds)

    async def turn(self) -> None:
        """Returns when this request may start."""
        slot_s = max(self._next_s, time.monotonic())
        if self.requests_per_minute is not None:
            self._next_s = slot_s + 60.0 / self.requests_per_minute
        while (wait_s := max(slot_s, self._not_before_s) - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)


@dataclass(slots=True)
class Sender:
    """Sends JSON to one server. `secret` is never shown, even where the server repeats it."""

    timeout_s: float
    max_retries: int
    pace: Pace
    secret: str | None = None
    num_requests: int = 0
    num_retries: int = 0
    # Its own generator: back-off must not consume the run's seeded randomness.
    _jitter: random.Random = field(default_factory=random.Random, init=False)

    async def post(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], fault: Fault | None = None
    ) -> dict[str, Any]:
        """Returns the server's JSON object; one in which `fault` finds something broken is asked for again.

        Raises: Refusal for an answer that will not change; EngineError when every retry failed.
        """
        for attempt in range(self.max_retries + 1):
            try:
                answer = await self._post_once(client, path, body)
                if fault is not None and (broken := fault(answer)) is not None:
                    raise _Passing(broken)
                return answer
            except _Passing as failure:
                if attempt == self.max_retries:
                    raise EngineError(f"{client.base_url.host}: {failure} ({attempt + 1} attempts)") from failure
                self.num_retries += 1
                await asyncio.sleep(self._delay_s(attempt, failure.retry_after_s))
        raise AssertionError("the last attempt returns or raises")

    async def _post_once(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
        await self.pace.turn()
        self.num_requests += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await client.post(path, json=body)
        except TimeoutError:
            raise _Passing(f"no answer within {self.timeout_s:g} s") from None
        except httpx.ConnectError as error:
            raise _Passing(f"cannot connect to {_place(client)}: {self._clean(str(error))}; is the server up?") from error
        except httpx.TransportError as error:
            raise _Passing(f"the connection failed: {self._clean(str(error)) or type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise EngineError(f"the server's address cannot be used: {error}") from error
        if response.is_success:
            try:
                answer = response.json()
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise _Passing("the server's answer is not whole JSON") from error
            if not isinstance(answer, dict):
                raise _Passing("the server's answer is not a JSON object")
            return answer
        reason = self._clean(server_reason(response))
        if not _may_pass(response.status_code, reason, response.text):
            raise Refusal(response.status_code, reason)
        retry_after_s = read_retry_after(response.headers.get("retry-after"))
        if retry_after_s is not None and retry_after_s > LONGEST_RETRY_AFTER_S:
            raise EngineError(f"HTTP {response.status_code}: the server asks to wait {retry_after_s:.0f} s; try then: {reason}")
        raise _Passing(f"HTTP {response.status_code}: {reason}", retry_after_s)

    def _delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Exponential back-off with full jitter, on top of what the server asked for (which holds every request back)."""
        jittered = self._jitter.uniform(0, min(BACKOFF_LIMIT_S, BACKOFF_BASE_S * 2**attempt))
        if retry_after_s is None:
            return jittered
        self.pace.hold(retry_after_s)
        return retry_after_s + min(jittered, 1.0)

    def _clean(self, text: str) -> str:
        if self.secret:
            text = text.replace(self.secret, "[redacted]")
        text = " ".join(text.split())
        return text if len(text) <= 300 else text[:299] + "…"


def read_retry_after(value: str | None) -> float | None:
    """Returns the seconds that a Retry-After header asks for (a number or an HTTP date), or None."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if seconds == seconds else None


def server_reason(response: httpx.Response) -> str:
    """Returns why the server says it failed, from the shapes of error that servers use."""
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return response.text[:300] or response.reason_phrase
    for key in ("error", "message", "detail"):
        found = body.get(key) if isinstance(body, dict) else None
        if isinstance(found, dict):
            found = found.get("message")
        if found:
            return str(found)
    return json.dumps(body)[:300]


def _may_pass(status: int, reason: str, text: str) -> bool:
    if status == 429:  # an exhausted quota is reported as a rate limit, but waiting does not help
        return "insufficient_quota" not in text and "insufficient_quota" not in reason
    return status in RETRIED or status >= 500


def _place(client: httpx.AsyncClient) -> str:
    return str(client.base_url.copy_with(userinfo=b""))
