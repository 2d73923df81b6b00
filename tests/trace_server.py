"""A real HTTP server on 127.0.0.1 that answers as a reasoning API does, with published solutions; it can be told to misbehave.

    python tests/trace_server.py --problems artifacts/tiny/train.jsonl --port_file port.txt [--trouble_every 50]

Load it by path (tests are no package). It is written on bare sockets so that it can break every rule of HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

TROUBLES = ("429", "500", "502", "503", "drip", "reset", "reset-midway", "truncated", "cut", "twice", "empty", "overloaded")


@dataclass
class Asked:
    """One request as the server saw it."""

    question: str
    headers: dict[str, str]
    body: dict[str, Any]
    at_s: float


@dataclass
class TraceServer:
    """Serves while the `with` block lasts, on `base_url`.

    `solutions`: (reasoning, final answer) by question; any other question is answered with "unknown".
    `trouble(question, times)`: what to do when a question is asked for the `times`-th time (from 1); None is to answer. A word
    of `TROUBLES`, any HTTP status, a status and a Retry-After header ("429 0.2"), or "blank lines" (DeepSeek sends them while a
    request waits) before the answer; or "late twice" (the second answer comes when another request may be under way).
    `constant`: every answer is the same, byte for byte. `heeds_keys`: a repeated Idempotency-Key gets the stored answer and
    is not charged again.
    `charged` counts the answers generated a question, `asked` lists every request, `most_at_once` counts requests under way.
    """

    solutions: dict[str, tuple[str, str]]
    latency_s: float = 0.0
    trouble: Callable[[str, int], str | None] = lambda question, times: None
    heeds_keys: bool = False
    constant: bool = False
    completion_tokens: int | None = None
    asked: list[Asked] = field(default_factory=list)
    charged: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    most_at_once: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._ids = itertools.count()
        self._stored: dict[str, bytes] = {}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> TraceServer:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512), self._loop
        )
        self._server = started.result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                question = body["messages"][-1]["content"].rpartition("\n\n")[0]
                self.asked.append(Asked(question, headers, body, time.monotonic()))
                self.times[question] += 1
                self.under_way += 1
                self.most_at_once = max(self.most_at_once, self.under_way)
                try:
                    await asyncio.sleep(self.latency_s)
                    if not await self._answer(question, headers, body, writer):
                        break
                finally:
                    self.under_way -= 1
        writer.close()

    async def _answer(self, question: str, headers: dict[str, str], body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Answers, or does not; returns whether the connection goes on."""
        trouble = self.trouble(question, self.times[question])
        if trouble == "reset":
            return _reset(writer)
        if trouble is not None and trouble.split()[0].isdigit():
            status, _, wait = trouble.partition(" ")
            said = {"error": {"message": f"trouble {status} for {headers.get('authorization', '')}", "type": "trouble"}}
            extra = f"Retry-After: {wait}\r\n" if wait else ""
            writer.write(
                _response(status, b"<html>bad gateway</html>" if status == "502" else json.dumps(said).encode(), extra)
            )
            return True
        content = self._generate(question, headers, body, trouble)
        whole = _response("200 OK", content)
        if trouble == "truncated":
            writer.write(_response("200 OK", content[: len(content) // 2]))
        elif trouble in ("cut", "reset-midway"):
            writer.write(whole[: -len(content) // 2])
            await writer.drain()
            return _reset(writer) if trouble == "reset-midway" else False
        elif trouble == "drip":
            for byte in whole:
                if writer.transport.is_closing():
                    return False
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
        elif trouble in ("twice", "late twice"):
            writer.write(whole)
            asyncio.get_running_loop().call_later(0.02 if trouble == "late twice" else 0.0, writer.write, whole)
        elif trouble == "blank lines":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n")
            await asyncio.sleep(0.02)
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))
        else:
            writer.write(whole)
        await writer.drain()
        return True

    def _generate(self, question: str, headers: dict[str, str], body: dict[str, Any], trouble: str | None) -> bytes:
        key = headers.get("idempotency-key", "")
        if self.heeds_keys and key in self._stored:
            return self._stored[key]
        self.charged[question] += 1
        reasoning, final = self.solutions.get(question, ("I do not know this one.", "unknown"))
        message: dict[str, Any] = {"role": "assistant", "content": final, "reasoning_content": reasoning}
        finish = "stop"
        if trouble == "empty":
            message |= {"content": "", "reasoning_content": ""}
        if trouble == "overloaded":
            finish = "insufficient_system_resource"
        prompt = 100 if self.constant else len(body["messages"][-1]["content"]) // 4
        completion = self.completion_tokens or (len(reasoning) + len(final)) // 4
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        usage |= {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": prompt}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        answer = {
            "id": f"answer-{0 if self.constant else next(self._ids)}",
            "object": "chat.completion",
            "model": "r1-test",
            "choices": [choice],
        }
        content = json.dumps({**answer, "usage": usage}).encode()
        if trouble not in ("empty", "overloaded"):
            self._stored[key] = content
        return content


def _response(status: str, content: bytes, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{extra}\r\n".encode()
        + content
    )


def _reset(writer: asyncio.StreamWriter) -> bool:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def solutions_of(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Returns what the server answers to problems: the published steps as reasoning, then the gold in a box."""
    found = {}
    for row in rows:
        steps, _, gold = str(row["answer"]).rpartition("####")
        thinking = f"The user wants the final answer within \\boxed{{}}. {steps.strip()}".strip()
        found[row["question"]] = (thinking, f"The answer is $\\boxed{{{gold.strip()}}}$.")
    return found


def main() -> None:
    """Serves until it is ended; writes its port to a file when it is ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, required=True, help="JSONL with question and answer a line")
    parser.add_argument("--port_file", type=Path, required=True)
    parser.add_argument("--latency_ms", type=float, default=0.0)
    parser.add_argument("--trouble_every", type=int, default=0, help="every N-th question fails at first, in turn in each way")
    parser.add_argument("--wrong_every", type=int, default=0, help="every N-th question gets a wrong answer")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.problems.read_text(encoding="utf-8").split("\n") if line]
    place = {row["question"]: number for number, row in enumerate(rows)}
    ways = [trouble for trouble in TROUBLES if trouble != "drip"]

    def trouble(question: str, times: int) -> str | None:
        number = place.get(question, 0)
        if times > 1 or not given.trouble_every or number % given.trouble_every:
            return None
        return ways[number // given.trouble_every % len(ways)]

    solutions = solutions_of(rows)
    for row in rows[:: given.wrong_every] if given.wrong_every else ():
        solutions[row["question"]] = (solutions[row["question"]][0], "The answer is $\\boxed{-1}$.")
    with TraceServer(solutions, given.latency_ms / 1000, trouble) as server:
        waiting = given.port_file.with_suffix(".tmp")
        waiting.write_text(str(server.port))
        waiting.replace(given.port_file)
        threading.Event().wait()


if __name__ == "__main__":
    main()
