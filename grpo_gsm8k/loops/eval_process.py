"""The evaluation worker's process as the trainer holds it: started, listened to, watched, ended.

A thread listens to it. The process is its own session and group, so that Ctrl-C in the trainer's terminal is not for it, and so
that it can be ended with everything it started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import EngineError
from grpo_gsm8k.runs.redact import scrub
from grpo_gsm8k.runs.storage import json_line, make_folder, storage_error

log = logging.getLogger("grpo_gsm8k")

CLOSE_GRACE_S = 10.0
TAIL_LINES = 60


class WorkerProcess:
    """A running `python -m grpo_gsm8k.loops.eval_worker`. `changed` guards its state and is notified of every message."""

    def __init__(
        self,
        log_path: Path,
        environment: Mapping[str, str],
        *,
        lock_fd: int | None,
        hang_timeout_s: float,
        on_message: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """Starts the process; its stderr is appended to `log_path`, and it shares the lock `lock_fd`.

        `on_message(type, message)` is called by the listening thread with `changed` held. Raises: StorageError, EngineError.
        """
        self.changed = threading.Condition()
        self._log_path, self._hang_timeout_s, self._on_message = log_path, hang_timeout_s, on_message
        self._failure: str | None = None
        self._stage = "while it started"
        self._closed = False
        make_folder(log_path.parent)
        try:
            with log_path.open("ab") as errors:
                self._log_start = errors.tell()
                self._process = self._start(errors.fileno(), environment, lock_fd)
        except OSError as error:
            raise storage_error(log_path, error) from None
        self.pid = self._process.pid
        self._listener = threading.Thread(target=self._listen, name="eval-listener", daemon=True)
        self._listener.start()

    @staticmethod
    def _start(errors: int, environment: Mapping[str, str], lock_fd: int | None) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "grpo_gsm8k.loops.eval_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                bufsize=0,
                start_new_session=True,
                pass_fds=() if lock_fd is None else (lock_fd,),
            )
        except OSError as error:
            raise EngineError(f"the evaluation worker cannot be started: {error}; free some memory or processes") from None

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, which the listener says with its reason
            self._process.stdin.write(json_line(message))

    def check(self) -> None:
        """Raises: EngineError when the worker died, failed, is silent or is closed."""
        if self._failure is not None:
            raise EngineError(self._failure)
        if self._closed:
            raise EngineError("the evaluation worker is closed; start a new one")

    def close(self) -> None:
        """Ends the process and all it started: asks first, unless it has failed already. Safe to call twice."""
        if self._process.returncode is not None:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + (0.0 if self._failure is not None else CLOSE_GRACE_S)
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        # It is reaped only after this, so that until then its number names its group and nothing else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._listener.join()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _has_ended(self) -> bool:
        """Returns whether the process is over, without reaping it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _listen(self) -> None:
        """Takes messages until the worker ends. Silence is counted in waits of our own, so a stopped trainer counts none."""
        assert self._process.stdout is not None
        replies = self._process.stdout.fileno()
        os.set_blocking(replies, False)
        tick_s = min(1.0, self._hang_timeout_s / 4)
        silent_s, buffer = 0.0, b""
        while True:
            is_readable = bool(select.select([replies], [], [], tick_s)[0])
            ended = self._has_ended()
            chunk = _read_all(replies) if is_readable or ended else b""
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
            if ended or (is_readable and not chunk):
                return self._fail(self._describe_end())
            silent_s = 0.0 if chunk else silent_s + tick_s
            if silent_s >= self._hang_timeout_s and not self._failure:
                self._fail(f"gave no sign of life for {self._hang_timeout_s:g} s, so it is stopped or stuck")

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.pop("type")
        if kind == "failed":
            self._fail(f"failed: {message['message']}")
        elif kind != "beat":
            with self.changed:
                self._stage = f"in the evaluation of step {message['step']}" if kind == "started" else "between evaluations"
                self._on_message(kind, message)
                self.changed.notify_all()

    def _describe_end(self) -> str:
        """Says how the process ended; that may come a moment after the end of its pipe."""
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert info is not None
        if info.si_code == os.CLD_EXITED:
            return f"exited with code {info.si_status}"
        return f"was ended by {signal.Signals(info.si_status).name}"

    def _fail(self, what: str) -> None:
        """Keeps the first reason, as one line; the worker's last lines go to run.log."""
        with self.changed:
            if not self._closed and self._failure is None:
                tail = self._tail()
                said = tail.rpartition("\n")[2].strip()
                shown = f" ({said[:300]})" if said and not what.startswith("failed") else ""
                where = f"{self._stage}; see {self._log_path}, then take the run up with --resume"
                self._failure = f"the evaluation worker {what}{shown}, {where}"
                log.error("the evaluation worker %s, %s; its last lines:\n%s", what, self._stage, tail)
            self.changed.notify_all()

    def _tail(self) -> str:
        with self._log_path.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").strip().split("\n")
        return scrub("\n".join(lines[-TAIL_LINES:]))


def _read_all(descriptor: int) -> bytes:
    """Returns what is in the pipe."""
    chunks = []
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
    return b"".join(chunks)
