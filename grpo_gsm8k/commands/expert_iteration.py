"""`expert-iteration`: environment, engine, learner, evaluator and record put together around the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.resume import OPTIONS
from grpo_gsm8k.commands.start import Started, is_complete, report_on, started
from grpo_gsm8k.config_rl import ExpertIterationConfig
from grpo_gsm8k.options import Resolved

log = logging.getLogger("grpo_gsm8k")

FIRST_WEIGHTS = "first_weights"


@config_command(ExpertIterationConfig, "expert-iteration", extra=OPTIONS)
def command(resolved: Resolved[ExpertIterationConfig], resume: str | None, allow_changes: bool) -> None:
    """Improve a model on its own correct answers: sample, keep what is right, fine-tune on it, and again.

    What was kept of a round, and why the rest was not, is in the run's expert_data/. eval_every, save_every and
    save_rollouts_every count rounds. --resume goes on exactly where a checkpoint left off.
    """
    if is_complete(resume, resolved, "expert-iteration", allow_changes):
        return
    with started("expert-iteration", resolved, resume=resume, allow_changes=allow_changes) as start:
        train_started(start)
    report_on(start.run)


def train_started(start: Started[ExpertIterationConfig]) -> None:
    """Does the work of an expert iteration inside its run."""
    from grpo_gsm8k.commands.reward_training import collector_of, open_parts, prepare_run
    from grpo_gsm8k.commands.sft import finish
    from grpo_gsm8k.commands.training import open_record
    from grpo_gsm8k.loops.curriculum import PassOrder
    from grpo_gsm8k.loops.expert_iteration import ExpertIterationTask, Keeping, train
    from grpo_gsm8k.loops.training import Schedule

    prepared = prepare_run(start)
    config: ExpertIterationConfig = prepared.config
    material = prepared.material
    schedule = Schedule(config.num_rounds, config.eval_every, config.save_every)
    log.info(
        "expert iteration on %s: %d problems, %d rounds of %d x %d rollouts, evaluated on %d problems",
        *(config.env, len(material.train), config.num_rounds, config.prompts_per_round, config.group_size),
        material.num_eval,
    )
    with open_parts(start, prepared) as parts:
        task = ExpertIterationTask(
            collector=collector_of(config, material, PassOrder(material.train, config.seed)),
            keeping=Keeping(config.max_kept_per_problem, config.min_kept_tokens, config.max_kept_tokens),
            num_prompts=config.prompts_per_round,
            num_rounds=config.num_rounds,
            num_epochs=config.num_epochs,
            batch_size=config.sft_batch_size,
            seed=config.seed,
            learning_rate=_rate(config),
            seed_step=start.seed_step,
            begin_round=_begin_round(start, config, parts.learner),
            save_rollouts_every=config.save_rollouts_every,
        )
        record = open_record(start, parts.learner, parts.evaluator, schedule, prepared.tokenizer)
        if start.resumed:
            parts.sync.publish(0)
        evals = train(task, start.run, parts.learner, parts.sampler, parts.sync, record)
        digest = parts.learner.weights_digest()
    finish(start, evals, digest, config.num_rounds)


def _rate(config: ExpertIterationConfig) -> Callable[[int, int, int], float]:
    """The learning rate of (round, update, updates of the round): each round has a schedule of its own."""
    from grpo_gsm8k.learners.schedules import learning_rate

    def rate(number: int, update: int, total: int) -> float:
        warmup = min(config.warmup_steps, total)
        if update == 0 and warmup < config.warmup_steps:
            said = "round %d has %d updates, so its warm-up is all of them and not warmup_steps, %d: too few rollouts were kept"
            log.warning(said, number + 1, total, config.warmup_steps)
        floor = config.lr * config.lr_floor
        return learning_rate(update, total=total, warmup=warmup, kind=config.lr_schedule, peak=config.lr, floor=floor)

    return rate


def _begin_round(start: Started[Any], config: ExpertIterationConfig, learner: Any) -> Callable[[int], None]:
    """Where each round fine-tunes the first weights, they are kept in the run; called before a checkpoint is taken up."""
    if config.start_from == "current":
        return lambda number: None
    folder = start.run.path / FIRST_WEIGHTS
    folder.mkdir(exist_ok=True)
    learner.save_state(folder)
    return lambda number: learner.load_state(folder)
