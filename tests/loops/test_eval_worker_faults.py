"""A full queue, a worker that dies, hangs or fails, a trainer that is killed: each ends as it should, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eval_workers import (
    WEIGHTS_BYTES,
    children_of,
    evaluate_plainly,
    is_running,
    make_spec,
    publish,
    ram_folders,
    wait_until,
    write_eval_set,
)

from grpo_gsm8k.errors import DataError, EngineError
from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import read_lines
from grpo_gsm8k.runs.weight_folders import sweep
from grpo_gsm8k.types import Sampling

Starter = Callable[..., tuple[EvalClient, RunDirectory]]

TRAINER = """
import json, shutil, sys, time
from pathlib import Path
from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.loops.eval_spec import EvalWorkerSpec
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.lifecycle import running

run = RunDirectory(Path(sys.argv[1]))
spec = EvalWorkerSpec.from_json(json.loads(sys.argv[2]))
with running(run), EvalClient.start(spec, run, weights_bytes=1 << 20, max_pending=100) as client:
    for step in range(100):
        shutil.copytree(sys.argv[3], client.publish_dir(step), dirs_exist_ok=True)
        client.submit(step)
    client.wait_ready()
    while not client.poll():
        time.sleep(0.01)
    print(client.worker_pid, flush=True)
    client.drain()
"""


@pytest.fixture(scope="module")
def eval_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_set(tmp_path_factory.mktemp("data") / "eval.jsonl")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("weights"), seed=1)


@pytest.fixture
def start(tmp_path: Path, eval_set: Path) -> Iterator[Starter]:
    clients: list[EvalClient] = []

    def start(changes: dict[str, Any] | None = None, **options: Any) -> tuple[EvalClient, RunDirectory]:
        run = RunDirectory.create(tmp_path, "sft", [])
        spec = make_spec(run, eval_set, **(changes or {}))
        clients.append(EvalClient.start(spec, run, weights_bytes=WEIGHTS_BYTES, **options))
        return clients[-1], run

    yield start
    for client in clients:
        client.close()


def hand_over(client: EvalClient, weights: Path, step: int, **options: Any) -> Any:
    shutil.copytree(weights, client.publish_dir(step), dirs_exist_ok=True)
    return client.submit(step, **options)


def failure_of(client: EvalClient, timeout_s: float = 10.0) -> tuple[str, float]:
    """Waits until polling fails, as a trainer would meet it; returns the message and the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        try:
            client.poll()
        except EngineError as error:
            assert "\n" not in str(error)
            return str(error), time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError("the worker's end was not noticed")


def test_a_full_queue_makes_the_trainer_wait_and_a_killed_worker_fails_it(start: Starter, weights: Path) -> None:
    client, _ = start(max_pending=1)
    client.wait_ready()
    os.kill(client.worker_pid, signal.SIGSTOP)
    assert hand_over(client, weights, 0).waited_s < 0.2
    threading.Timer(0.6, os.kill, (client.worker_pid, signal.SIGCONT)).start()
    admission = hand_over(client, weights, 1)
    assert admission.accepted
    assert admission.waited_s > 0.5
    assert [outcome.step for outcome in client.drain()] == [0, 1]
    hand_over(client, weights, 2)
    os.kill(client.worker_pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"worker was ended by SIGKILL.*eval/worker\.log.*--resume"):
        client.drain()
    assert time.monotonic() - began < 3
    assert list(client.pending()) == [2]
    folders = ram_folders(os.getpid())
    client.close()
    assert not any(folder.exists() for folder in folders)
    with pytest.raises(EngineError, match="ended by SIGKILL"):
        client.poll()


def test_a_full_queue_skips_on_record_and_a_stopped_worker_is_a_hang(start: Starter, weights: Path) -> None:
    client, run = start(max_pending=1, when_full="skip", hang_timeout_s=2.0)
    client.wait_ready()
    os.kill(client.worker_pid, signal.SIGSTOP)
    assert hand_over(client, weights, 0).accepted
    assert not client.admit(1).accepted
    assert not hand_over(client, weights, 2).accepted
    os.kill(client.worker_pid, signal.SIGINT)  # Ctrl-C is not for the worker
    os.kill(client.worker_pid, signal.SIGCONT)
    assert hand_over(client, weights, 3, must_run=True).accepted
    assert [outcome.step for outcome in client.drain()] == [0, 3]
    skipped = list(read_lines(run.path / "eval/skipped.jsonl"))
    assert [(line["step"], line["pending"]) for line in skipped] == [(1, [0]), (2, [0])]
    hand_over(client, weights, 4)
    time.sleep(2.5)  # longer than the timeout, and alive: no hang
    assert [outcome.step for outcome in client.poll()] == [4]
    os.kill(client.worker_pid, signal.SIGSTOP)
    said, _ = failure_of(client)
    assert "gave no sign of life for 2 s, so it is stopped or stuck" in said
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 2
    assert not is_running(client.worker_pid)


