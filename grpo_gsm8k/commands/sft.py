"""`sft`: training data, learner, evaluator and record put together around the SFT loop."""

from __future__ import annotations

import logging
from typing import Any

import click

from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.resume import OPTIONS
from grpo_gsm8k.commands.start import Started, is_complete, record_data, report_on, started
from grpo_gsm8k.config import SftConfig
from grpo_gsm8k.options import Resolved

log = logging.getLogger("grpo_gsm8k")


@config_command(SftConfig, "sft", extra=OPTIONS)
def command(resolved: Resolved[SftConfig], resume: str | None, allow_changes: bool) -> None:
    """Fine-tune a model on given responses, evaluated all along by a process of its own.

    Needs --data_path (pairs, chats or pretokenised shards) and --eval_set_path (made by `data render-eval`). Leaves a run
    directory with checkpoints that transformers and vLLM load; --resume goes on exactly where a checkpoint left off.
    """
    if is_complete(resume, resolved, "sft", allow_changes):
        return
    with started("sft", resolved, resume=resume, allow_changes=allow_changes) as start:
        train_started(start)
    report_on(start.run)


def train_started(start: Started[SftConfig]) -> None:
    """Does the work of a training run inside its run; what is wrong with data or eval set is said before weights are loaded."""
    from grpo_gsm8k.commands.training import (
        build_schedule,
        check_overlap,
        open_evaluator,
        open_learner,
        open_record,
        read_eval_set,
        read_examples,
    )
    from grpo_gsm8k.engines.loading import load_tokenizer
    from grpo_gsm8k.engines.model_files import model_record
    from grpo_gsm8k.loops.sft import SftTask, train

    config = start.resolved.config
    start.configure_torch()
    tokenizer = load_tokenizer(config.model_id, config.model_revision)
    eval_set = read_eval_set(config, tokenizer)
    data = read_examples(config, tokenizer)
    model = model_record(config.model_id, config.model_revision)
    record_data(start, {"files": [*model, {**data.record, "role": "training data"}, eval_set.record]})
    start.run.write_json("overlap.json", check_overlap(config, data, eval_set, tokenizer))
    schedule = build_schedule(config, len(data.sequences))
    log.info(
        "%d examples (%d dropped), %d steps of %d, evaluated on %d problems every %d steps",
        *(
            len(data.sequences),
            len(data.dropped),
            schedule.num_steps,
            config.batch_size,
            eval_set.num_problems,
            config.eval_every,
        ),
    )
    with open_evaluator(start, eval_set.path, eval_set.stop, config.graders) as evaluator:
        learner = open_learner(config)
        start.write_sys("learner.json", dict(learner.describe()))
        record = open_record(start, learner, evaluator, schedule, tokenizer)
        task = SftTask(
            examples=data.sequences,
            batch_size=config.batch_size,
            seed=config.seed,
            learning_rate=schedule.learning_rate,
            seed_step=start.seed_step,
        )
        evals = train(task, learner, record)
        digest = learner.weights_digest()
    finish(start, evals, digest, schedule.num_steps)


def finish(start: Started[Any], evals: dict[int, dict[str, Any]], weights_sha256: str, num_steps: int) -> None:
    """Writes result.json and prints the final table."""
    last = max(evals)
    result = {"steps": num_steps, "weights_sha256": weights_sha256, "last_eval_step": last, "eval": evals[last]}
    first = {key: evals[0][key] for key in ("accuracy", "ci95")} if 0 in evals else None
    start.run.write_json("result.json", {**result, "first_eval": first})
    click.echo("─" * 80)
    click.echo(f"{'step':>8}  {'accuracy':>9}  95 % interval")
    for step, aggregate in evals.items():
        low, high = aggregate["ci95"]
        click.echo(f"{step:>8}  {100 * aggregate['accuracy']:>7.1f} %  [{100 * low:.1f}, {100 * high:.1f}]")
    click.echo(f"weights {weights_sha256}")
    click.echo("─" * 80)
