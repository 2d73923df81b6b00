"""`grpo`: environment, engine, learner, evaluator and record put together around the GRPO loop."""

from __future__ import annotations

import logging
from typing import Any

from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.resume import OPTIONS
from grpo_gsm8k.commands.start import Started, is_complete, report_on, started
from grpo_gsm8k.commands.unread import COMMAND_LINE, unread_by_update, warn_unread
from grpo_gsm8k.config_rl import GrpoConfig
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.runs.metrics import METRICS

log = logging.getLogger("grpo_gsm8k")

PARTS = (
    *("baseline", "scale", "ratio", "clip_low", "clip_high", "denominator", "kl_beta", "kl_estimator", "advantage_eps"),
    *("overlong_buffer", "overlong_penalty", "zero_variance"),
)


def with_own_parts(resolved: Resolved[GrpoConfig]) -> Resolved[GrpoConfig]:
    """Returns the config in which an algorithm that was named on the command line has its own parts, not a preset's.

    Raises: ConfigError for parts that contradict one another, before a run is begun.
    """
    resolved = _without_others(resolved)
    algorithm_of(resolved.config)
    return resolved


def _without_others(resolved: Resolved[GrpoConfig]) -> Resolved[GrpoConfig]:
    if resolved.sources["algorithm"] not in COMMAND_LINE:
        return resolved
    for part in PARTS:
        if getattr(resolved.config, part) is not None and resolved.sources[part] not in COMMAND_LINE:
            why = f"algorithm {resolved.config.algorithm} is named, so {resolved.sources[part]} does not say its {part}"
            resolved = resolved.filled(part, None, why)
    return resolved


@config_command(GrpoConfig, "grpo", extra=OPTIONS, refine=with_own_parts)
def command(resolved: Resolved[GrpoConfig], resume: str | None, allow_changes: bool) -> None:
    """Train a model by reinforcement on verifiable problems: GRPO and its relatives (--algorithm).

    Each step samples a group of rollouts a problem, scores them, and updates the weights by how they compare; a process of its
    own evaluates on held-out problems. --resume goes on exactly where a checkpoint left off.
    """
    if is_complete(resume, resolved, "grpo", allow_changes):
        return
    with started("grpo", resolved, resume=resume, allow_changes=allow_changes) as start:
        train_started(start)
    report_on(start.run)


def train_started(start: Started[GrpoConfig]) -> None:
    """Does the work of a GRPO run inside its run."""
    from grpo_gsm8k.commands.reward_training import collector_of, longest_rollout, open_parts, prepare_run
    from grpo_gsm8k.commands.sft import finish
    from grpo_gsm8k.commands.training import RatedSchedule, open_record, rate_of
    from grpo_gsm8k.loops.curriculum import PassOrder, PassRateOrder
    from grpo_gsm8k.loops.grpo import LEARNABLE, GrpoTask, RolloutSource, train

    algorithm = algorithm_of(start.resolved.config)  # what contradicts itself is said before anything is loaded
    prepared = prepare_run(start)
    config: GrpoConfig = prepared.config
    material = prepared.material
    warn_unread(start.resolved, unread_by_update(config, algorithm.zero_variance))
    longest = longest_rollout(config, material)
    algorithm.overlong_tokens(longest)
    if config.prompts_per_step > len(material.train):
        raise ConfigError(
            f"prompts_per_step is {config.prompts_per_step}; allowed is 1 to {len(material.train)}, as there are problems"
        )
    order = (PassRateOrder if config.curriculum == "pass_rate" else PassOrder)(material.train, config.seed)
    collector = collector_of(config, material, order, config.max_resamples if algorithm.zero_variance == "resample" else 0)
    schedule = RatedSchedule(config.max_steps, config.eval_every, config.save_every, rate_of(config, config.max_steps))
    log.info("%s", algorithm)
    log.info(
        "%s on %s: %d problems, %d steps of %d x %d rollouts, evaluated on %d problems every %d steps",
        *(algorithm.name, config.env, len(material.train), config.max_steps, config.prompts_per_step, config.group_size),
        *(material.num_eval, config.eval_every),
    )
    learner_options = {"temperature": config.temperature, "entropy": True, "keep_reference": algorithm.kl_beta > 0}
    with open_parts(start, prepared, **learner_options) as parts:
        rollouts = RolloutSource(
            collector, parts.sampler, config.prompts_per_step, config.max_steps, ahead=config.overlap == "one_step_off"
        )
        try:
            record = open_record(start, parts.learner, parts.evaluator, schedule, prepared.tokenizer, rollouts)
            if start.resumed:
                parts.sync.publish(0)
            gate = open_gate(start, config, parts, prepared.tokenizer)
            task = GrpoTask(
                collector=collector,
                plan=plan_of(config, algorithm, longest),
                num_groups=config.prompts_per_step,
                num_steps=config.max_steps,
                learning_rate=schedule.learning_rate,
                seed_step=start.seed_step,
                check_ratio=gate,
                check_rollouts=gate.check_rollouts,
                save_rollouts_every=config.save_rollouts_every,
                patience=config.zero_variance_patience,
            )
            evals = train(task, start.run, parts.learner, rollouts, parts.sync, record)
        finally:
            rollouts.close()
        digest = parts.learner.weights_digest()
    finish(start, evals, digest, config.max_steps)
    silent = sum(row.get(LEARNABLE) == 0 for row in start.run.read(METRICS))
    if silent:
        log.warning("%d of %d steps had nothing to learn from: no rollout had an advantage", silent, config.max_steps)


def algorithm_of(config: GrpoConfig) -> Any:
    """Returns the algorithm of a config, its parts replaced where the config says so. Raises: ConfigError."""
    from dataclasses import fields

    from grpo_gsm8k.algorithms.algorithm import Algorithm, check_group_size, with_parts
    from grpo_gsm8k.algorithms.registry import find_algorithm

    names = {field.name for field in fields(Algorithm)} & {field.name for field in fields(config)}
    parts = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    algorithm = with_parts(find_algorithm(config.algorithm), **parts)
    check_group_size(algorithm, config.group_size)
    if config.overlap != "none" and algorithm.objective == "reinforce":
        raise ConfigError(
            f"overlap {config.overlap} trains on rollouts of older weights, and {algorithm.name} has no ratio to correct for "
            "that; choose an algorithm with one (grpo, dr_grpo, dapo, gspo, cispo)"
        )
    return algorithm


def plan_of(config: GrpoConfig, algorithm: Any, max_tokens: int) -> Any:
    """Returns how rollouts of at most `max_tokens` sampled tokens become updates."""
    from grpo_gsm8k.loops.policy_update import PolicyUpdate

    return PolicyUpdate(
        algorithm=algorithm,
        max_tokens=max_tokens,
        num_updates=config.num_updates_per_rollout,
        num_minibatches=config.num_minibatches,
        correction=config.correction,
        correction_cap=config.correction_cap,
        mask_truncated=config.mask_truncated,
        stale=config.overlap == "one_step_off",
        seed=config.seed,
    )


def open_gate(start: Started[GrpoConfig], config: GrpoConfig, parts: Any, tokenizer: Any) -> Any:
    """Returns what checks, before the first update, that learner and engine are the same policy."""
    from grpo_gsm8k.loops.ratio_gate import RatioGate

    return RatioGate(
        learner=parts.learner,
        engine=parts.engine,
        sync=parts.sync,
        sampling=parts.sampling,
        tokenizer=tokenizer,
        tolerance=config.ratio_tolerance,
        on_pass=lambda record: start.write_sys("ratio_gate.json", record),
    )
