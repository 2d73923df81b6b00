"""What an evaluation worker evaluates: a rendered eval set with graders, or an environment on a file of problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.rendered_eval import load_rendered_eval_set
from grpo_gsm8k.data.rows import load_problems
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.loops.eval_spec import EnvEvalSpec, EvalWorkerSpec
from grpo_gsm8k.loops.evaluate import EvalTask, Evaluation, evaluate_unrecorded
from grpo_gsm8k.loops.evaluate_env import EnvEvalTask, evaluate_env
from grpo_gsm8k.loops.grading import open_graders
from grpo_gsm8k.prompts import load_template, render_batch
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.types import Problem, Prompt, Sampling


@dataclass(frozen=True)
class EvalWork:
    """An evaluation that can be done for one step after another: `evaluate(run, engine, step)`.

    `sampling` is that of a first turn, `versions` is by grader (or environment) name.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    versions: Mapping[str, str]
    evaluate: Callable[[RunDirectory, Engine, int], Evaluation]


def open_work(spec: EvalWorkerSpec, tokenizer: Any, stack: ExitStack) -> EvalWork:
    """Returns the work of a spec; what it opens is closed with `stack`.

    Raises: DataError, PromptError, ConfigError; ProofError when the template is not the one that the spec names.
    """

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    if spec.env is not None:
        return _open_env(spec, spec.env, tokenizer, decode, stack)
    problems, prompts = load_eval_set(spec, tokenizer)
    graders = stack.enter_context(open_graders(spec.graders))

    def evaluate(run: RunDirectory, engine: Engine, step: int) -> Evaluation:
        task = EvalTask(
            problems=problems,
            prompts=prompts,
            graders=graders.grade,
            sampling=spec.sampling,
            num_samples=spec.num_samples,
            seed=spec.seed,
            batch_size=spec.batch_size or engine.capabilities.batch_size,
            repeats=spec.determinism == "strict" and engine.capabilities.repeats,
        )
        return evaluate_unrecorded(run, task, engine, decode, step)

    return EvalWork(prompts, spec.sampling, graders.versions, evaluate)


def load_eval_set(spec: EvalWorkerSpec, tokenizer: Any) -> tuple[list[Problem], list[Prompt]]:
    """Returns the problems and prompts of the spec's rendered eval set. Raises: DataError."""
    items = load_rendered_eval_set(Path(spec.eval_set_path), tokenizer)[: spec.eval_examples]
    return [problem for problem, _ in items], [prompt for _, prompt in items]


def _open_env(
    spec: EvalWorkerSpec, told: EnvEvalSpec, tokenizer: Any, decode: Callable[[Sequence[int]], str], stack: ExitStack
) -> EvalWork:
    from grpo_gsm8k.envs.registry import make_env
    from grpo_gsm8k.turns import observation_renderer

    template = load_template(told.template)
    if template.sha256 != told.template_sha256:
        raise ProofError(f"template {told.template} changed since the trainer read it; leave it alone while the run goes on")
    problems = load_problems(Path(spec.eval_set_path))[: spec.eval_examples]
    prompts = render_batch(tokenizer, problems, template=template)
    env = make_env(told.name, splits={"test": problems}, **told.options)
    stack.callback(env.close)
    renderer = observation_renderer(env, tokenizer, template) if told.limits.max_turns > 1 else None
    task = EnvEvalTask(
        env=env,
        problems=problems,
        prompts=prompts,
        sampling=spec.sampling,
        limits=told.limits,
        num_samples=spec.num_samples,
        seed=spec.seed,
        extend=renderer.extend if renderer else None,
    )

    def evaluate(run: RunDirectory, engine: Engine, step: int) -> Evaluation:
        return evaluate_env(run, task, engine, decode, step)

    per_turn, whole = told.limits.max_tokens_per_turn, told.limits.max_tokens
    first_turn = replace(spec.sampling, max_tokens=per_turn if whole is None else min(per_turn, whole))
    return EvalWork(prompts, first_turn, {env.name: env.version}, evaluate)
