"""`runs list`: a table of the runs there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grpo_gsm8k.commands.from_config import CONTEXT

if TYPE_CHECKING:
    from grpo_gsm8k.runs.catalog import Headline, RunEntry

HEADINGS = ("name", "command", "model", "status", "steps", "headline", "commit")
MAX_MODEL = 32


@click.command("list", context_settings=CONTEXT)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Runs shown, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(limit: int, as_json: bool, artifacts_dir: str) -> None:
    """List runs, newest first: command, model, status, steps, headline accuracy with its 95 % interval, commit.

    A run whose process is gone without a last word is "died", one whose status.json cannot be read "damaged". A commit with
    + had uncommitted changes (sys/dirty.diff).
    """
    import json

    from grpo_gsm8k.runs.catalog import list_runs, one_line

    entries, num_runs = list_runs(Path(artifacts_dir), limit)
    if as_json:
        records = [{**asdict(entry), "path": str(entry.path), "name": entry.name} for entry in entries]
        click.echo(json.dumps(records, indent=2))
        return
    if not entries:
        click.echo(f"no run under {Path(artifacts_dir) / 'runs'}")
        return
    click.echo(table([HEADINGS, *map(_cells, entries)]))
    if num_runs > len(entries):
        click.echo(f"… {num_runs - len(entries)} older (--limit)")
    for entry in entries:
        for note in entry.notes:
            click.echo(one_line(f"{entry.name}: {note}"))


def headline_text(headline: Headline | None) -> str:
    """Returns a headline as a person reads it: percent correct and the interval."""
    if headline is None:
        return "-"
    return f"{100 * headline.accuracy:.1f} % [{100 * headline.low:.1f}, {100 * headline.high:.1f}]"


def printable(text: str) -> str:
    """Returns lines that any terminal can take: what is not printable is escaped."""
    from grpo_gsm8k.runs.catalog import one_line

    return "\n".join(map(one_line, text.split("\n")))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cells(entry: RunEntry) -> tuple[str, ...]:
    from grpo_gsm8k.runs.catalog import one_line

    model = one_line(entry.model or "-")
    cells = (
        entry.name,
        entry.command or "-",
        model if len(model) <= MAX_MODEL else f"…{model[1 - MAX_MODEL :]}",
        entry.state,
        "-" if entry.num_steps is None else str(entry.num_steps),
        headline_text(entry.headline),
        "-" if entry.commit is None else entry.commit + ("+" if entry.dirty else ""),
    )
    return tuple(map(one_line, cells))
