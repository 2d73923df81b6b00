"""Reasoning traces of DeepSeek-R1, or of any OpenAI-compatible reasoning server, for a JSONL of problems.

    python grpo_gsm8k/r1_traces.py --infile artifacts/gsm8k/train.jsonl --outfile artifacts/deepseek_r1_gsm8k_traces.jsonl

One file that runs alone: Python and aiohttp are enough. The key is that of DEEPSEEK_API_KEY, and is never shown nor stored. An
answer becomes a line of the outfile when it comes; running again asks for what the outfile lacks (by problem id, sample index,
model and hash of the prompt). 408, 409, 425, 429, 5xx, timeouts, lost connections and answers that are not whole are retried;
401, 402, 403, 404 and an exhausted quota end the run, as do `STOP_AFTER` failures in a row. A repeated request has the same
`Idempotency-Key`, by which a server can charge it once; an answer that a server sends twice is never taken for the next one.
Exit codes: 0 all asked for, or stopped at the budget · 1 the server or the disk failed · 2 bad input · 128 + a signal's number.
"""

from __future__ import annotations

import sys

if vars().get("__package__") is None and not sys.flags.safe_path:
    del sys.path[0]  # run by path: this folder's types.py and tokenize.py would stand in for Python's own

import argparse
import asyncio
import fcntl
import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

try:
    import aiohttp
except ModuleNotFoundError:
    sys.exit("error: aiohttp is not installed: pip install aiohttp")

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
FATAL = frozenset({401, 402, 403, 404, *range(300, 400)})
WHOLE = frozenset({"stop", "length", "content_filter"})  # finish reasons after which an answer is not asked for again
STOP_AFTER = 8
BACKOFF_BASE_S, BACKOFF_LIMIT_S, LONGEST_RETRY_AFTER_S = 0.5, 60.0, 600.0
DRAIN_S = 60.0  # how long answers under way are waited for once the run is to stop
MAX_ANSWER_BYTES = 32 * 2**20
ASSUMED_TOKENS, ASSUMED_LATENCY_S = 800, 27.0  # of an answer, for the estimate before there is any


