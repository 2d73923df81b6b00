"""The page of several runs: curves over each other, what differs, and runs of which little is left."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from reward_runs import make_reward_run

from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.report_curves import accuracy_overlay, overlay
from grpo_gsm8k.runs.report_several import render_reports


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_curves_share_their_axes() -> None:
    plot = overlay("Reward", {0: [(0, 0.0), (10, 1.0)], 1: [(0, 2.0), (5, 4.0)]}, 10)
    assert [tick.label for tick in plot.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [line.line for line in plot.lines] == ["0,1000 1000,750", "0,500 500,0"]


def test_an_accuracy_has_its_band() -> None:
    plot = accuracy_overlay("Accuracy", {1: [(0, 0.5, 0.4, 0.6), (4, 0.7, 0.6, 0.8)]}, 4)
    assert [tick.label for tick in plot.y_ticks] == ["40 %", "50 %", "60 %", "70 %", "80 %"]
    (line,) = plot.lines
    assert line.number == 1
    assert line.band == "0,500 1000,0 1000,500 0,1000"
    assert line.marks[1].label == "step 4: 70.0 % (60.0 % – 80.0 %)"


def test_options_that_differ_stand_apart_from_those_that_do_not(tmp_path: Path) -> None:
    runs = [make_reward_run(tmp_path / name).path for name in "ab"]
    config = json.loads((runs[1] / "config.json").read_bytes())
    config["values"]["seed"] = 2
    (runs[1] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    page = render_reports(runs, [], [], num_trajectories=100)
    differs, same = page.split("What differs</h3>")[1].split("facts are the same")
    assert re.search(r"option: seed</td><td><code>1</code></td><td><code>2</code>", differs)
    assert "option: env" not in differs
    assert "option: env" in same


def test_every_run_has_a_line_in_a_plot_and_a_letter(tmp_path: Path) -> None:
    runs = [make_reward_run(tmp_path / name, num_steps=12).path for name in "abc"]
    page = render_reports(runs, [], [], num_trajectories=0)
    (figure,) = (part for part in page.split("<figure>") if "<b>Mean reward</b>" in part)
    assert [f'class="own s{number}"' in figure for number in range(4)] == [True, True, True, False]
    assert "http" not in page.replace("http-equiv", "")


def test_a_run_that_left_almost_nothing_is_shown_with_what_is_missing(tmp_path: Path) -> None:
    whole = make_reward_run(tmp_path / "a").path
    bare = RunDirectory.create(tmp_path / "b", "grpo", ["grpo"])
    bare.start()
    bare.finish("failed", "no data", 2)
    (bare.path / "sys").mkdir()
    (bare.path / "sys/git.json").write_text("[1", encoding="utf-8")
    (bare.path / "config.json").write_text("[]", encoding="utf-8")
    text = words(render_reports([whole, bare.path], [], ["not compared: nothing"], num_trajectories=10))
    for expected in (
        "not compared: nothing",
        "metrics.jsonl is missing",
        "sys/git.json cannot be read",
        "config.json does not hold a JSON object",
        "failed",
    ):
        assert expected in text, expected
