"""report.html of runs that learn from rewards: curves, times, rounds, and rollouts token by token."""

from __future__ import annotations

import html
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reward_runs import TOKENIZER, make_reward_run, make_rollout

from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.report import collect_report, write_report
from grpo_gsm8k.runs.report_rewards import reward_curves, stage_times
from grpo_gsm8k.runs.rollout_files import write_rollouts

VOID = {"meta", "link", "rect", "line", "polyline", "polygon", "br"}


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.split("</style>")[1])).split())


class Closed(HTMLParser):
    """Fails on a tag that is not closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_grpo_page_has_curves_in_groups_times_and_endings(tmp_path: Path) -> None:
    page = write_report(make_reward_run(tmp_path).path).read_text("utf-8")
    shown = text_of(page)
    for expected in (
        "Accuracy, numeric grader, step 40 92.0 %",
        "+56.0 points against step 0 (36.0 %)",
        "last mean reward",
        "Mean reward last 0.9",
        "Sampled tokens a rollout last 23 · lowest 15.2 at step 1 · highest 23 at step 40",
        "Entropy, nats a token",
        "Share of groups with different answers",
        "env/calls last 2",
        "policy/a_new_one last 1",
        "Tokens clipped above last 0.01",
        "The same at every step: Tokens clipped below 0.",
        "The same at every step: Share of rollouts cut by a limit 0, Turns a rollout 2.",
        "Trainer against engine The same at every step: Mean |Δ log-prob| 1e-07, Largest |Δ log-prob| 3e-06",
        "The same at every step: Sampled tokens/s of the whole step 40,000, Seconds a step 0.16.",
        "40,000.0 median sampled tokens/s of the whole step",
        "update 50.0 % 3.2 s in all, 0.080 s at the median",
        "the rest 4.4 %",
        "answered 98.0 % 98.0 %",
        "algorithm dr_grpo flag",
    ):
        assert expected in shown, expected
    assert "policy/kl_k1" not in shown
    assert "What the rounds kept" not in shown
    parser = Closed()
    parser.feed(page)
    assert parser.open == []


def test_an_expert_iteration_page_has_a_table_of_what_its_rounds_kept(tmp_path: Path) -> None:
    shown = text_of(write_report(make_reward_run(tmp_path, "expert-iteration", num_steps=4).path).read_text("utf-8"))
    assert "Round sampled kept rejected duplicate rejected wrong 1 256 115 51 90 2 256 130 36 90" in shown
    assert "Trained tokens/s of the updates" in shown


def test_every_token_of_a_sampled_rollout_is_coloured_and_says_its_log_probs(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path)
    page = write_report(run.path).read_text("utf-8")
    (entry, last) = collect_report(run.path)["training"]["rewards"]["rollouts"]["steps"]
    assert (entry["step"], last["step"], entry["num"]) == (1, 40, 16)
    view = entry["views"][0]
    rollout = view.masked.stored.rollout
    assert "".join(piece.text for piece in view.pieces) == TOKENIZER.decode(
        list(rollout.prompt_token_ids + rollout.token_ids), skip_special_tokens=False
    )
    assert [piece.css.split()[0] for piece in view.pieces].count("t") == rollout.num_sampled
    assert [piece.css for piece in view.pieces].count("e") == 1
    first = next(piece for piece in view.pieces if piece.css == "t")
    assert first.tip == f"{rollout.token_ids[0]}: log-prob -0.0100, learner -0.0100 (+1.0e-06)"
    assert f'<i class="t" title="{first.tip}">{html.escape(first.text)}</i>' in page
    trained = sum(one.num_sampled for one in (make_rollout(number, sample) for number in range(3, 7) for sample in range(4)))
    assert dict(entry["counts"])["trained"] == trained - make_rollout(4, 1).num_sampled
    assert dict(entry["counts"])["truncated"] == make_rollout(99).num_sampled


def test_without_a_tokenizer_in_the_run_the_turns_are_shown_as_text(tmp_path: Path) -> None:
    page = write_report(make_reward_run(tmp_path, tokenizer=False).path).read_text("utf-8")
    assert "The run holds no checkpoint, and so no tokenizer" in text_of(page)
    assert "&lt;calc&gt;3 + 5&lt;/calc&gt;" in page or "&lt;calc&gt;4 + 5&lt;/calc&gt;" in page


def test_altered_rollouts_are_named_and_the_rest_of_the_page_is_there(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path)
    path = run.path / "rollouts/step_40.jsonl"
    path.write_text(path.read_text("utf-8").replace('"value": 1.0', '"value": 0.0', 1), "utf-8")
    shown = text_of(write_report(run.path).read_text("utf-8"))
    assert "step_40.jsonl:1: not the rollout that was written" in shown
    assert "Step 1 6 of 16 rollouts" in shown


@pytest.mark.parametrize("command", ["grpo", "expert-iteration"])
def test_a_run_that_failed_before_its_first_step_still_has_a_page(command: str, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, command, [command])
    run.finish("failed", "no such environment", 2)
    shown = text_of(write_report(run.path).read_text("utf-8"))
    assert "No step was done." in shown
    assert "Training rollouts None was kept." in shown


def test_long_rollouts_and_five_thousand_steps_give_a_small_page_in_seconds(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path, num_steps=20)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    many = [{**rows[step % 20], "step": step} for step in range(1, 5001)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many), "utf-8")
    one = make_rollout(3)
    long = type(one)(
        **{name: getattr(one, name) for name in one.__slots__ if name not in ("token_ids", "sampled", "logprobs")},
        token_ids=one.token_ids * 200,
        sampled=one.sampled * 200,
        logprobs=one.logprobs * 200,
    )
    write_rollouts(run, 20, [long] * 8, trained=[True] * 8)
    started = time.process_time()
    path = write_report(run.path)
    assert time.process_time() - started < 8
    assert path.stat().st_size < 900_000
    assert "more tokens in the run directory" in path.read_text("utf-8")


def test_each_series_is_drawn_once_and_one_that_never_changes_is_named_with_its_value() -> None:
    never = {1: 0.25, 2: 0.25}
    series = {"reward/mean": {1: 0.5, 2: 0.6}, "reward/add/mean": never, "mismatch/kl": {1: 0.0}, "rollout/num": never}
    groups = reward_curves(series, 2, rate="Tokens/s")
    assert [(group.heading, [curve.title for curve in group.curves], group.constants) for group in groups] == [
        ("Reward", ["Mean reward"], []),
        ("Reward by part", [], [("reward/add/mean", 0.25)]),
        ("Trainer against engine", [], [("KL, engine to trainer (k3)", 0.0)]),
    ]


def test_the_stages_shares_are_of_the_whole_and_the_rest_is_named() -> None:
    """Two steps of 2 s and 4 s: 3 s of sampling are half, 1.5 s of update a quarter, and a quarter is left."""
    series = {"time/step_s": {1: 2.0, 2: 4.0}, "time/sample_s": {1: 1.0, 2: 2.0}, "time/update_s": {1: 0.5, 2: 1.0}}
    found = {row["name"]: (row["total_s"], row["share"]) for row in stage_times(series)}
    assert found == {"sample": (3.0, 0.5), "update": (1.5, 0.25), "the rest": (1.5, 0.25)}
    overlapping = {**series, "time/sample_s": {1: 2.0, 2: 4.0}}
    assert [row["name"] for row in stage_times(overlapping)] == ["sample", "update"]
