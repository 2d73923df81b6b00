"""Evaluation: sample, score, record. Every completion is on disk as it finishes; resumed equals uninterrupted.

The order of the work is a function of the prompts alone: requests are sorted by prompt length and cut into batches of fixed
composition. An engine's arithmetic depends in its last bits on what shares a batch; so a batch that an interruption cut short
is sampled again whole, and what was already on disk must come out the same, or the run stops.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_gsm8k.algorithms.summary import summarise
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.rewards.registry import disagree
from grpo_gsm8k.runs.determinism import derive_seed
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.metrics import write_ledger
from grpo_gsm8k.runs.progress import Progress
from grpo_gsm8k.runs.storage import json_line, write_bytes
from grpo_gsm8k.types import Completion, Problem, Prompt, Sampling, Score

log = logging.getLogger("grpo_gsm8k")

Grade = Callable[[Sequence[Problem], Sequence[str]], list[Score]]


@dataclass(frozen=True)
class EvalTask:
    """What is evaluated: problems and their prompts (same order), graders by name (the first is the headline), sampling.

    `repeats`: the engine gives the same bits when the same batch is sampled again, so that a batch which an interruption cut
    short is sampled again whole and compared; where it does not, only what is missing is sampled.
    """

    problems: Sequence[Problem]
    prompts: Sequence[Prompt]
    graders: Mapping[str, Grade]
    sampling: Sampling
    num_samples: int
    seed: int
    batch_size: int
    repeats: bool


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample: `index` counts requests problem by problem, sample by sample."""

    index: int
    problem_index: int
    sample_index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation's aggregate, the values whose digests are the ledger's line, and what it took (keys under `time/`)."""

    aggregate: dict[str, Any]
    stages: dict[str, Any]
    times: dict[str, float]


def evaluate(
    run: RunDirectory, task: EvalTask, engine: Engine, decode: Callable[[Sequence[int]], str], step: int = 0
) -> dict[str, Any]:
    """Returns the aggregate of evaluating `task`; writes eval/step_<n>.jsonl, eval/step_<n>.json and the ledger's line.

    Raises: ProofError when a resumed completion differs from the one on disk; what the engine raises.
    """
    done = evaluate_unrecorded(run, task, engine, decode, step)
    if not any(line["step"] == step for line in run.read("ledger.jsonl")):
        write_ledger(run, step, done.stages)
    return {**done.aggregate, "times": done.times}


def evaluate_unrecorded(
    run: RunDirectory, task: EvalTask, engine: Engine, decode: Callable[[Sequence[int]], str], step: int
) -> Evaluation:
    """Returns the evaluation of `task`; writes its two files under eval/ and leaves the ledger to its one writer.

    Raises: ProofError when a resumed completion differs from the one on disk; what the engine raises.
    """
    journal = journal_name(step)
    kept = {line["index"]: _completion(line) for line in run.read(journal)}
    requests = plan_requests(task, step)
    texts: dict[int, str] = {}
    scores: dict[int, dict[str, Score]] = {}
    clock = {"sample_s": 0.0, "grade_s": 0.0, "tokens": 0}
    headline = next(iter(task.graders))
    if kept:
        log.info("resuming: %d of %d completions are on disk", len(kept), len(requests))
    with Progress(f"eval step {step}", len(requests)) as progress:
        for batch in plan_batches(requests, task):
            before = sum(request.index in kept for request in batch)
            began = time.monotonic()
            clock["tokens"] += _sample(run, journal, batch, task, engine, kept, lambda: progress.update())
            sampled = time.monotonic()
            _grade(batch, task, kept, decode, texts, scores)
            clock["sample_s"] += sampled - began
            clock["grade_s"] += time.monotonic() - sampled
            correct = sum(given[headline].status == "correct" for given in scores.values())
            progress.update(before, note=f"{headline} {correct / len(scores):.3f}")
    run.close_file(journal)
    rows = [make_row(task, request, kept[request.index], texts[request.index], scores[request.index]) for request in requests]
    aggregate = summarise(rows, tuple(task.graders), step=step, seed=task.seed)
    content = b"".join(json_line(row) for row in rows)
    write_bytes(run.path / f"eval/step_{step}.jsonl", content)
    run.write_json(f"eval/step_{step}.json", aggregate)
    rate = clock["tokens"] / clock["sample_s"] if clock["tokens"] else 0.0
    times = {"time/sample_s": clock["sample_s"], "time/grade_s": clock["grade_s"], "time/tokens_per_s": rate}
    return Evaluation(aggregate, {**_stages(task, rows), "rows": content}, times)


def journal_name(step: int) -> str:
    """Returns where in the run completions are kept as they finish; whoever ends the run removes it last."""
    return f"eval/step_{step}.partial.jsonl"


def plan_requests(task: EvalTask, step: int) -> list[Request]:
    """Returns every request in problem order, each with the seed of its address."""
    requests: list[Request] = []
    for problem_index, problem in enumerate(task.problems):
        for sample_index in range(task.num_samples):
            seed = derive_seed(task.seed, step, problem.id, sample_index)
            requests.append(Request(len(requests), problem_index, sample_index, seed))
    return requests


def plan_batches(requests: Iterable[Request], task: EvalTask) -> list[list[Request]]:
    """Returns the batches: longest prompts first (memory runs out at once or never), a problem's samples side by side."""
    ordered = sorted(requests, key=lambda request: (-len(task.prompts[request.problem_index].token_ids), request.index))
    return [ordered[start : start + task.batch_size] for start in range(0, len(ordered), task.batch_size)]


