"""The evaluation worker: `python -m grpo_gsm8k.loops.eval_worker`, started and ended by loops/eval_client.py.

It speaks JSON lines. In, first an order (the spec and where it comes from), then requests (`step`, `weights`). Out:
`ready` once, `done` or `failed` for each request, and `beat` every second from a thread of its own. Whatever libraries print
goes to stderr, which is eval/worker.log. The worker ends on SIGTERM, and by itself when its parent is gone: it then removes the
published weights, which nobody else is left to remove. SIGINT is not for it: Ctrl-C is the trainer's business.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from grpo_gsm8k.data.jsonl import read_file
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.errors import EngineError, ProofError
from grpo_gsm8k.loops.eval_spec import EvalWorkerSpec
from grpo_gsm8k.loops.eval_work import EvalWork, open_work
from grpo_gsm8k.loops.evaluate import journal_name
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.redact import scrub
from grpo_gsm8k.runs.storage import digest, json_line

log = logging.getLogger("grpo_gsm8k")

BEAT_S = 1.0
GRACE_S = 5.0  # how long an orphan may take to close its engine
_PR_SET_PDEATHSIG = 1


class Stopped(BaseException):
    """SIGTERM asked the worker to end."""


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped


class Link:
    """The worker's end of the pipes; messages are written whole, by whichever thread."""

    def __init__(self, replies: int) -> None:
        self._replies = replies
        self._lock = threading.Lock()
        self._unread = b""

    def send(self, kind: str, **values: Any) -> None:
        """Sends one message."""
        content = json_line({"type": kind, **values})
        with self._lock:
            while content:
                content = content[os.write(self._replies, content) :]

    def beat(self) -> None:
        """Sends a sign of life, unless the pipe is full because the trainer is stopped."""
        if self._lock.acquire(blocking=False):
            try:
                if select.select([], [self._replies], [], 0)[1]:
                    os.write(self._replies, b'{"type": "beat"}\n')
            finally:
                self._lock.release()

    def receive(self) -> dict[str, Any] | None:
        """Returns the next message; None when the trainer has closed its end."""
        while b"\n" not in self._unread:  # not sys.stdin: its lock, held by a blocked thread, aborts the interpreter's end
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return None
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message


