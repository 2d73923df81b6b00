"""One self-contained page about several runs: headlines, curves over each other, comparisons, provenance side by side.

Runs have the letters A, B, C … in the order in which they were named; a letter goes with a colour and a pattern of dashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.runs.directory import read_status, utc_now
from grpo_gsm8k.runs.report import eval_steps, headline, status_words
from grpo_gsm8k.runs.report_curves import Overlay, accuracy_overlay, overlay
from grpo_gsm8k.runs.report_files import RunFiles, flatten
from grpo_gsm8k.runs.report_page import page_environment
from grpo_gsm8k.runs.report_rewards import TITLES
from grpo_gsm8k.runs.report_training import REWARD_COMMANDS, read_series
from grpo_gsm8k.runs.report_trajectories import collect_trajectories

DRAWN = tuple(TITLES)
FIRST_DRAWN = 6  # the other curves are behind a fold
_UNCOMPARED = ("run_name", "artifacts_dir")
_NOTHING = "–"


@dataclass(frozen=True)
class RunView:
    """One run of several as the page shows it."""

    letter: str
    number: int
    files: RunFiles
    status: Mapping[str, Any]
    evals: Mapping[int, Mapping[str, Any]]
    series: Mapping[str, Mapping[int, float]]

    @property
    def name(self) -> str:
        """What its directory is called."""
        return self.files.run_dir.resolve().name

    @property
    def num_steps(self) -> int:
        """The last step that anything is known of."""
        return max([step for values in self.series.values() for step in values] + [*self.evals], default=0)


def render_reports(
    paths: Sequence[Path], comparisons: Sequence[Mapping[str, Any]], notes: Sequence[str], *, num_trajectories: int
) -> str:
    """Returns the page of runs; `comparisons` and `notes` are what comparing their evaluations gave. Raises: InputError."""
    runs = [_view(path, number) for number, path in enumerate(paths)]
    browser = collect_trajectories([(run.letter, run.files) for run in runs], num_trajectories)
    curves = _curves(runs)
    values = {
        "written_at": utc_now(),
        "runs": [_headline_row(run) for run in runs],
        "accuracy": _accuracy(runs),
        "curves": curves[:FIRST_DRAWN],
        "more_curves": curves[FIRST_DRAWN:],
        "comparisons": comparisons,
        "provenance": _provenance(runs),
        "browser": browser,
    }
    said = [f"{run.letter}, {run.name}: {note}" for run in runs for note in dict.fromkeys(run.files.notes)]
    return page_environment().get_template("report_several.html.j2").render({**values, "notes": [*notes, *said]})


def _view(path: Path, number: int) -> RunView:
    files = RunFiles(path)
    status = read_status(path)
    by_reward = status.get("command") in REWARD_COMMANDS
    series = read_series(files, by_reward=by_reward)[1]
    return RunView(chr(ord("A") + number), number, files, status, eval_steps(path, files), series)


def _headline_row(run: RunView) -> dict[str, Any]:
    step, aggregate = max(run.evals.items()) if run.evals else (None, {})
    git = run.files.object("sys/git.json")
    rewards, losses = (list(run.series.get(name, {}).values()) for name in ("reward/mean", "train/loss"))
    return {
        "letter": run.letter,
        "number": run.number,
        "name": run.name,
        "status": status_words(run.status),
        "model": run.files.object("config.json").get("values", {}).get("model_id"),
        "num_steps": run.num_steps,
        "step": step,
        "num_problems": aggregate.get("num_problems"),
        **headline(aggregate),
        "reward": rewards[-1] if rewards else None,
        "loss": losses[-1] if losses else None,
        "commit": str(git.get("sha") or _NOTHING)[:7],
        "dirty": bool(git.get("dirty")),
    }


def _accuracy(runs: Sequence[RunView]) -> Overlay | None:
    """Returns the accuracies by step of the runs that were evaluated, drawn where one was at more than one step."""
    found: dict[int, list[tuple[int, float, float, float]]] = {}
    for run in runs:
        for step, aggregate in sorted(run.evals.items()):
            own = headline(aggregate)
            if own["accuracy"] is not None and own["ci95"]:
                found.setdefault(run.number, []).append((step, own["accuracy"], *own["ci95"]))
    if not any(len(values) > 1 for values in found.values()):
        return None
    return accuracy_overlay("Accuracy by each run's headline grader", found, max(run.num_steps for run in runs))


def _curves(runs: Sequence[RunView]) -> list[Overlay]:
    """Returns the plots of the series that are worth a plot, in the order of the single report."""
    last_step = max(run.num_steps for run in runs)
    curves = []
    for name in DRAWN:
        found = {run.number: list(values.items()) for run in runs if (values := run.series.get(name))}
        levels = {value for values in found.values() for _, value in values}
        if len(levels) > 1:
            curves.append(overlay(TITLES[name], found, last_step))
    return curves


def _provenance(runs: Sequence[RunView]) -> dict[str, list[dict[str, Any]]]:
    """Returns {"differs": rows, "same": rows}, one row a fact with each run's value in order."""
    facts = [_facts(run.files) for run in runs]
    rows: dict[str, list[dict[str, Any]]] = {"differs": [], "same": []}
    for key in dict.fromkeys(key for one in facts for key in one):
        values = [one.get(key, _NOTHING) for one in facts]
        rows["same" if len(set(values)) == 1 else "differs"].append({"key": key, "values": values})
    return rows


def _facts(files: RunFiles) -> dict[str, str]:
    """Returns what a run's result may depend on, as text by name: code, command, data, packages, machine, options."""
    git, command = files.object("sys/git.json"), files.object("command.json")
    found: dict[str, Any] = {
        "command": command.get("command"),
        "commit": git.get("sha"),
        "uncommitted changes": git.get("dirty"),
        "package": (command.get("package") or {}).get("version"),
        "image": command.get("image_digest"),
    }
    for entry in files.object("data.json").get("files", []):
        name = " ".join(str(entry[key]) for key in ("role", "dataset", "split") if entry.get(key)) or str(entry.get("path"))
        found |= {f"data: {name}, {key}": entry.get(key) for key in ("commit", "rows", "sha256")}
    found |= {f"world: {key}": value for key, value in flatten(files.object("sys/world.json"))}
    values = files.object("config.json").get("values", {})
    found |= {f"option: {key}": value for key, value in values.items() if key not in _UNCOMPARED}
    return {key: _text(value) for key, value in found.items() if value is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
