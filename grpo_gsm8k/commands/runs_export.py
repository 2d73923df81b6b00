"""`runs export`: a run's metrics for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands.from_config import CONTEXT
from grpo_gsm8k.runs.directory import open_run


@click.command("export", context_settings=CONTEXT)
@click.argument("run")
@click.option("--to", "target", type=click.Choice(["wandb", "tensorboard", "csv"]), required=True, help="What to export to.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; none: <artifacts_dir>/exports/<name of the run>.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, target: str, out: Path | None, artifacts_dir: str) -> None:
    """Replay the metrics of RUN (a path, a name under runs/, or latest) into files of another tool, and print their path.

    wandb: an offline run for `wandb sync`. tensorboard: an event file. csv: one row a step, columns sorted. The run directory
    is only read; exporting again replaces the export.
    """
    from grpo_gsm8k.runs.export import EXPORTS
    from grpo_gsm8k.runs.reading import reading

    found = open_run(run, Path(artifacts_dir)).path
    with reading(found):
        click.echo(EXPORTS[target](found, out or Path(artifacts_dir) / "exports" / found.resolve().name))