class Watch:
    """Two threads: one takes requests and sees the trainer's end close, one gives signs of life and sees the trainer die."""

    def __init__(self, link: Link, order: Mapping[str, Any]) -> None:
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.orphaned = threading.Event()
        self._link = link
        self._parent, self._folder = int(order["parent"]), Path(order["folder"])
        self._alarm_s = math.ceil(order["hang_timeout_s"]) + 5

    def start(self) -> None:
        """Starts the threads."""
        for target in (self._receive, self._beat):
            threading.Thread(target=target, daemon=True).start()

    def _receive(self) -> None:
        while (request := self._link.receive()) is not None:
            self.requests.put(request)
        self._end_orphan()

    def _beat(self) -> None:
        # A child that the trainer forked may hold the pipe open, so the parent is looked at too. The alarm ends a worker in
        # which C code holds the interpreter for longer than the trainer would wait for a sign of life.
        while os.getppid() == self._parent:
            signal.alarm(self._alarm_s)
            try:
                self._link.beat()
            except BrokenPipeError:
                break
            time.sleep(BEAT_S)
        self._end_orphan()

    def _end_orphan(self) -> None:
        """Ends this process and its group; the main thread gets a while to close the engine."""
        if not self.orphaned.is_set():
            self.orphaned.set()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_S)
            self.leave()
            os.killpg(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        """Removes the published weights where the trainer is not there to do it."""
        if self.orphaned.is_set() or os.getppid() != self._parent:
            shutil.rmtree(self._folder, ignore_errors=True)


def serve(spec: EvalWorkerSpec, eval_set_sha256: str, link: Link, watch: Watch) -> None:
    """Opens the engine and the graders, then evaluates what is asked for until it is stopped."""
    if digest(read_file(Path(spec.eval_set_path))) != eval_set_sha256:
        raise ProofError(f"{spec.eval_set_path} changed since the trainer read it; leave it alone while the run goes on")
    import torch

    from grpo_gsm8k.engines.loading import load_tokenizer
    from grpo_gsm8k.engines.select import make_engine
    from grpo_gsm8k.runs.determinism import configure_torch, seed_python

    began = time.monotonic()
    seed_python(spec.seed)
    toggles = configure_torch(torch, spec.determinism, spec.seed, spec.num_threads)
    tokenizer = load_tokenizer(spec.engine_arguments["model_id"], spec.engine_arguments.get("revision"))
    with ExitStack() as stack:
        work = open_work(spec, tokenizer, stack)
        engine, why = make_engine(spec.engine, **spec.engine_arguments)
        stack.callback(engine.close)
        if not engine.capabilities.weight_updates:
            raise EngineError(f"engine {engine.name} takes no new weights while running; use transformers or vllm")
        described = dict(engine.describe())
        check_request(work.prompts, work.sampling, [0] * len(work.prompts), window=described.get("window_tokens"))
        described |= {"why": why, "grader_versions": dict(work.versions), "num_problems": len(work.prompts)}
        determinism = [asdict(toggle) for toggle in toggles]
        link.send("ready", engine=described, determinism=determinism, start_s=time.monotonic() - began)
        log.info("ready after %.1f s: %d problems", time.monotonic() - began, len(work.prompts))
        while True:
            request = watch.requests.get()
            link.send("started", step=request["step"])
            link.send("done", **evaluate_weights(spec, work, engine, request["step"], Path(request["weights"])))


def evaluate_weights(spec: EvalWorkerSpec, work: EvalWork, engine: Engine, step: int, weights: Path) -> dict[str, Any]:
    """Returns step, aggregate, ledger digests and times of evaluating the weights in a folder; writes the step's files."""
    run = RunDirectory(Path(spec.run_path))
    journal = run.path / journal_name(step)
    journal.unlink(missing_ok=True)  # of a worker that died: nothing says that its weights were these
    began = time.monotonic()
    engine.load_weights(weights, step)
    loaded = time.monotonic()
    done = work.evaluate(run, engine, step)
    journal.unlink(missing_ok=True)
    times = {f"time/eval_{key.removeprefix('time/')}": value for key, value in done.times.items()}
    times |= {"time/eval_load_weights_s": loaded - began, "time/eval_s": time.monotonic() - began}
    grader, accuracy = done.aggregate["primary_grader"], done.aggregate["accuracy"]
    log.info("step %d: %s %.4f in %.1f s", step, grader, accuracy, times["time/eval_s"])
    stages = {stage: digest(value) for stage, value in done.stages.items()}
    return {"step": step, "aggregate": done.aggregate, "stages": stages, "times": times}


def _wake_when_parent_dies() -> None:
    """Asks for SIGCONT when the trainer dies: a worker that somebody stopped goes on, and then sees that it is an orphan."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


def _write_log() -> None:
    class Scrubbed(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return scrub(super().format(record))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Scrubbed("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> int:
    """Serves evaluations until SIGTERM or the trainer's death; returns the exit code."""
    link = Link(os.dup(1))
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_stopped)
    _wake_when_parent_dies()
    _write_log()
    watch: Watch | None = None
    try:
        order = link.receive()
        if order is None:
            return 0
        watch = Watch(link, order)
        watch.start()
        log.info("evaluation worker %d of trainer %d", os.getpid(), order["parent"])
        serve(EvalWorkerSpec.from_json(order["spec"]), order["eval_set_sha256"], link, watch)
    except (Stopped, BrokenPipeError):
        return 0
    except BaseException as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.error("evaluation failed\n%s", traceback.format_exc())
        link.send("failed", message=scrub(message))
        return 1
    finally:
        if watch is not None:
            watch.leave()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # engine and graders are closed; taking down the interpreter under torch costs a second