def test_pending_evaluations_are_done_once_after_a_resume_and_broken_weights_fail_the_run(
    start: Starter, weights: Path, eval_set: Path, tmp_path: Path
) -> None:
    client, run = start()
    kept = tmp_path / "checkpoint/pending_eval/step-6"
    shutil.copytree(weights, kept)
    journal = run.path / "eval/step_6.partial.jsonl"
    journal.parent.mkdir(exist_ok=True)
    journal.write_text('{"index": 0, "token_ids": [1], "logprobs": [0.0], "stop_reason": "eos", "text": null}\n')
    client.restore(6, kept)
    shutil.rmtree(kept)  # as when the checkpoint is pruned
    (outcome,) = client.drain()
    other = RunDirectory.create(tmp_path / "plain", "eval", [])
    evaluate_plainly(make_spec(run, eval_set), weights, other, 6)
    assert outcome.step == 6
    assert (run.path / "eval/step_6.jsonl").read_bytes() == (other.path / "eval/step_6.jsonl").read_bytes()
    assert not journal.exists()
    with pytest.raises(ValueError, match="step 7 is submitted after step 8"):
        for step in (8, 7):
            hand_over(client, weights, step)
    client.drain()
    folder = client.publish_dir(9)
    shutil.copytree(weights, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes()[:5000])
    client.submit(9)
    said, took = failure_of(client)
    assert took < 5
    assert "failed: ModelError: weights file" in said
    assert "in the evaluation of step 9; see " in said
    text = (run.path / "eval/worker.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert "copy_weights" in text


def test_a_worker_that_cannot_start_says_why(start: Starter) -> None:
    client, _ = start({"sampling": Sampling(max_tokens=5000)})
    with pytest.raises(
        EngineError, match=r"failed: PromptError: problem 'eval/.* do not fit the model's window.*while it start"
    ):
        client.wait_ready()


def test_an_eval_set_that_cannot_be_read_is_said_before_a_process_is_started(start: Starter, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        start({"eval_set_path": str(tmp_path / "none.jsonl")})
    assert ram_folders(os.getpid()) == []
    assert not list(tmp_path.glob("runs/*/eval"))


def test_an_eval_set_that_changes_under_the_run_fails_it(start: Starter, eval_set: Path, tmp_path: Path) -> None:
    copy = tmp_path / "eval.jsonl"
    shutil.copy(eval_set, copy)
    client, _ = start({"eval_set_path": str(copy)})
    copy.write_bytes(copy.read_bytes() + eval_set.read_bytes().split(b"\n")[0] + b"\n")
    with pytest.raises(EngineError, match=r"ProofError: .*eval\.jsonl changed since the trainer read it"):
        client.wait_ready()


def test_an_exception_in_the_trainer_leaves_no_process_and_no_weights(start: Starter, weights: Path) -> None:
    client, _ = start({"graders": ("numeric", "math")})
    with pytest.raises(ZeroDivisionError), client:
        hand_over(client, weights, 0)
        wait_until(lambda: bool(children_of(client.worker_pid)))  # the math grader's
        below = children_of(client.worker_pid)
        folders = [path.parent for path in client.pending().values()]
        raise ZeroDivisionError
    assert not is_running(client.worker_pid)
    wait_until(lambda: not any(is_running(pid) for pid in below))
    assert not any(folder.exists() for folder in folders)
    client.close()


@pytest.mark.parametrize(
    "kind",
    [
        "killed",
        "terminated",
        pytest.param("killed, the worker stopped", marks=pytest.mark.slow),
        pytest.param("killed with the worker", marks=pytest.mark.slow),
    ],
)
def test_a_trainer_that_is_ended_leaves_no_process_and_no_weights(
    kind: str, tmp_path: Path, eval_set: Path, weights: Path
) -> None:
    import json

    run = RunDirectory.create(tmp_path, "sft", [])
    spec = make_spec(run, eval_set, graders=("numeric", "math"))
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(run.path), json.dumps(spec.to_json()), str(weights)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    below = [worker, *children_of(worker)]
    assert len(below) >= 2
    folders = [folder for folder in ram_folders(trainer.pid) if folder.is_dir()]
    if kind == "terminated":
        trainer.terminate()
        assert trainer.wait(10) == 1  # Interrupted goes up to the command line, which is not here
    else:
        if kind == "killed, the worker stopped":
            os.kill(worker, signal.SIGSTOP)
        trainer.kill()
        if kind == "killed with the worker":
            os.kill(worker, signal.SIGKILL)
        trainer.wait()
    took = wait_until(lambda: not any(is_running(pid) for pid in below))
    assert took < 8
    trainer.stdout.close()
    if kind == "killed with the worker":  # nobody was left to remove them: the next start does
        assert set(sweep()) >= set(folders)
    assert not any(folder.exists() for folder in folders)
