"""`report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.runs.directory import open_run


@click.command("report")
@click.argument("run", default="latest")
@click.option("--artifacts-dir", default="artifacts", help="Folder under which runs/ lies.", show_default=True)
def command(run: str, artifacts_dir: str) -> None:
    """Write report.html of RUN (a path, a name under runs/, or latest) from its directory alone."""
    from grpo_gsm8k.runs.reading import reading
    from grpo_gsm8k.runs.report import write_report

    path = open_run(run, Path(artifacts_dir)).path
    with reading(path):
        click.echo(write_report(path))
