"""Evaluation of an environment: rollouts on fixed problems, in the same files and the same record as loops/evaluate.py.

The environment is the grader: its name is the headline's, and accuracy is the share of rollouts with status "correct". A row
has what a plain evaluation's has, and the turns, the sampled mask and the environment's own numbers besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_gsm8k.algorithms.summary import summarise
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.envs.protocol import Environment
from grpo_gsm8k.loops.evaluate import Evaluation
from grpo_gsm8k.loops.rollouts import Extend, RolloutLimits, RolloutRequest, RolloutSampler, turn_seeds
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.rollout_files import rollout_row
from grpo_gsm8k.runs.storage import json_line, make_folder, write_bytes
from grpo_gsm8k.types import Problem, Prompt, Rollout, Sampling


@dataclass(frozen=True)
class EnvEvalTask:
    """What is evaluated: an environment on problems with their prompts (same order), and how its rollouts are sampled.

    `extend` renders observations (see loops/rollouts.py); None for an environment of one turn.
    """

    env: Environment
    problems: Sequence[Problem]
    prompts: Sequence[Prompt]
    sampling: Sampling
    limits: RolloutLimits
    num_samples: int
    seed: int
    extend: Extend | None = None


def evaluate_env(
    run: RunDirectory, task: EnvEvalTask, engine: Engine, decode: Callable[[Sequence[int]], str], step: int
) -> Evaluation:
    """Returns the evaluation of `task`; writes eval/step_<n>.jsonl and eval/step_<n>.json and leaves the ledger alone.

    Raises: ConfigError, ProofError as RolloutSampler; what the engine raises.
    """
    sampler = RolloutSampler(task.env, engine, task.sampling, task.limits, decode, task.extend)
    requests = [
        RolloutRequest(problem, prompt, sample_index)
        for problem, prompt in zip(task.problems, task.prompts, strict=True)
        for sample_index in range(task.num_samples)
    ]
    batch = sampler.sample(requests, turn_seeds(task.seed, step))
    rows = [
        make_env_row(task.env.name, request.prompt, rollout, decode(rollout.token_ids))
        for request, rollout in zip(requests, batch.rollouts, strict=True)
    ]
    aggregate = summarise(rows, (task.env.name,), step=step, seed=task.seed) | {"rollouts": summarise_rollouts(batch.rollouts)}
    path = run.path / f"eval/step_{step}.jsonl"
    make_folder(path.parent)
    content = b"".join(json_line(row) for row in rows)
    write_bytes(path, content)
    run.write_json(f"eval/step_{step}.json", aggregate)
    times = {
        "time/sample_s": batch.sample_s,
        "time/grade_s": batch.score_s,
        "time/tokens_per_s": batch.num_tokens / batch.sample_s if batch.sample_s else 0.0,
    }
    return Evaluation(aggregate, {**_stages(task, batch.rollouts), "rows": content}, times)


def make_env_row(env_name: str, prompt: Prompt, rollout: Rollout, text: str) -> dict[str, Any]:
    """Returns one line of eval/step_<n>.jsonl; `text` is all that follows the prompt, the environment's part included."""
    row = rollout_row(rollout)
    score = row.pop("score")
    return {
        **row,
        "prompt": prompt.text,
        "completion": text,
        "num_prompt_tokens": len(rollout.prompt_token_ids),
        "num_completion_tokens": rollout.num_sampled,
        "scores": {env_name: score},
        "disagreement": False,
    }


def summarise_rollouts(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Returns what only rollouts have: mean score and turns, how many ended by what, means of the environment's numbers
    (each over the rollouts that have it)."""
    metrics: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.metrics.items():
            metrics.setdefault(name, []).append(value)
    return {
        "mean_score": float(np.mean([rollout.score.value for rollout in rollouts])),
        "mean_turns": float(np.mean([len(rollout.turns) for rollout in rollouts])),
        "stop_reasons": dict(sorted(Counter(rollout.stop_reason for rollout in rollouts).items())),
        "metrics": {name: float(np.mean(values)) for name, values in sorted(metrics.items())},
    }


def _stages(task: EnvEvalTask, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    return {
        "data": [[problem.id, problem.question, problem.gold] for problem in task.problems],
        "prompt": [list(prompt.token_ids) for prompt in task.prompts],
        "sampled_tokens": [list(rollout.token_ids) for rollout in rollouts],
        "reward": [[rollout.score.status, rollout.score.value] for rollout in rollouts],
    }
