"""A small training run made by the harness's own writers, its ledger's digests worked out here; and commands asked of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import grpo_gsm8k
from grpo_gsm8k.cli import main
from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.checkpoints import Checkpoints
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.following import ending
from grpo_gsm8k.runs.lifecycle import running
from grpo_gsm8k.runs.rollout_files import write_rollouts
from grpo_gsm8k.types import Problem, Rollout, Score, Turn

NUM_PROBLEMS = 4


def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Returns what `runs …` printed and its exit code, run in this process."""
    return call("runs", *arguments)


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Returns what a command printed, as a terminal of UTF-8 takes it, and its exit code; run in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, *said)


def ask_all(run: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, subprocess.CompletedProcess[str]]:
    """Returns what each command that reads runs says of this one; a page that it wrote counts as said."""
    artifacts, out = run.parent.parent, run.parent.parent / "asked"
    here = ("--artifacts-dir", artifacts)
    commands: dict[str, tuple[object, ...]] = {
        "list": ("runs", "list", *here),
        "show": ("runs", "show", run, "--all"),
        "verify": ("runs", "verify", run),
        "compare": ("runs", "compare", f"{run}@0", run),
        "audit": ("runs", "audit", run),
        "runs report": ("runs", "report", run, "--out", out / "report.html"),
        "report": ("report", run),
        "csv": ("runs", "export", run, "--to", "csv", "--out", out),
        "tensorboard": ("runs", "export", run, "--to", "tensorboard", "--out", out),
        "rerun": ("runs", "rerun", run, "--out", out),
        "rerun --steps": ("runs", "rerun", run, "--out", out, "--steps", 1),
        "certify-resume": ("runs", "certify-resume", run, "--at", 1),
        "env rollouts": ("env", "rollouts", run, *here),
        "env loss-mask": ("env", "loss-mask", run, "--html", out / "mask.html", *here),
    }
    said = {name: call(*arguments) for name, arguments in commands.items() if name not in leave_out}
    for name, page in (("runs report", out / "report.html"), ("report", run / "report.html")):
        if name in said and said[name].returncode == 0:
            said[name].stdout += page.read_text(encoding="utf-8")
    if not is_waiting(run):
        said["tail"] = ask("tail", run)
    return said


def is_waiting(run: Path) -> bool:
    """Returns whether the damage made a run of this very process out of it, which `tail` would follow for ever."""
    try:
        return ending(run) is None
    except InputError:
        return False


def sha256_packed(*parts: Any) -> str:
    return hashlib.sha256(b"".join(struct.pack(form, *values) for form, *values in parts)).hexdigest()


