"""Worker processes with a real timeout: a hung one is killed by its parent, a crashed one replaced, nothing is lost.

Workers are fresh interpreters (no fork: the parent may hold torch's or vLLM's threads), started once and kept warm. They read
JSON lines on stdin and answer in order on stdout, so that a worker ends by itself when its parent dies (`rewards.serving`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from grpo_gsm8k.errors import EnvironmentFailure

START_TIMEOUT_S = 120.0
DEFAULT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 240.0
CHUNK = 16


def default_num_workers(num_workers: int) -> int:
    """Returns the number of workers asked for; 0 stands for one a CPU, at most 8. Raises: ValueError below 0."""
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; it must be 0 (one a CPU) or more")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return num_workers or min(cpus, 8)


def checked_timeout(timeout_s: float) -> float:
    """Returns the timeout of a task. Raises: ValueError when it is not above 0 and at most `MAX_TIMEOUT_S`."""
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s is {timeout_s}; it must be more than 0 and at most {MAX_TIMEOUT_S:g}")
    return timeout_s


class _Worker:
    """One process: its unanswered tasks in order, and since when the first of them has been running."""

    def __init__(self, module: str) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        self.ready = False
        self.pending: deque[int] = deque()
        self.unsent = b""
        self.since = time.monotonic()
        self.buffer = b""
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)

    @property
    def stdin(self) -> int:
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    @property
    def stdout(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def write(self) -> bool:
        """Sends what the pipe takes; returns whether the worker still listens."""
        while self.unsent:
            try:
                self.unsent = self.unsent[os.write(self.stdin, self.unsent) :]
            except BlockingIOError:
                return True
            except BrokenPipeError:
                self.unsent = b""
                return False
        return True

    def read(self) -> tuple[list[Any], bool]:
        """Returns the whole lines that have come, and whether the worker's end of the pipe is still open."""
        is_open = True
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.stdout, 1 << 16):
                self.buffer += chunk
            is_open = False
        *lines, self.buffer = self.buffer.split(b"\n")
        return [json.loads(line) for line in lines], is_open

    def last_error(self) -> str:
        """Returns the last line of what the worker wrote on stderr."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().split("\n")
        return lines[-1][:200]

    def stop(self) -> None:
        """Kills the process and frees its pipes."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                stream.close()


class WorkerPool:
    """Runs tasks in `num_workers` processes of `python -m module`, each task for at most `timeout_s` seconds of wall time."""

    def __init__(self, module: str, num_workers: int, timeout_s: float) -> None:
        self._module = module
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[Any]) -> list[Any | str]:
        """Returns each task's reply in order; a `str` in its place says why there is none (timed out, crashed).

        Raises: EnvironmentFailure when a worker cannot start at all.
        """
        with self._lock:
            return self._run(tasks)

    def _run(self, tasks: Sequence[Any]) -> list[Any | str]:
        results: dict[int, Any | str] = {}
        waiting = deque(range(len(tasks)))
        try:
            while len(results) < len(tasks):
                for worker in [w for w in self._workers if w.ready and not w.pending and w.process.poll() is not None]:
                    self._replace(worker, waiting, results, "")
                while len(self._workers) < min(self._num_workers, max(1, len(tasks))):
                    self._workers.append(_Worker(self._module))
                for worker in self._workers:
                    self._feed(worker, waiting, tasks)
                self._wait()
                for worker in list(self._workers):
                    self._collect(worker, waiting, results)
        except BaseException:
            self._stop_all()
            raise
        return [results[i] for i in range(len(tasks))]

    def _feed(self, worker: _Worker, waiting: deque[int], tasks: Sequence[Any]) -> None:
        if worker.ready and not worker.pending and waiting:
            share = max(1, min(CHUNK, len(waiting) // (2 * self._num_workers)))
            worker.pending.extend(waiting.popleft() for _ in range(share))
            worker.unsent = b"".join(json.dumps(tasks[i]).encode() + b"\n" for i in worker.pending)
            worker.since = time.monotonic()
        worker.write()

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.stdout, selectors.EVENT_READ)
                if worker.unsent:
                    selector.register(worker.stdin, selectors.EVENT_WRITE)
            limits = [(w, self._timeout_s if w.ready else START_TIMEOUT_S) for w in self._workers if w.pending or not w.ready]
            busy = [worker.since + limit_s for worker, limit_s in limits]
            selector.select(max(0.0, min(busy, default=0.0) - time.monotonic()) + 0.001)

    def _collect(self, worker: _Worker, waiting: deque[int], results: dict[int, Any | str]) -> None:
        replies, is_open = worker.read()
        for reply in replies:
            worker.since = time.monotonic()
            if not worker.ready:
                worker.ready = True
            else:
                results[worker.pending.popleft()] = reply
        running_s = time.monotonic() - worker.since
        if not worker.ready and (not is_open or running_s > START_TIMEOUT_S):
            raise EnvironmentFailure(f"a worker of {self._module} cannot start: {worker.last_error() or 'no reason given'}")
        if not is_open:
            self._replace(worker, waiting, results, "worker crashed")
        elif worker.ready and worker.pending and running_s > self._timeout_s:
            self._replace(worker, waiting, results, f"timed out after {self._timeout_s:g} s")

    def _replace(self, worker: _Worker, waiting: deque[int], results: dict[int, Any | str], reason: str) -> None:
        """Drops a dead or hung worker: its first task gets the reason, those behind it go back to the front of the queue."""
        self._workers.remove(worker)
        worker.stop()
        if worker.pending:
            results[worker.pending.popleft()] = reason
        waiting.extendleft(reversed(worker.pending))

    def _stop_all(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def close(self) -> None:
        """Ends all workers; safe to call twice. A later `run` starts new ones."""
        with self._lock:
            self._stop_all()
