"""`eval`: data, prompts, engine and graders put together around the evaluation loop."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.commands.choices import choose, log_choices
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.resume import OPTIONS
from grpo_gsm8k.commands.start import Started, is_complete, record_data, report_on, started, write_config
from grpo_gsm8k.config import EvalConfig
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.runs.storage import make_folder, write_bytes, write_text

log = logging.getLogger("grpo_gsm8k")


@config_command(EvalConfig, "eval", extra=OPTIONS)
def command(resolved: Resolved[EvalConfig], resume: str | None, allow_changes: bool) -> None:
    """Evaluate a model on verifiable problems: prepare data, sample, grade, report.

    With no option at all: Qwen2.5-Math-1.5B on GSM8K where there is a GPU, the packaged tiny model on its own held-out word
    problems where there is none. Leaves a run directory under artifacts/runs and the rows in artifacts/baselines.
    """
    run_eval(resolved, resume, allow_changes)


def run_eval(resolved: Resolved[EvalConfig], resume: str | None, allow_changes: bool, *, prepare_data: bool = True) -> None:
    """Runs an evaluation from its config; `prepare_data` False takes `eval_path` as it is (fast_eval_vllm)."""
    if is_complete(resume, resolved, "eval", allow_changes):
        return
    with started("eval", resolved, resume=resume, allow_changes=allow_changes) as start:
        evaluate_started(start, prepare_data)
    report_on(start.run)


def evaluate_started(start: Started[EvalConfig], prepare_data: bool) -> None:
    """Does the work of an evaluation inside its run."""
    from grpo_gsm8k.commands.assembly import load_eval_set, open_engine, open_graders, open_tokenizer, render
    from grpo_gsm8k.engines.protocol import require
    from grpo_gsm8k.loops.evaluate import EvalTask, evaluate, journal_name
    from grpo_gsm8k.prompts import load_template
    from grpo_gsm8k.runs.metrics import METRICS, MetricsWriter, open_trackers
    from grpo_gsm8k.types import Sampling

    run = start.run
    start.resolved = choose(start.resolved)  # changes nothing on a resumed run whose choices were made
    write_config(run, start.resolved)
    log_choices(start.resolved)
    config = start.resolved.config
    if config.engine != "openai":
        start.configure_torch()
    template = load_template(config.template)
    write_text(run.path / "template.txt", template.source)
    tokenizer = open_tokenizer(config)
    eval_set = load_eval_set(config, prepare_data, template)
    record_data(start, eval_set.files)
    render(config, eval_set, tokenizer, window=None)  # what is wrong with a prompt is said before an engine is loaded
    with open_graders(config.graders) as graders, open_engine(config) as engine:
        described = dict(engine.describe())
        require(engine, per_request_seeds=config.temperature > 0)
        start.write_sys("engine.json", described)
        trackers = open_trackers(run, config, name=config.run_name, config=start.resolved.record()["values"])
        metrics = MetricsWriter(run, trackers)
        task = EvalTask(
            problems=eval_set.problems,
            prompts=render(config, eval_set, tokenizer, window=described.get("window_tokens")),
            graders=graders.grade,
            sampling=Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens, template.stop),
            num_samples=config.num_samples,
            seed=config.seed,
            batch_size=config.batch_size or engine.capabilities.batch_size,
            repeats=start.mode == "strict" and engine.capabilities.repeats,
        )
        outcome = evaluate(run, task, engine, lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))
        start.write_sys("engine.json", dict(engine.describe()))
    times = outcome.pop("times")
    baseline = publish_rows(start)
    if not run.read(METRICS):  # a run that was stopped between this and its end has them already
        metrics.log(0, {**headline_metrics(outcome), **times})
    metrics.close()
    run.write_json("result.json", {**outcome, "grader_versions": graders.versions, "times": times})
    (run.path / journal_name(0)).unlink(missing_ok=True)
    click.echo(summary(config, outcome, times))
    click.echo(f"rows    {baseline}")


def headline_metrics(outcome: Mapping[str, Any]) -> dict[str, float]:
    """Returns an evaluation's numbers as flat metrics."""
    metrics = {"eval/num_problems": outcome["num_problems"], "eval/truncated": outcome["truncated"]}
    metrics["eval/disagreements"] = outcome["disagreements"]
    if outcome["mean_completion_tokens"] is not None:
        metrics["eval/mean_completion_tokens"] = outcome["mean_completion_tokens"]
    for name, grader in outcome["graders"].items():
        low, high = grader["ci95"]
        metrics |= {f"eval/{name}/accuracy": grader["accuracy"], f"eval/{name}/ci95_low": low, f"eval/{name}/ci95_high": high}
        metrics |= {f"eval/{name}/{status}": grader[status] for status in ("correct", "wrong", "unparsed", "error")}
    for key in ("pass_at_k", "maj_at_k"):
        metrics |= {f"eval/{key.replace('_k', '')}_{k}": value for k, value in outcome[key].items()}
    return metrics