def _sample(
    run: RunDirectory,
    journal: str,
    batch: Sequence[Request],
    task: EvalTask,
    engine: Engine,
    kept: dict[int, Completion],
    on_new: Callable[[], None],
) -> int:
    """Samples what the journal does not hold of a batch; returns how many tokens were sampled."""
    missing = [request for request in batch if request.index not in kept]
    if not missing:
        return 0
    wanted = list(batch) if task.repeats else missing
    num_tokens = 0

    def record(position: int, completion: Completion) -> None:
        nonlocal num_tokens
        num_tokens += len(completion.token_ids)
        request = wanted[position]
        earlier = kept.get(request.index)
        if earlier is None:
            kept[request.index] = completion
            run.append(journal, {"index": request.index, **_fields(completion)})
            on_new()
        elif earlier != completion:
            problem = task.problems[request.problem_index].id
            raise ProofError(
                f"{problem}, sample {request.sample_index}: sampled again after the interruption, it differs from what is "
                "on disk, so this engine does not repeat itself here; start a new run (see sys/determinism.json)"
            )

    prompts = [task.prompts[request.problem_index] for request in wanted]
    engine.generate(prompts, task.sampling, [request.seed for request in wanted], record)
    lost = [request.index for request in batch if request.index not in kept]
    if lost:
        raise ProofError(f"the engine {engine.name} gave no completion for {len(lost)} of {len(batch)} requests")
    return num_tokens


def _grade(
    batch: Sequence[Request],
    task: EvalTask,
    kept: Mapping[int, Completion],
    decode: Callable[[Sequence[int]], str],
    texts: dict[int, str],
    scores: dict[int, dict[str, Score]],
) -> None:
    for request in batch:
        completion = kept[request.index]
        texts[request.index] = completion.text or "" if not completion.token_ids else decode(completion.token_ids)
    problems = [task.problems[request.problem_index] for request in batch]
    answers = [texts[request.index] for request in batch]
    given = {name: grade(problems, answers) for name, grade in task.graders.items()}
    for position, request in enumerate(batch):
        scores[request.index] = {name: verdicts[position] for name, verdicts in given.items()}


def make_row(
    task: EvalTask, request: Request, completion: Completion, text: str, scores: Mapping[str, Score]
) -> dict[str, Any]:
    """Returns one line of eval/step_<n>.jsonl; nothing in it depends on time, order or machine load."""
    problem, prompt = task.problems[request.problem_index], task.prompts[request.problem_index]
    return {
        "problem_id": problem.id,
        "sample_index": request.sample_index,
        "seed": request.seed,
        "question": problem.question,
        "gold": problem.gold,
        "prompt": prompt.text,
        "prompt_token_ids": list(prompt.token_ids),
        "completion": text,
        "token_ids": list(completion.token_ids),
        "logprobs": None if completion.logprobs is None else list(completion.logprobs),
        "stop_reason": completion.stop_reason,
        "num_prompt_tokens": len(prompt.token_ids) or None,
        "num_completion_tokens": len(completion.token_ids) or (None if completion.text else 0),
        "scores": {name: _fields(score) for name, score in scores.items()},
        "disagreement": disagree(scores),
    }


def _fields(record: Completion | Score) -> dict[str, Any]:
    """Returns a record's fields by name; dataclasses.asdict copies every token on the way, which costs more than grading."""
    return {name: getattr(record, name) for name in record.__slots__}


def _completion(line: Mapping[str, Any]) -> Completion:
    logprobs = line["logprobs"]
    return Completion(
        tuple(line["token_ids"]), None if logprobs is None else tuple(logprobs), line["stop_reason"], line["text"]
    )


def _stages(task: EvalTask, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "data": [[problem.id, problem.question, problem.gold] for problem in task.problems],
        "prompt": [list(prompt.token_ids) for prompt in task.prompts],
        "sampled_tokens": [row["token_ids"] or row["completion"] for row in rows],
        "reward": [[score["status"] for score in row["scores"].values()] for row in rows],
    }