def sha256(value: Any) -> str:
    """Returns the sha256 of canonical JSON, worked out without the harness."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_training_run(artifacts: Path) -> Path:
    """A completed run of two steps, evaluated at both ends, with one checkpoint and the rollouts of its last step."""
    run = RunDirectory.create(artifacts, "grpo", ["grpo"])
    run.lock()
    with running(run):
        fill(run, artifacts)
    return run.path


def fill(run: RunDirectory, artifacts: Path) -> None:
    """Writes what a run of two steps leaves."""
    logging.getLogger("grpo_gsm8k").info("filled")
    values = {"model_id": "tiny", "temperature": 1.0, "eval_temperature": 0.0, "eval_max_new_tokens": 40, "seed": 1}
    values["group_size"] = 1
    run.write_json("config.json", {"values": values, "sources": dict.fromkeys(values, "flag")})
    run.write_json("sys/git.json", {"sha": "1234567890" * 4, "branch": "main", "dirty": True, "left_out": []})
    run.write_json("sys/world.json", {"code": "c0de", "determinism": "strict", "num_threads": "1", "gpu": "none"})
    toggles = [{"name": "PYTHONHASHSEED", "asked": "0", "got": "1", "decided_by": "environment", "held": False}]
    run.write_json("sys/determinism.json", toggles)
    data = artifacts / "train.jsonl"
    data.write_bytes(b'{"question": "1 + 1?"}\n')
    row = {"dataset": "tiny", "split": "train", "path": str(data.resolve()), "rows": 1}
    run.write_json("data.json", {"files": [{**row, "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}]})
    for step in (0, 2):
        evaluate(run, step, [number < 1 + step for number in range(NUM_PROBLEMS)])
    for step in (1, 2):
        rollouts = [make_rollout(number) for number in range(3)]
        advantages = [0.5, -0.25, -0.25]
        run.append("metrics.jsonl", {"step": step, "reward/mean": 1 / 3, "train/loss": -0.01, "optim/grad_norm": 0.5})
        line = {
            "data": sha256([[f"t{number}", 0] for number in range(3)]),
            "prompt": sha256_packed(*(("<3q", 2, 5, number) for number in range(3))),
            "sampled_tokens": sha256_packed(*(("<3q2d", 2, 7, number, -0.5, -0.25) for number in range(3))),
            "reward": sha256([[float(number == 0), "correct" if number == 0 else "wrong"] for number in range(3)]),
            "advantage": sha256(advantages),
        }
        run.append("ledger.jsonl", {"step": step, **line, "loss": [-0.01], "grad_norm": [0.5], "weights": f"w{step}"})
    write_rollouts(run, 2, rollouts, advantages=advantages)
    with Checkpoints(run, None).writing(2) as path:
        (path / "model.safetensors").write_bytes(b"weights" * 100)
        shutil.copyfile(Path(grpo_gsm8k.__file__).parent / "models/tiny/tokenizer.json", path / "tokenizer.json")
        data_sha256 = hashlib.sha256((run.path / "data.json").read_bytes()).hexdigest()
        state = {"step": 2, "weights": "w2", "config_sha256": sha256(values), "data_sha256": data_sha256}
        (path / "trainer_state.json").write_text(json.dumps(state))
    aggregate = json.loads((run.path / "eval/step_2.json").read_bytes())
    run.write_json("result.json", {"steps": 2, "weights_sha256": "w2", "last_eval_step": 2, "eval": aggregate})


def evaluate(run: RunDirectory, step: int, solved: list[bool]) -> None:
    """Writes an evaluation's rows, aggregate, metrics and ledger line."""
    for number, right in enumerate(solved):
        verdict = {"value": float(right), "answer": "7", "status": "correct" if right else "wrong", "explanation": ""}
        row = {"problem_id": f"p{number}", "sample_index": 0, "question": f"Question {number}?", "gold": "7", "prompt": ""}
        row |= {
            "prompt_token_ids": [3, number],
            "completion": f"{step}",
            "num_prompt_tokens": 2,
            "num_completion_tokens": 2,
            "stop_reason": "eos",
            "seed": number,
            "disagreement": False,
            "token_ids": [9, number],
            "scores": {"numeric": verdict},
        }
        run.append(f"eval/step_{step}.jsonl", row)
    accuracy = sum(solved) / len(solved)
    counts = {"correct": sum(solved), "wrong": len(solved) - sum(solved), "unparsed": 0, "error": 0}
    graders = {"numeric": {"accuracy": accuracy, "ci95": [0.0, 1.0], "wilson95": [0.0, 1.0], **counts}}
    numbers = {"step": step, "num_problems": len(solved), "num_samples": 1, "primary_grader": "numeric", "accuracy": accuracy}
    others = {"truncated": 0, "disagreements": 0, "mean_prompt_tokens": 2.0, "mean_completion_tokens": 2.0}
    run.write_json(f"eval/step_{step}.json", {**numbers, **others, "ci95": [0.0, 1.0], "graders": graders})
    run.append("metrics.jsonl", {"step": step, "eval/num_problems": len(solved), "eval/numeric/accuracy": accuracy})
    line = {
        "eval/data": sha256([[f"p{number}", f"Question {number}?", "7"] for number in range(len(solved))]),
        "eval/prompt": sha256([[3, number] for number in range(len(solved))]),
        "eval/sampled_tokens": sha256([[9, number] for number in range(len(solved))]),
        "eval/reward": sha256([["correct" if right else "wrong"] for right in solved]),
        "eval/rows": hashlib.sha256((run.path / f"eval/step_{step}.jsonl").read_bytes()).hexdigest(),
    }
    run.append("ledger.jsonl", {"step": step, **line})


def make_rollout(number: int) -> Rollout:
    """A rollout of two sampled tokens; the first is right."""
    return Rollout(
        problem=Problem(f"t{number}", "1 + 1?", "", "2"),
        sample_index=0,
        seed=number,
        prompt_token_ids=(5, number),
        token_ids=(7, number),
        sampled=(True, True),
        logprobs=(-0.5, -0.25),
        turns=(Turn(0, 2, "2", "eos"),),
        stop_reason="answered",
        score=Score(float(number == 0), "2", "correct" if number == 0 else "wrong"),
    )


def reseal(run: Path) -> None:
    """Does what a forger would: makes manifest.json and status.json fit the files as they are now."""
    manifest = json.loads((run / "manifest.json").read_bytes())
    for name in manifest["files"]:
        content = (run / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (run / "manifest.json").write_text(json.dumps(manifest))
    status = json.loads((run / "status.json").read_bytes())
    status["manifest_sha256"] = hashlib.sha256((run / "manifest.json").read_bytes()).hexdigest()
    (run / "status.json").write_text(json.dumps(status))