def publish_rows(start: Started[EvalConfig]) -> Path:
    """Copies the run's rows to artifacts/baselines/<name>.jsonl, whole, and returns that path."""
    config = start.resolved.config
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in config.run_name or default_name(config))
    target = Path(config.artifacts_dir) / "baselines" / f"{name}.jsonl"
    rows = (start.run.path / "eval" / "step_0.jsonl").read_bytes()
    if target.exists() and target.read_bytes() != rows:
        log.info("%s: replaces the rows of an earlier run, which stay in its run directory", target)
    make_folder(target.parent)
    write_bytes(target, rows)
    return target


def default_name(config: EvalConfig) -> str:
    """Returns what an evaluation is called unless run_name says otherwise: model, data, and what is not the default."""
    data = Path(config.eval_path).stem if config.eval_path else f"{config.dataset}_{config.split}"
    parts = [
        Path(config.model_id).name,
        *([Path(config.adapter).name] if config.adapter else []),
        data,
        Path(config.template).stem,
    ]
    parts += [f"{config.k_shot}shot"] if config.k_shot else []
    parts += [f"T{config.temperature:g}"] if config.temperature else []
    parts += [f"n{config.num_samples}"] if config.num_samples > 1 else []
    return "_".join([*parts, *([f"first{config.limit}"] if config.limit else [])])


def summary(config: EvalConfig, outcome: dict[str, Any], times: dict[str, float]) -> str:
    """Returns the final table as a person reads it."""
    what = config.eval_path or f"{config.dataset}/{config.split}"
    how = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}, {config.num_samples} sample(s) each"
    width = min(shutil.get_terminal_size().columns, 100)
    lines = ["─" * width, f"{config.model_id} on {what}: {outcome['num_problems']} problems, {how}, engine {config.engine}"]
    for name, grader in outcome["graders"].items():
        low, high = grader["ci95"]
        counts = "  ".join(f"{status} {grader[status]}" for status in ("correct", "wrong", "unparsed", "error"))
        lines.append(f"  {name:<13} {100 * grader['accuracy']:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]   {counts}")
    for key, label in (("pass_at_k", "pass@"), ("maj_at_k", "maj@")):
        if outcome[key]:
            lines.append("  " + "  ".join(f"{label}{k} {100 * value:.1f} %" for k, value in outcome[key].items()))
    lines.append(f"  truncated {outcome['truncated']}   graders disagree on {outcome['disagreements']}")
    apart, paired = outcome["minimum_detectable_difference"], outcome["minimum_detectable_difference_paired"]
    shown = [
        f"{100 * value:.1f} points {how}" for value, how in ((paired, "on the same problems"), (apart, "on others")) if value
    ]
    lines.append(f"  a difference that this many problems can show: {', '.join(shown) or 'none, they are too few'}")
    if outcome["mean_completion_tokens"] is None:
        lines.append("  tokens: not known, the server gives no token ids")
    else:
        lines.append(
            f"  {outcome['mean_completion_tokens']:.1f} tokens a completion, {times['time/tokens_per_s']:,.0f} tokens/s"
        )
    return "\n".join([*lines, "─" * width])
