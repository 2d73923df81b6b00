"""`runs`: what can be asked of run directories."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands import (
    runs_certify,
    runs_export,
    runs_list,
    runs_power,
    runs_report,
    runs_rerun,
    runs_show,
    runs_tail,
    runs_verify,
)
from grpo_gsm8k.commands.from_config import CONTEXT
from grpo_gsm8k.commands.runs_audit import command as audit_command


@click.group("runs", context_settings=CONTEXT)
def group() -> None:
    """Ask run directories: list, show and compare them, verify or certify them, do one again, make pages and exports."""


@group.command("compare", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, metavar="A B [C]...")
@click.option("--step", type=click.IntRange(min=0), help="Evaluation of this step, where a run is not named RUN@STEP.")
@click.option("--grader", help="Grader whose verdicts are compared; default: A's headline grader.")
@click.option("--seed", type=click.IntRange(min=0), default=31415, show_default=True, help="Seed of the bootstrap.")
@click.option("--num-flips", type=click.IntRange(min=0), default=2, show_default=True, help="Flips shown in each direction.")
@click.option(
    "--allow-differences", is_flag=True, help="Compare, on the problems in common, what is not alike; said each time."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def compare(
    runs: tuple[str, ...],
    step: int | None,
    grader: str | None,
    seed: int,
    num_flips: int,
    allow_differences: bool,
    as_json: bool,
    artifacts_dir: str,
) -> None:
    """Compare evaluations problem by problem: each of B, C … against A.

    A run is a path, a name under runs/, or latest; its last evaluation is taken, or that of RUN@STEP: `runs compare latest@0
    latest` says what a training run changed. Gives the difference in accuracy with a paired bootstrap interval, the exact
    McNemar test (Holm-adjusted for several), the difference that could have been seen, and the problems that flipped.
    """
    import json

    from grpo_gsm8k.commands.compare import compare_evaluations, comparison_record, comparison_text
    from grpo_gsm8k.errors import ConfigError
    from grpo_gsm8k.runs.evaluations import read_evaluation

    if len(runs) < 2:
        raise ConfigError("one run has nothing to be compared with: give two or more, or RUN@0 RUN for a run's own beginning")
    first = read_evaluation(runs[0], Path(artifacts_dir), step=step, grader=grader)
    others = [read_evaluation(name, Path(artifacts_dir), step=step, grader=grader or first.grader) for name in runs[1:]]
    found = compare_evaluations(first, others, seed=seed, allow_differences=allow_differences)
    if as_json:
        click.echo(json.dumps([comparison_record(entry) for entry in found], indent=2, ensure_ascii=False))
    else:
        click.echo(comparison_text(found, num_flips))


group.add_command(audit_command)


group.add_command(runs_export.command)
group.add_command(runs_power.command)
group.add_command(runs_report.command)
group.add_command(runs_rerun.command)
group.add_command(runs_certify.command)
group.add_command(runs_list.command)
group.add_command(runs_show.command)
group.add_command(runs_tail.command)
group.add_command(runs_verify.command)
