"""The worker process of the `math` grader: `python -m grpo_gsm8k.rewards.math_worker`.

Reads one JSON array `[completion, gold]` a line on stdin and answers each, in order, on stdout with
`[value, answer, status, explanation]`; the first line it writes is `"ready"`. It ends when stdin closes, also in the middle of
a calculation, so that it never outlives its parent.
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

MEMORY_LIMIT_BYTES = 4 << 30
BACKSTOP_S = 300


def _read_lines(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Serves gradings until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    from grpo_gsm8k.rewards.equivalence import grade_text

    grade_text("\\boxed{\\sqrt{8}}", "2\\sqrt{2}")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, hard))
    replies.write(b'"ready"\n')
    while True:
        completion, gold = json.loads(lines.get())
        # The parent kills a worker that takes too long. If the parent is gone and C code holds the interpreter, this ends it.
        signal.alarm(BACKSTOP_S)
        try:
            score = grade_text(completion, gold)
            reply = [score.value, score.answer, score.status, score.explanation]
        except Exception as error:
            reply = [0.0, None, "error", f"{type(error).__name__}: {error}"[:200]]
        signal.alarm(0)
        replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
