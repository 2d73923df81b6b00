"""From the first line of a run to its last state: logging, signals, and what a failure leaves behind."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from grpo_gsm8k.errors import HarnessError
from grpo_gsm8k.runs.directory import RunDirectory, State
from grpo_gsm8k.runs.manifest import MANIFEST, write_manifest
from grpo_gsm8k.runs.redact import scrub

log = logging.getLogger("grpo_gsm8k")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an Exception, so that nothing but the end of the run catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


class _ScrubbedFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise Interrupted (in the main thread; elsewhere nothing changes)."""
    caught: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
        caught = {number: signal.signal(number, _raise_interrupted) for number in heard}
    try:
        yield
    finally:
        for number, old in caught.items():
            signal.signal(number, old)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Inside, nothing but SIGKILL ends the process: for the last words of a run."""
    caught: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        caught = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in caught.items():
            signal.signal(number, old)


@contextmanager
def running(run: RunDirectory) -> Iterator[None]:
    """Runs the body as this run: run.log is kept, signals end it, and status.json says how it ended.

    Every exception goes on to the caller. An unexpected one leaves its traceback in run.log; a HarnessError its one line.
    """
    handler = logging.FileHandler(run.path / "run.log", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_ScrubbedFormatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_ScrubbedFormatter("%(message)s"))
    console.addFilter(lambda record: record.levelno < logging.ERROR)  # what ends the run is said once, by the command line
    previous_level = log.level
    log.addHandler(handler)
    log.addHandler(console)
    log.setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a failed retry is no news; the last one is said by us
    (run.path / MANIFEST).unlink(missing_ok=True)  # of the start before: what it says will not be so
    run.start()
    try:
        with signals_raise():
            yield
    except HarnessError as error:
        log.error("%s", error)
        _finish(run, "failed", str(error), error.exit_code)
        raise
    except (KeyboardInterrupt, Interrupted) as stop:
        code = stop.exit_code if isinstance(stop, Interrupted) else 130
        reason = str(stop) or "SIGINT"
        log.warning("interrupted by %s", reason)
        _finish(run, "interrupted", reason, code)
        raise Interrupted(code - 128) from None
    except BaseException as error:
        log.error("unexpected failure\n%s", traceback.format_exc())
        _finish(run, "failed", f"{type(error).__name__}: {error}".split("\n", 1)[0], 1)
        raise
    else:
        with signals_ignored():
            _end(run, "completed", None, 0)
    finally:
        log.removeHandler(handler)
        log.removeHandler(console)
        handler.close()
        log.setLevel(previous_level)


def _end(run: RunDirectory, state: State, reason: str | None, exit_code: int) -> None:
    """Writes the manifest, then the last state: a run that has ended has a manifest, or run.log says why not."""
    manifest_sha256 = None
    run.close_files()
    try:
        manifest_sha256 = write_manifest(run.path, {"state": state, "exit_code": exit_code})
    except (HarnessError, OSError) as error:
        log.warning("%s was not written, so the run's files cannot be verified: %s", MANIFEST, error)
    run.finish(state, reason, exit_code, manifest_sha256)


def _finish(run: RunDirectory, state: State, reason: str, exit_code: int) -> None:
    """Writes the last state of a run that did not complete; what goes wrong here must not hide what went wrong before."""
    try:
        with signals_ignored():
            _end(run, state, reason, exit_code)
    except HarnessError as error:
        print(f"the run's last state could not be written: {error}", file=sys.stderr)
