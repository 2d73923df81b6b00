"""`runs tail`: the metrics of a run as they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from grpo_gsm8k.commands.from_config import CONTEXT

POLL_S = 0.5
SHOWN = (
    "reward/mean",
    "train/loss",
    "optim/grad_norm",
    "optim/lr",
    "rollout/mean_tokens",
    "policy/entropy",
    "policy/kl",
    "time/tokens_per_s",
)


@click.command("tail", context_settings=CONTEXT)
@click.argument("run", default="latest")
@click.option("-n", "--num-lines", type=click.IntRange(min=0), default=10, show_default=True, help="Lines shown first.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines of metrics.jsonl as they are.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(run: str, num_lines: int, as_json: bool, artifacts_dir: str) -> None:
    """Follow the metrics of RUN (a path, a name under runs/, or latest) until it ends; Ctrl-C stops following, not the run.

    Of a run that has ended, the last lines are shown and how it ended. A process that died is noticed.
    """
    import json
    import time

    from grpo_gsm8k.commands.runs_list import printable
    from grpo_gsm8k.runs.directory import open_run
    from grpo_gsm8k.runs.following import LineFollower, count_completions, ending
    from grpo_gsm8k.runs.reading import reading

    path = open_run(run, Path(artifacts_dir)).path
    follower = LineFollower(path / "metrics.jsonl")
    counted: dict[int, int] = {}
    first = True
    while True:
        ended = ending(path)  # before the lines are read, so that none is missed after the end
        rows = list(follower.new_rows())
        with reading(path):
            for row in rows[max(0, len(rows) - num_lines) :] if first else rows:
                click.echo(json.dumps(row) if as_json else printable(metrics_text(row)))
        first = False
        if ended is not None:
            break
        now = count_completions(path)
        for step, num in now.items():
            if num != counted.get(step, 0) and not as_json:
                click.echo(f"evaluation of step {step}: {num} completions so far")
        counted = now
        time.sleep(POLL_S)
    click.echo(printable(f"{path.name}: {ended}"), err=as_json)


def metrics_text(row: Mapping[str, Any]) -> str:
    """Returns a line of metrics as a person reads it: the step, then accuracy by grader or what training shows."""
    parts = [f"step {row.get('step')}"]
    for key, value in row.items():
        if key.startswith("eval/") and key.endswith("/accuracy"):
            grader = key.removeprefix("eval/").removesuffix("/accuracy")
            interval = [row.get(f"eval/{grader}/ci95_{end}") for end in ("low", "high")]
            shown = f" [{', '.join(_percent(bound) for bound in interval)}]" if None not in interval else ""
            parts.append(f"{grader} {_percent(value)} %{shown}")
    parts += [f"{key.removeprefix('time/')} {_number(row[key])}" for key in SHOWN if key in row]
    if len(parts) == 1:
        parts += [f"{key} {_number(value)}" for key, value in row.items() if key != "step"]
    return "  ".join(parts)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
