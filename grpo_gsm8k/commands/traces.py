"""`traces`: reasoning traces from a server, and training pairs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.commands.choices import fill_template
from grpo_gsm8k.commands.from_config import config_command
from grpo_gsm8k.commands.start import started
from grpo_gsm8k.config_traces import TracesFormatConfig, TracesGenerateConfig
from grpo_gsm8k.errors import ConfigError, DataError, EngineError
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.r1_traces import Failure, Generation, check_ready
from grpo_gsm8k.r1_traces import generate as generate_traces
from grpo_gsm8k.runs.lifecycle import Interrupted


@click.group("traces", context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Ask a reasoning model for traces, and make training pairs of them."""


@config_command(TracesGenerateConfig, "traces generate")
def generate(resolved: Resolved[TracesGenerateConfig]) -> None:
    """Ask a reasoning model (DeepSeek-R1, or any OpenAI-compatible server) for traces of every problem of a JSONL.

    The key is that of DEEPSEEK_API_KEY. Doing it again asks only for what the outfile lacks. `r1_traces.py` does the same
    without this package.
    """
    config = resolved.config
    try:
        check_ready(config)
    except Failure as failure:
        raise ConfigError(str(failure)) from None
    with started("traces generate", resolved) as start:
        from grpo_gsm8k.data.prepared import file_record

        try:
            run = generate_traces(config)
        except Failure as failure:
            raise (DataError if failure.exit_code == 2 else EngineError)(str(failure)) from None
        start.run.write_json("data.json", {"files": [file_record(Path(config.infile))]})
        start.run.write_json("result.json", {"outfile": config.outfile, **summary(run)})
        if run.exit_code > 128:
            raise Interrupted(run.exit_code - 128)
        if run.exit_code:
            raise EngineError(f"{run.reason or f'{run.num_failed} traces failed'}; run again to go on")
    click.echo(f"{config.outfile}: {len(run.file.keys)} traces{f' ({run.reason}; run again to go on)' if run.reason else ''}")


def summary(run: Generation) -> dict[str, Any]:
    """Returns what a run did, as result.json says it; dollars and tokens are of all the outfile holds."""
    return {
        "num_traces": len(run.file.keys),
        "num_new": run.num_new,
        "num_failed": run.num_failed,
        "num_left": run.num_todo - run.num_new,
        "num_retries": run.num_retries,
        "cost_usd": run.file.spent_usd,
        "most_lost_usd": run.lost_usd,
        "num_tokens": run.file.num_tokens,
        "stopped": run.reason,
    }


@config_command(TracesFormatConfig, "traces format")
def format_pairs(resolved: Resolved[TracesFormatConfig]) -> None:
    """Make training pairs of traces: cleaned, graded, without duplicates, and of a length that fits.

    Writes JSONL with id, prompt, response and provenance a line, and <outfile>.report.json, which says how many traces were
    dropped for which reason; the run's dropped.jsonl names each.
    """
    with started("traces format", resolved) as start:
        from grpo_gsm8k.data.jsonl import write_jsonl
        from grpo_gsm8k.data.prepared import file_record
        from grpo_gsm8k.engines.loading import load_tokenizer
        from grpo_gsm8k.prompts import load_template
        from grpo_gsm8k.rewards.registry import make_grader
        from grpo_gsm8k.runs.storage import make_folder, write_json
        from grpo_gsm8k.traces.pairs import FormatRequest, format_traces, read_traces

        resolved = fill_template(start, resolved)
        config = resolved.config
        infile, outfile = Path(config.infile), Path(config.outfile)
        template = load_template(config.template)
        request = FormatRequest(template, config.keep, config.max_total_tokens, config.min_response_tokens)
        traces = read_traces(infile)
        grader = make_grader(config.grader)
        try:
            done = format_traces(traces, load_tokenizer(config.model_id, config.model_revision), grader, request)
        finally:
            grader.close()
        report = {**done.report(), "template": template.name, "template_sha256": template.sha256, "keep": config.keep}
        if not done.pairs:
            raise DataError(f"{infile}: no trace is left ({reasons(report)}); nothing was written")
        make_folder(outfile.parent)
        report["sha256"] = write_jsonl(outfile, done.pairs)
        write_json(outfile.with_name(f"{outfile.name}.report.json"), report)
        write_jsonl(start.run.path / "dropped.jsonl", done.dropped)
        start.run.write_json("data.json", {"files": [file_record(infile)]})
        start.run.write_json("result.json", {"outfile": str(outfile), **report})
    click.echo(f"{outfile}: {report['num_kept']} pairs of {report['num_read']} traces, sha256 {report['sha256']}")
    click.echo(f"  dropped {report['num_dropped']}{f': {reasons(report)}' if report['num_dropped'] else ''}")
    click.echo(f"  cleaned: {sum(report['sentences_cleaned'].values())} sentences that echo the instruction")


def reasons(report: dict[str, Any]) -> str:
    """Returns why traces were dropped, in one line."""
    return ", ".join(f"{reason} {num}" for reason, num in report["dropped"].items() if num)


format_pairs.name = "format"
group.add_command(generate)
group.add_command(format_pairs)