class Failure(Exception):
    """What went wrong, in one line. `kind`: "stop" ends the run, "skip" this trace alone, "retry" may pass.

    `charged`: an answer was lost that the server may have charged for.
    """

    def __init__(self, line: str, kind: str = "stop", exit_code: int = 1, charged: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(line)
        self.kind, self.exit_code, self.charged, self.wait_s = kind, exit_code, charged, wait_s


def _option(default: Any, help: str, min: float | None = None, max: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": (), "min": min, "max": max})


@dataclass(frozen=True)
class TraceOptions:
    """Every option, written once: a flag here and of `grpo-gsm8k traces generate`."""

    infile: str = _option("artifacts/gsm8k/train.jsonl", "JSONL of problems: question, and gold or answer (… #### 72), a line.")
    outfile: str = _option("artifacts/deepseek_r1_gsm8k_traces.jsonl", "JSONL of traces, appended to; what it holds is done.")
    model: str = _option("deepseek-reasoner", "Model, as the server calls it.")
    base_url: str = _option("https://api.deepseek.com", "The server's address (a local vLLM: http://127.0.0.1:8000/v1).")
    limit: int | None = _option(None, "The first N problems only.", 1)
    samples_per_prompt: int = _option(1, "Traces of each problem.", 1)
    temperature: float = _option(0.6, "Sampling temperature; DeepSeek's own reasoner does not heed it.", 0.0, 2.0)
    max_tokens: int = _option(2048, "Longest answer, reasoning included.", 1)
    concurrency: int = _option(4, "Requests under way at a time.", 1)
    max_retries: int = _option(5, "Further attempts at a request that failed in a way that may pass.", 0)
    timeout_s: float = _option(600.0, "Longest wait for one answer, from its request to its last byte.", 0.001)
    price_in: float = _option(0.55, "USD a million prompt tokens (DeepSeek-R1's list price; see your provider's).", 0.0)
    price_cached: float = _option(0.14, "USD a million prompt tokens that the server had cached.", 0.0)
    price_out: float = _option(2.19, "USD a million completion tokens, reasoning included.", 0.0)
    offpeak: float = _option(1.0, "Price factor in the off-peak window, 16:30 to 00:30 UTC; DeepSeek-R1's was 0.25.", 0.0)
    budget_usd: float | None = _option(None, "Stop when the outfile's traces, earlier runs' too, have cost this.", 0.0)


class Problem(NamedTuple):
    """One problem to ask."""

    id: str
    question: str
    gold: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat: one user message and no system message, as DeepSeek advises for R1."""
        return [{"role": "user", "content": f"{self.question}\n\n{INSTRUCTION}"}]


def read_problems(path: Path, limit: int | None = None) -> Iterator[Problem]:
    """Yields the problems of a JSONL, one line in memory at a time. Raises: Failure naming path and line.

    The gold is `gold`, else what follows the last `####` of `answer`; a missing id is `<file name>/<index>-<hash>`.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as file:  # a binary file's lines end at "\n" and nowhere else
            for index, line in enumerate(file):
                if limit is not None and index >= limit:
                    return
                try:
                    problem = _read_problem(json.loads(line), f"{path.stem}/{index:05d}")
                    if problem.id in seen:
                        raise ValueError(f"the id {problem.id!r} was given to an earlier line too; ids are unique")
                except json.JSONDecodeError:
                    raise Failure(f"{path}:{index + 1}: not JSON; one JSON object a line is needed", exit_code=2) from None
                except ValueError as error:
                    raise Failure(f"{path}:{index + 1}: {error}", exit_code=2) from None
                seen.add(problem.id)
                yield problem
    except OSError as error:
        raise Failure(f"{path}: cannot be read ({error.strerror or error})", exit_code=2) from None
    if not seen:
        raise Failure(f"{path}: the file is empty; one JSON object a line is needed", exit_code=2)


def _read_problem(row: Any, made_id: str) -> Problem:
    question = row.get("question") if isinstance(row, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise ValueError("no 'question'; text is needed")
    gold = row.get("gold")
    if gold is None:
        _, mark, tail = str(row.get("answer", "")).rpartition("####")
        gold = tail.strip().replace(",", "").removeprefix("$") if mark else ""
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or not str(gold).strip():
        raise ValueError("no gold; give 'gold', or an 'answer' that ends with '#### <number>'")
    own = hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()[:8]
    return Problem(str(row.get("id") or f"{made_id}-{own}"), question, str(gold))


class TraceFile:
    """The outfile, held by one process at a time; a torn last line, left by a killed one, is repaired on opening.

    Of each trace only a short digest stays in memory. Raises: Failure.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.keys = path, set[bytes]()
        self.spent_usd = self.dearest_usd = self.latency_s = 0.0
        self.num_tokens = self.num_completion_tokens = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            raise Failure(f"{path}: another process is writing it; wait for it, or give another outfile", exit_code=2) from None
        except OSError as error:
            raise Failure(f"{path}: {error.strerror or error}") from None

    def _read(self) -> None:
        whole_bytes, rest = 0, b""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    self._count(json.loads(line))
                    whole_bytes += len(line)
                    rest = b"" if line.endswith(b"\n") else b"\n"  # where only the end of the last line was lost
                except (ValueError, LookupError, TypeError, AttributeError):
                    if line.endswith(b"\n"):
                        raise Failure(
                            f"{self.path}:{number}: not a trace; mend it, or give another outfile", exit_code=2
                        ) from None
        self._file.truncate(whole_bytes)
        self._file.write(rest)

    @staticmethod
    def key(*parts: object) -> bytes:
        """Returns what a trace is known by: the digest of problem id, sample index, model and hash of the prompt."""
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).digest()

    def _count(self, record: dict[str, Any]) -> None:
        key = self.key(record["id"], record["sample_index"], record["model"], record["prompt_sha256"])
        usage, cost_usd = record["usage"] or {}, float(record["cost_usd"])
        self.latency_s += float(record["latency_s"])
        self.keys.add(key)
        self.spent_usd, self.dearest_usd = self.spent_usd + cost_usd, max(self.dearest_usd, cost_usd)
        self.num_completion_tokens += usage.get("completion_tokens", 0)
        self.num_tokens += usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)

    def append(self, record: dict[str, Any], secret: str) -> None:
        """Appends one line; on a full disk the file is cut back to its last whole line. Raises: Failure."""
        content = memoryview((without(json.dumps(record), secret) + "\n").encode())
        size = os.fstat(self._file.fileno()).st_size
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            self._file.truncate(size)
            raise Failure(f"{self.path}: {error.strerror or error}; free some space") from None
        self._count(record)

    def close(self) -> None:
        """Closes the file; what was appended is on disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def without(text: str, secret: str) -> str:
    """Returns text without the key, should a server repeat it (a key of a few letters is no secret, and would be a word)."""
    return text.replace(secret, "[redacted]") if len(secret) >= 8 else text


def is_offpeak(at: datetime) -> bool:
    """Returns whether a time (UTC) is in DeepSeek's off-peak window, 16:30 to 00:30."""
    return not (0, 30) <= (at.hour, at.minute) < (16, 30)


def price_usd(options: TraceOptions, usage: dict[str, int], at: datetime) -> float:
    """Returns what an answer costs that ended at `at` (UTC), which is when DeepSeek sets its price."""
    cached = usage["cached_tokens"]
    usd = (usage["prompt_tokens"] - cached) * options.price_in + cached * options.price_cached
    return (usd + usage["completion_tokens"] * options.price_out) / 1e6 * (options.offpeak if is_offpeak(at) else 1.0)


def read_usage(answer: dict[str, Any]) -> dict[str, int] | None:
    """Returns the tokens of an answer, as DeepSeek or OpenAI count them; None where the server does not say."""
    said = answer.get("usage") or {}
    if not isinstance(said.get("prompt_tokens"), int) or not isinstance(said.get("completion_tokens"), int):
        return None
    cached = said.get("prompt_cache_hit_tokens") or (said.get("prompt_tokens_details") or {}).get("cached_tokens")
    reasoning = (said.get("completion_tokens_details") or {}).get("reasoning_tokens")
    counts = {"prompt_tokens": said["prompt_tokens"], "completion_tokens": said["completion_tokens"]}
    return counts | {"cached_tokens": cached or 0, "reasoning_tokens": reasoning or 0}


def read_answer(content: bytes) -> tuple[dict[str, Any], str, str, str]:
    """Returns an answer, its reasoning, final answer and finish reason. Raises: Failure (retry) when it is not whole."""
    try:
        answer = json.loads(content)
        message, finish = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        final = message.get("content") or ""
        if not reasoning and ("</think>" in final or final.lstrip().startswith("<think>")):  # a server without a parser for it
            reasoning, _, final = final.partition("</think>")
        reasoning, final = reasoning.strip().removeprefix("<think>").strip(), final.strip()
    except ValueError:
        raise Failure("the answer is not whole JSON", "retry", charged=True) from None
    except (LookupError, TypeError, AttributeError):
        raise Failure("the answer holds no message; is base_url that of a chat API?", "retry", charged=True) from None
    if finish not in WHOLE or not (reasoning or final):
        raise Failure(f"the answer is not whole (finish_reason {finish!r})", "retry", charged=True)
    return answer, reasoning, final, finish


def read_refusal(status: int, content: bytes, retry_after: str | None, secret: str) -> Failure:
    """Returns what an HTTP status other than 200 means for the run, with the server's own reason."""
    text, wait_s = content.decode(errors="replace"), 0.0
    with suppress(ValueError, LookupError, TypeError):  # else the body itself is the reason
        said = json.loads(text)["error"]
        text = str(said["message"] if isinstance(said, dict) else said)
    with suppress(ValueError):
        wait_s = parsedate_to_datetime(retry_after or "").timestamp() - time.time()
    with suppress(ValueError):
        wait_s = float(retry_after or 0)
    line = f"HTTP {status}: " + " ".join(without(text, secret).split())[:300]
    if status in FATAL or b"insufficient_quota" in content or wait_s > LONGEST_RETRY_AFTER_S:
        return Failure(line)
    return Failure(line, "retry" if status in RETRIED else "skip", wait_s=max(0.0, wait_s))


class Line:
    """A connection to the server, kept open from one request to the next.

    A server that sends an answer twice would be a step ahead from then on. So an answer equal, byte for byte, to the last on
    this connection is asked for again on a new one; where that is equal as well, the server answers so, and is believed.
    """

    def __init__(self, options: TraceOptions, secret: str) -> None:
        self.url, self.secret, self.timeout_s = options.base_url.rstrip("/") + "/chat/completions", secret, options.timeout_s
        self.session: aiohttp.ClientSession | None = None
        self.last, self.believed = b"", False

    def _open(self) -> aiohttp.ClientSession:
        url, timeout = urlsplit(self.url), aiohttp.ClientTimeout(total=self.timeout_s)
        proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(limit=1)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers, proxy=proxy)

    async def close(self) -> None:
        """Closes the connection; the next request opens a new one."""
        if self.session is not None:
            await self.session.close()
        self.session = None

    async def post(self, body: bytes, once: str) -> bytes:
        """Returns the server's answer. Raises: Failure."""
        content = await self._post(body, once)
        if content == self.last and not self.believed:
            await self.close()
            content = await self._post(body, once)
            self.believed = content == self.last
        self.last = content
        return content

    async def _post(self, body: bytes, once: str) -> bytes:
        self.session = self.session or self._open()
        content = bytearray()
        try:
            async with self.session.post(
                self.url, data=body, headers={"Idempotency-Key": once}, allow_redirects=False
            ) as response:
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise Failure(f"the answer is longer than {MAX_ANSWER_BYTES} bytes", "retry", charged=True)
        except TimeoutError:
            raise Failure(f"no whole answer within {self.timeout_s:g} s", "retry", charged=True) from None
        except aiohttp.ClientConnectorError as error:
            raise Failure(f"cannot connect to {self.url}: {error.os_error.strerror or error}", "retry") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Failure(f"the connection failed: {type(error).__name__}", "retry", charged=True) from None
        if response.status != 200:
            raise read_refusal(response.status, bytes(content), response.headers.get("Retry-After"), self.secret)
        return bytes(content)


class Generation:
    """One run: asks for what the outfile lacks. `reason`: None, or why it stopped before everything was asked for."""

    def __init__(self, options: TraceOptions, key: str, file: TraceFile) -> None:
        self.options, self.secret, self.file = options, key, file
        self.num_todo = self.num_new = self.num_failed = self.num_retries = self.failed_in_a_row = self.exit_code = 0
        self.lost_usd = self.reserved_usd = self.not_before_s = 0.0
        self.reason: str | None = None
        self.workers: list[asyncio.Task[None]] = []
        self.sending: set[asyncio.Task[Any] | None] = set()
        self.began_s = self.shown_s = time.monotonic()
        self.most_prompt_tokens = 0  # a token has at least one byte; 64 for the chat template
        for problem, _, _ in self._todo():  # the infile is checked whole before anything is paid for
            self.num_todo += 1
            self.most_prompt_tokens += len(problem.messages[0]["content"].encode(errors="replace")) + 64

    def _todo(self) -> Iterator[tuple[Problem, int, str]]:
        for problem in read_problems(Path(self.options.infile), self.options.limit):
            sha256 = hashlib.sha256(json.dumps(problem.messages).encode()).hexdigest()
            for index in range(self.options.samples_per_prompt):
                if TraceFile.key(problem.id, index, self.options.model, sha256) not in self.file.keys:
                    yield problem, index, sha256

    def estimate(self) -> str:
        """Returns what the rest will take, in words: tokens, dollars, time."""
        o, num, done = self.options, self.num_todo, len(self.file.keys)
        tokens = self.file.num_completion_tokens / done if done else ASSUMED_TOKENS
        latency_s = self.file.latency_s / done if done else ASSUMED_LATENCY_S
        prompt = self.most_prompt_tokens / 4
        usd, most = ((prompt * o.price_in + num * each * o.price_out) / 1e6 for each in (tokens, o.max_tokens))
        off = f", or {usd * o.offpeak:.2f} in the off-peak window" if o.offpeak != 1 else ""
        return (
            f"{num} traces to ask of {o.model} at {o.base_url}; {done} are in {o.outfile}\n"
            f"estimate: {prompt:,.0f} prompt and {num * tokens:,.0f} completion tokens, {usd:.2f} USD{off}, at most {most:.2f};"
            f" {num * latency_s / o.concurrency / 60:.1f} min ({'as earlier answers took' if done else 'as R1 takes on GSM8K'})"
        )

    def show(self, last: bool = False) -> None:
        """Writes the running total to stderr: in place on a terminal, else a line every half minute and the last."""
        now_s, live, done = time.monotonic(), sys.stderr.isatty(), self.num_new + self.num_failed
        if last or now_s - self.shown_s >= (0.1 if live else 30.0):
            self.shown_s = now_s
            left_min = (now_s - self.began_s) / max(done, 1) * (self.num_todo - done) / 60
            bar = "#" * (20 * done // max(self.num_todo, 1))
            line = f"[{bar:<20}] {done}/{self.num_todo}  {self.file.spent_usd:.4f} USD  {self.file.num_tokens:,} tokens"
            line += f"  {self.num_retries} retried  {self.num_failed} failed  {left_min:.1f} min left"
            print(f"\r{line}\x1b[K" if live else line, end="" if live and not last else "\n", file=sys.stderr, flush=True)

    def stop(self, reason: str, exit_code: int) -> None:
        """Sends nothing more; answers under way may end, for `DRAIN_S` at most. A second call drops them."""
        again = self.reason is not None
        if not again:
            self.reason, self.exit_code = reason, exit_code
            asyncio.get_running_loop().call_later(DRAIN_S, self.stop, reason, exit_code)
        for worker in self.workers:
            if again or worker not in self.sending | {asyncio.current_task()}:  # the worker that calls this ends by itself
                worker.cancel()

    async def run(self) -> None:
        """Asks for everything, or until it is stopped; in the main thread SIGINT, SIGTERM and SIGHUP stop it."""
        loop = asyncio.get_running_loop()

        def heard(number: int, frame: object) -> None:
            loop.call_soon_threadsafe(self.stop, signal.Signals(number).name, 128 + number)

        numbers = (
            (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
        )
        old = {number: signal.signal(number, heard) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
        try:
            todo = self._todo()
            self.workers = [asyncio.create_task(self._work(todo)) for _ in range(min(self.options.concurrency, self.num_todo))]
            for ended in await asyncio.gather(*self.workers, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    async def _work(self, todo: Iterator[tuple[Problem, int, str]]) -> None:
        line = Line(self.options, self.secret)
        try:
            for problem, index, sha256 in todo:
                most_usd = await self._room(len(problem.messages[0]["content"].encode(errors="replace")) + 64)
                if self.reason is not None:
                    return
                self.reserved_usd += most_usd
                try:
                    self.file.append(await self._ask(line, problem, index, sha256, most_usd), self.secret)
                    self.num_new, self.failed_in_a_row = self.num_new + 1, 0
                except Failure as failure:
                    self._failed(f"{problem.id}, sample {index}: {failure}", failure)
                finally:
                    self.reserved_usd -= most_usd
                self.show()
        finally:
            await line.close()

    def _failed(self, what: str, failure: Failure) -> None:
        if failure.kind == "stop":
            return self.stop(str(failure), failure.exit_code)
        self.num_failed, self.failed_in_a_row = self.num_failed + 1, self.failed_in_a_row + 1
        print(f"failed: {what}", file=sys.stderr)
        if self.failed_in_a_row == STOP_AFTER:
            self.stop(f"{STOP_AFTER} failures in a row, the last: {what}", 1)
        return None

    async def _room(self, most_prompt_tokens: int) -> float:
        """Returns the most that an answer can cost, once the budget has room for it; stops the run where it never will.

        While nothing else is under way, room for the dearest answer so far is enough.
        """
        o = self.options
        most_usd = (
            (most_prompt_tokens * max(o.price_in, o.price_cached) + o.max_tokens * o.price_out) / 1e6 * max(1.0, o.offpeak)
        )
        while o.budget_usd is not None and self.reason is None:
            left_usd, alone = o.budget_usd - self.file.spent_usd - self.lost_usd - self.reserved_usd, self.reserved_usd < 1e-12
            if most_usd <= left_usd or (alone and left_usd > 0 and left_usd >= self.file.dearest_usd):
                break
            if alone:
                self.stop(f"the budget of {o.budget_usd:g} USD has no room for another trace", 0)
            await asyncio.sleep(0.02)
        return most_usd

    async def _ask(self, line: Line, problem: Problem, index: int, sha256: str, most_usd: float) -> dict[str, Any]:
        """Returns the record of an answer, asked for until there is one. Raises: Failure."""
        o = self.options
        asked = {"model": o.model, "max_tokens": o.max_tokens, "temperature": o.temperature}
        body = json.dumps({**asked, "messages": problem.messages, "stream": False}).encode()
        once = hashlib.sha256(body + json.dumps([problem.id, index]).encode()).hexdigest()
        for attempt in range(1, o.max_retries + 2):
            while (wait_s := self.not_before_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            try:
                began_s = time.monotonic()
                answer, reasoning, final, finish = read_answer(await self._send(line, body, once))
                break
            except Failure as failure:
                self.lost_usd += most_usd * failure.charged
                if failure.kind != "retry" or attempt > o.max_retries or self.reason is not None:
                    raise Failure(f"{failure} (attempt {attempt})", failure.kind) from None
                self.num_retries += 1
                self.not_before_s = max(self.not_before_s, time.monotonic() + failure.wait_s)
                await asyncio.sleep(random.uniform(0, min(BACKOFF_LIMIT_S, BACKOFF_BASE_S * 2**attempt)))
        at, usage = datetime.now(UTC), read_usage(answer)
        record = {"id": problem.id, "sample_index": index, "question": problem.question, "gold": problem.gold}
        record |= {"reasoning": reasoning, "answer": final, "finish_reason": finish, "usage": usage}
        record |= {"cost_usd": most_usd if usage is None else price_usd(o, usage, at)}  # what is not said is taken at the most
        record |= {"latency_s": round(time.monotonic() - began_s, 3), "request_id": answer.get("id"), "attempt": attempt}
        record |= {**asked, "served_model": answer.get("model"), "prompt_sha256": sha256}
        return record | {"finished_at": at.isoformat(timespec="seconds")}

    async def _send(self, line: Line, body: bytes, once: str) -> bytes:
        self.sending.add(asyncio.current_task())
        try:
            return await line.post(body, once)
        finally:
            self.sending.discard(asyncio.current_task())


def check_ready(options: TraceOptions) -> str:
    """Returns the key. Raises: Failure (exit code 2) when there is none, or the address is none."""
    key, url = os.environ.get("DEEPSEEK_API_KEY", "").strip(), urlsplit(options.base_url)
    if not key or not key.isascii() or not key.isprintable():
        raise Failure("DEEPSEEK_API_KEY holds no key; set it (to any word for a server that asks for none)", exit_code=2)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise Failure("base_url is no address; it must start with http:// or https://, and hold no password", exit_code=2)
    return key


def generate(options: TraceOptions) -> Generation:
    """Returns the run, once it has ended; estimate, progress and total go to stderr. Raises: Failure where it cannot begin."""
    key = check_ready(options)
    file = TraceFile(Path(options.outfile))
    try:
        run = Generation(options, key, file)
        print(run.estimate(), file=sys.stderr)
        asyncio.run(run.run())
    finally:
        file.close()
    run.show(last=True)
    run.exit_code = run.exit_code or int(run.num_failed > 0)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Generates traces as `arguments` say (default: the process's own) and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    for spec in fields(TraceOptions):
        flags = dict.fromkeys(f"--{spec.name.replace('_', mark)}" for mark in "-_")
        kind = next(kind for kind in (int, float, str) if kind.__name__ in str(spec.type))
        parser.add_argument(*flags, type=kind, default=spec.default, help=f"{spec.metadata['help']} [{spec.default}]")
    options = TraceOptions(**vars(parser.parse_args(arguments)))
    try:
        for spec in fields(options):
            value, low, high = getattr(options, spec.name), spec.metadata["min"], spec.metadata["max"]
            if low is not None and value is not None and not low <= value <= (high or float("inf")):
                raise Failure(f"{spec.name} = {value}: allowed is {low} {f'to {high}' if high else 'or more'}", exit_code=2)
        run = generate(options)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:  # before the first request; later it is heard in `Generation.run`
        return 130
    if run.reason is not None:
        print(f"{'error' if run.exit_code == 1 else 'stopped'}: {run.reason}; run again to go on", file=sys.stderr)
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main())
