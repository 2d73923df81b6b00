"""`eval`: data, prompts, engine and graders put together around the evaluation loop."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.commands.choices import choose, log_choices
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.start import Started, started
from grpo_gsm8k.config import EvalConfig
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.runs.directory import open_run, read_status

log = logging.getLogger("grpo_gsm8k")

RESUME = click.Option(["--resume"], metavar="RUN", help="Take up an interrupted run: a path, a name under runs/, or latest.")


@config_command(EvalConfig, "eval", extra=(RESUME,))
def command(resolved: Resolved[EvalConfig], resume: str | None) -> None:
    """Evaluate a model on verifiable problems: prepare data, sample, grade, report.

    With no option at all: Qwen2.5-Math-1.5B on GSM8K where there is a GPU, the packaged tiny model on its own held-out word
    problems where there is none. Leaves a run directory under artifacts/runs and the rows in artifacts/baselines.
    """
    run_eval(resolved, resume)


def run_eval(resolved: Resolved[EvalConfig], resume: str | None = None, *, prepare_data: bool = True) -> None:
    """Runs an evaluation from its config; `prepare_data` False takes `eval_path` as it is (fast_eval_vllm)."""
    if resume is not None:
        run = open_run(resume, Path(resolved.config.artifacts_dir))
        if read_status(run.path)["state"] == "completed":
            click.echo(f"nothing to resume: {run.path} is complete (see {run.path / 'result.json'})")
            return
    from grpo_gsm8k.runs.report import write_report

    with started("eval", resolved, resume=resume) as start:
        evaluate_started(start, prepare_data)
    click.echo(f"report  {write_report(start.run.path)}")


def evaluate_started(start: Started[EvalConfig], prepare_data: bool) -> None:
    """Does the work of an evaluation inside its run."""
    from grpo_gsm8k.commands.assembly import load_eval_set, open_engine, open_graders, open_tokenizer, open_tracker, render
    from grpo_gsm8k.loops.evaluate import EvalTask, evaluate, journal_name
    from grpo_gsm8k.prompts import load_template
    from grpo_gsm8k.runs.metrics import METRICS, MetricsWriter
    from grpo_gsm8k.types import Sampling

    run = start.run
    start.resolved = choose(start.resolved)  # changes nothing on a resumed run whose choices were made
    run.write_json("config.json", start.resolved.record())
    log_choices(start.resolved)
    config = start.resolved.config
    if config.engine != "openai":
        start.configure_torch()
    template = load_template(config.template)
    tokenizer = open_tokenizer(config)
    eval_set = load_eval_set(config, prepare_data, template)
    eval_set.record(run, resumed=start.resumed)
    render(config, eval_set, tokenizer, window=None)  # what is wrong with a prompt is said before an engine is loaded
    with open_graders(config.graders) as graders, open_engine(config) as engine:
        described = dict(engine.describe())
        run.write_json("sys/engine.json", described)
        metrics = MetricsWriter(run, open_tracker(run, start.resolved))
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
    times = outcome.pop("times")
    baseline = publish_rows(start)
    if not run.read(METRICS):  # a run that was stopped between this and its end has them already
        metrics.log(0, {**headline_metrics(outcome), **times})
    metrics.close()
    run.write_json("result.json", {**outcome, "grader_versions": graders.versions, "times": times})
    (run.path / journal_name(0)).unlink(missing_ok=True)
    click.echo(summary(config, outcome, times))
    click.echo(f"rows    {baseline}")


def headline_metrics(outcome: dict[str, Any]) -> dict[str, float]:
    """Returns an evaluation's numbers as flat metrics."""
    metrics = {"eval/num_problems": outcome["num_problems"], "eval/truncated": outcome["truncated"]}
    metrics |= {
        "eval/disagreements": outcome["disagreements"],
        "eval/mean_completion_tokens": outcome["mean_completion_tokens"],
    }
    for name, grader in outcome["graders"].items():
        low, high = grader["ci95"]
        metrics |= {f"eval/{name}/accuracy": grader["accuracy"], f"eval/{name}/ci95_low": low, f"eval/{name}/ci95_high": high}
        metrics |= {f"eval/{name}/{status}": grader[status] for status in ("correct", "wrong", "unparsed", "error")}
    for key in ("pass_at_k", "maj_at_k"):
        metrics |= {f"eval/{key.replace('_k', '')}_{k}": value for k, value in outcome[key].items()}
    return metrics


def publish_rows(start: Started[EvalConfig]) -> Path:
    """Copies the run's rows to artifacts/baselines/<name>.jsonl, whole, and returns that path."""
    from grpo_gsm8k.runs.storage import make_folder, write_bytes

    config = start.resolved.config
    data = Path(config.eval_path).stem if config.eval_path else f"{config.dataset}_{config.split}"
    name = config.run_name or f"{Path(config.model_id).name}_{data}_{Path(config.template).stem}"
    target = (
        Path(config.artifacts_dir) / "baselines" / f"{''.join(c if c.isalnum() or c in '._-' else '_' for c in name)}.jsonl"
    )
    make_folder(target.parent)
    write_bytes(target, (start.run.path / "eval" / "step_0.jsonl").read_bytes())
    return target


def summary(config: EvalConfig, outcome: dict[str, Any], times: dict[str, float]) -> str:
    """Returns the final table as a person reads it."""
    what = config.eval_path or f"{config.dataset}/{config.split}"
    how = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}, {config.num_samples} sample(s) each"
    width = min(shutil.get_terminal_size().columns, 100)
    lines = ["─" * width, f"{config.model_id} on {what}: {outcome['num_problems']} problems, {how}, engine {config.engine}"]
    for name, grader in outcome["graders"].items():
        degenerate = grader["wilson95"] is not None and grader["ci95"][0] == grader["ci95"][1]
        low, high = grader["wilson95"] if degenerate else grader["ci95"]  # a bootstrap of equal values says nothing
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
    lines.append(f"  a difference that this many problems can show: {', '.join(shown) or 'none'}")
    lines.append(f"  {outcome['mean_completion_tokens']:.1f} tokens a completion, {times['time/tokens_per_s']:,.0f} tokens/s")
    return "\n".join([*lines, "─" * width])
