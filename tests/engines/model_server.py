"""A local HTTP server that speaks the OpenAI API as vLLM does, and misbehaves on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: int | None = None  # send this many bytes of the body under its full Content-Length, then close
    reset: bool = False


@dataclass(frozen=True)
class Request:
    """What the server was sent."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    attempt: int  # how many times this body came before


Behaviour = Callable[[Request], Reply]


class ModelServer:
    """Runs `behaviour` for every request, each in a thread, and counts how many run at once."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *args: object) -> None:
                """A client that hung up is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            attempt = sum(1 for request in self.requests if request.body == body)
            request = Request(handler.path, dict(handler.headers), body, attempt)
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            reply = self.behaviour(request)
            time.sleep(reply.delay_s)
        finally:
            with self._lock:
                self._now -= 1
        if reply.reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        data = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data if reply.cut is None else data[: reply.cut])
        if reply.cut is not None:
            handler.close_connection = True


def vllm_answer(
    text: str,
    token_ids: list[int],
    logprobs: list[float],
    *,
    finish: str = "stop",
    stop_reason: str | int | None = None,
    chat: bool = False,
) -> Reply:
    """Returns an answer in vLLM's shape."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "stop_reason": stop_reason, "token_ids": token_ids}
    if chat:
        choice["message"] = {"role": "assistant", "content": text}
        choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in logprobs]}
    else:
        choice["text"] = text
        choice["logprobs"] = {"token_logprobs": logprobs, "tokens": [""] * len(logprobs)}
    return Reply(body={"id": "cmpl-0", "choices": [choice]})
