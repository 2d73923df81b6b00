"""`runs report`: one page about one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_gsm8k.commands.from_config import CONTEXT
from grpo_gsm8k.errors import ConfigError, InputError

if TYPE_CHECKING:
    from grpo_gsm8k.commands.compare import Compared
    from grpo_gsm8k.runs.evaluations import EvaluationRecord

NUM_FLIPS = 10
MAX_RUNS = 8  # as many as there are colours that can be told apart


@click.command("report", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), help="Page to write; none: <artifacts_dir>/reports/<time>.html.")
@click.option(
    "--num-trajectories",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    help="Trajectories that can be paged through.",
)
@click.option("--seed", type=click.IntRange(min=0), default=31415, show_default=True, help="Seed of the bootstrap.")
@click.option("--artifacts-dir", default="artifacts", show_default=True, help="Folder under which runs/ lies.")
def command(runs: tuple[str, ...], out: Path | None, num_trajectories: int, seed: int, artifacts_dir: str) -> None:
    """Write one self-contained page about RUN (a path, a name under runs/, or latest), or about several, and print its path.

    Of one run: its report, with all its trajectories to page through, token by token where the run kept the tokens. Of
    several: their curves over each other, headlines, each against the first with the problems that flipped, provenance side
    by side. Nothing but the run directories is read, and they are not changed.
    """
    from grpo_gsm8k.runs.directory import open_run
    from grpo_gsm8k.runs.reading import reading
    from grpo_gsm8k.runs.report import render_report
    from grpo_gsm8k.runs.report_several import render_reports
    from grpo_gsm8k.runs.storage import make_folder, write_text

    if len(runs) > MAX_RUNS:
        raise ConfigError(f"{len(runs)} runs are more than one page shows; allowed is 1 to {MAX_RUNS}")
    paths = [open_run(name, Path(artifacts_dir)).path for name in runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("a run is named twice; name each once (its own evaluations are compared by `runs compare RUN@0 RUN`)")
    with reading(*paths):
        if len(paths) == 1:
            page = render_report(paths[0], num_trajectories)
        else:
            page = render_reports(paths, *compare_runs(paths, seed), num_trajectories=num_trajectories)
    out = out or Path(artifacts_dir) / "reports" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.html"
    make_folder(out.parent)
    write_text(out, page)
    click.echo(out)


def compare_runs(paths: Sequence[Path], seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns (the last evaluation of each run against that of the first that has one, what could not be compared and why)."""
    from grpo_gsm8k.commands.compare import compare_evaluations
    from grpo_gsm8k.runs.evaluations import read_evaluation

    records: list[EvaluationRecord] = []
    notes = []
    for path in paths:
        grader = records[0].grader if records else None
        try:
            record = read_evaluation(str(path), path.parent, grader=grader)
        except InputError as error:
            notes.append(f"not compared: {error}")
            continue
        if records and not records[0].problems.keys() & record.problems.keys():
            notes.append(f"not compared: {record.name} and {records[0].name} have no problem in common")
        else:
            records.append(record)
    if len(records) < 2:
        return [], notes
    found = compare_evaluations(records[0], records[1:], seed=seed, allow_differences=True)
    return [_comparison(entry) for entry in found], notes


def _comparison(entry: Compared) -> dict[str, Any]:
    from grpo_gsm8k.commands.compare import comparison_record

    record = comparison_record(entry)
    return {
        **record,
        "names": {"a": entry.a.name, "b": entry.b.name},
        "flips": [
            {
                "word": word,
                "num": len(record[word]),
                "shown": [_flip(entry, problem) for problem in record[word][:NUM_FLIPS]],
            }
            for word in ("gained", "lost")
        ],
    }


def _flip(entry: Compared, problem: str) -> dict[str, Any]:
    a, b = entry.a.problems[problem], entry.b.problems[problem]
    sides = [
        {
            "name": record.name,
            "num_correct": sum(side.solved),
            "num": len(side.solved),
            "completion": side.completions[0],
        }
        for record, side in ((entry.a, a), (entry.b, b))
    ]
    return {"problem_id": problem, "question": a.question, "gold": a.gold, "sides": sides}
