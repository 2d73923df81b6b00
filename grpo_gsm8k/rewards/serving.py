"""The side of the worker process in `rewards.workers`: reads tasks as JSON lines on stdin, answers in order on stdout.

The first line it writes is `"ready"`. It ends when stdin closes, also in the middle of a calculation, so that it never outlives
its parent; what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

MEMORY_LIMIT_BYTES = 4 << 30
BACKSTOP_S = 300


def _read_lines(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def serve(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """Answers tasks until stdin closes; never returns. `prepare` loads what is needed and returns what answers a task.

    A task on which that raises is answered `[0.0, null, "error", reason]`, the fields of a `Score`.
    """
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    answer = prepare()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, hard))
    replies.write(b'"ready"\n')
    while True:
        task = json.loads(lines.get())
        assert isinstance(task, list), task
        # The parent kills a worker that takes too long. If the parent is gone and C code holds the interpreter, this ends it.
        signal.alarm(BACKSTOP_S)
        try:
            reply = answer(task)
        except Exception as error:
            reply = [0.0, None, "error", f"{type(error).__name__}: {error}"[:200]]
        signal.alarm(0)
        replies.write(json.dumps(reply).encode() + b"\n")
