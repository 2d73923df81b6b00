"""Run directories of runs that learn from rewards, made by the harness's own writers, and rollouts of the tiny tokenizer."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import grpo_gsm8k
from grpo_gsm8k.runs.checkpoints import Checkpoints
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.rollout_files import write_rollouts
from grpo_gsm8k.types import Problem, Rollout, RolloutStop, Score, Turn

TINY = Path(grpo_gsm8k.__file__).parent / "models" / "tiny"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))


def encode(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


def make_rollout(number: int, sample: int = 0, *, stop: RolloutStop = "answered", right: bool = True) -> Rollout:
    """A rollout of two turns with the environment's answer between them, its log-probs falling from -0.01 on."""
    question = f"Mia has {number} pens. Mia buys 5 more. How many pens does Mia have now?"
    first, said, second = (
        f"<calc>{number} + 5</calc>",
        f"<|im_end|>\n<|im_start|>user\n{number + 5}<|im_end|>\n",
        f"#### {number + 5}",
    )
    parts = [encode(first), encode(said + "<|im_start|>assistant\n"), encode(second + "<|im_end|>")]
    sampled = tuple(place != 1 for place, part in enumerate(parts) for _ in part)
    token_ids = tuple(token for part in parts for token in part)
    end = len(parts[0])
    return Rollout(
        problem=Problem(f"calculator/train/{number}", question, "", str(number + 5)),
        sample_index=sample,
        seed=100 * number + sample,
        prompt_token_ids=encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"),
        token_ids=token_ids,
        sampled=sampled,
        logprobs=tuple(-0.01 * (1 + place) * by_model for place, by_model in enumerate(sampled)),
        turns=(Turn(0, end, first, "stop"), Turn(end + len(parts[1]), len(token_ids), second, "eos")),
        stop_reason=stop,
        score=Score(float(right), str(number + 5), "correct" if right else "wrong"),
        metrics={"calls": 1.0},
    )


def make_reward_run(folder: Path, command: str = "grpo", num_steps: int = 40, *, tokenizer: bool = True) -> RunDirectory:
    """A finished run of `command`, evaluated at its beginning and its end."""
    run = RunDirectory.create(folder, command, [command])
    run.start()
    values = {"model_id": "tiny", "env": "calculator", "algorithm": "dr_grpo", "mask_truncated": True, "seed": 1}
    run.write_json("config.json", {"values": values, "sources": dict.fromkeys(values, "flag")})
    rng = random.Random(3)
    for step in range(1, num_steps + 1):
        run.append("metrics.jsonl", {"step": step, **step_metrics(step / num_steps, rng, command)})
    for step in (0, num_steps):
        accuracy = 0.36 + 0.56 * step / num_steps
        scores = {
            "accuracy": accuracy,
            "ci95": [accuracy - 0.04, accuracy + 0.04],
            "correct": 9,
            "wrong": 1,
            "unparsed": 0,
            "error": 0,
        }
        found = {
            "step": step,
            "num_problems": 10,
            "num_samples": 1,
            "primary_grader": "numeric",
            "graders": {"numeric": scores},
        }
        run.write_json(f"eval/step_{step}.json", {**found, "truncated": 0, "disagreements": 0, "mean_completion_tokens": 15.0})
        run.append(f"eval/step_{step}.jsonl")
    rollouts = [make_rollout(number, sample) for number in range(3, 7) for sample in range(4)]
    rollouts[5] = make_rollout(99, stop="length", right=False)
    trained = [number != 5 for number in range(len(rollouts))]
    for step in (1, num_steps):
        advantages = [rng.uniform(-1, 1) for _ in rollouts]
        own = [[value + 1e-6 for value, by_model in zip(r.logprobs, r.sampled, strict=True) if by_model] for r in rollouts]
        write_rollouts(run, step, rollouts, advantages=advantages, trained=trained, learner_logprobs=own)
    with Checkpoints(run, None).writing(num_steps) as path:
        (path / "model.safetensors").write_bytes(b"weights")
        if tokenizer:
            shutil.copyfile(TINY / "tokenizer.json", path / "tokenizer.json")
    run.write_json("result.json", {"steps": num_steps, "weights_sha256": "19d2", "last_eval_step": num_steps})
    run.finish("completed", None, 0)
    return run


def step_metrics(done: float, rng: random.Random, command: str) -> dict[str, Any]:
    """The metrics of a step; `done` goes from 0 to 1."""
    metrics = {
        "reward/mean": 0.4 + 0.5 * done + 0.02 * rng.random(),
        "reward/std": 0.3,
        "groups/distinct_rewards": 0.8 - 0.6 * done,
        "groups/distinct_answers": 0.9 - 0.6 * done,
        "groups/replaced": 0.0,
        "reward/zero_variance_groups": 3.0,
        "rollout/num": 256.0,
        "rollout/mean_tokens": 15 + 8 * done,
        "rollout/turns": 2.0,
        "rollout/truncated": 0.0,
        "rollout/stop_answered": 0.98,
        "rollout/stop_length": 0.02,
        "env/calls": 1.0 + done,
        "train/loss": rng.gauss(0, 0.01),
        "optim/lr": 3e-4 * (1 - done),
        "optim/grad_norm": 0.5 + 0.1 * rng.random(),
        "time/sample_s": 0.06,
        "time/score_s": 0.01,
        "time/update_s": 0.08,
        "time/publish_s": 0.002,
        "time/step_s": 0.16,
        "time/tokens_per_s": 40_000.0,
        "time/eval_wait_s": 0.0,
    }
    if command == "grpo":
        extra = {"policy/entropy": 0.4 * (1 - done), "policy/clip_low_fraction": 0.0, "policy/clip_high_fraction": 0.01 * done}
        extra |= {"policy/kl": 1e-4 * done, "policy/kl_k1": 1e-4, "policy/a_new_one": done, "time/advantage_s": 0.001}
        extra |= {"mismatch/mean_abs": 1e-7, "mismatch/max_abs": 3e-6, "mismatch/effective_sample_size": 1.0}
        return metrics | extra
    return metrics | {
        "ei/sampled": 256.0,
        "ei/kept": 100 + 60 * done,
        "ei/rejected_wrong": 90.0,
        "ei/rejected_duplicate": 66 - 60 * done,
    }
