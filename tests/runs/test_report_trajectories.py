"""All trajectories on one page: what is packed, that it is the same each time, and that a browser pages through it fast."""

from __future__ import annotations

import base64
import gzip
import html
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium
from reward_runs import make_reward_run
from test_report import HOSTILE, make_run

from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.report import render_report
from grpo_gsm8k.runs.report_files import RunFiles
from grpo_gsm8k.runs.report_trajectories import Browser, collect_trajectories


def unpacked(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def items_of(browser: Browser) -> list[dict[str, Any]]:
    return [item for block in browser.blocks for item in unpacked(block)]


def test_every_row_of_the_evaluation_is_packed_in_its_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=120)
    browser = collect_trajectories([("", RunFiles(run.path))], 1000)
    items = items_of(browser)
    rows = [json.loads(line) for line in (run.path / "eval/step_0.jsonl").read_bytes().split(b"\n") if line]
    assert [item["id"] for item in items] == [row["problem_id"] for row in rows]
    assert [item["tokens"][1][1] for item in items] == [row["completion"] for row in rows]
    assert [entry[1] for entry in unpacked(browser.index)["items"]] == [item["id"] for item in items]
    assert len(browser.blocks) == 3  # 50, 50 and 20


def test_two_runs_with_too_many_rows_show_the_same_problems(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, num_rows=200) for name in "ab"]
    browser = collect_trajectories([(letter, RunFiles(run.path)) for letter, run in zip("AB", runs, strict=True)], 60)
    first, second = ([item["id"] for item in source.items] for source in browser.sources)
    assert first == second
    assert len(first) == 30
    assert [source.num for source in browser.sources] == [200, 200]


def test_the_same_run_gives_the_same_blocks(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=120)
    one, two = (collect_trajectories([("", RunFiles(run.path))], 100).blocks for _ in range(2))
    assert one == two


def test_a_rollout_without_a_tokenizer_shows_its_turns(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    browser = collect_trajectories([("", RunFiles(run.path))], 1000)
    rollouts = [item for item in items_of(browser) if item["facts"][0].startswith("step ")]
    assert rollouts
    assert "no tokenizer at hand" in rollouts[0]["tokens"][0][1]


def test_a_damaged_file_of_rollouts_is_noted_and_the_others_are_shown(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path)
    path = sorted((run.path / "rollouts").glob("step_*.jsonl"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    files = RunFiles(run.path)
    browser = collect_trajectories([("", files)], 1000)
    assert any(path.name in note for note in files.notes)
    assert browser.sources


def test_the_page_allows_its_own_script_and_no_other(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=60)
    page = render_report(run.path, 1000)
    scripts = re.findall(r"<script([^>]*)>", page)
    assert scripts.count("") == 1
    assert all(attributes == "" or attributes.startswith(' type="text/plain"') for attributes in scripts)
    assert "script-src 'sha256-" in html.unescape(page)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)


WHERE = "document.getElementById('where').textContent"
FOCUSED = "document.activeElement"


def outline(page: Page) -> bool:
    """Whether the element that has the focus is drawn so."""
    style: str = page.evaluate(f"getComputedStyle({FOCUSED}).outlineStyle + getComputedStyle({FOCUSED}).outlineWidth")
    return style == "solid2px"


@pytest.mark.browser
def test_all_trajectories_can_be_read_with_the_keyboard_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=50)
    file = tmp_path / "page.html"
    file.write_text(render_report(run.path, 1000), encoding="utf-8")
    with chromium(tmp_path) as page:
        page.open(file)
        assert page.evaluate(WHERE).startswith("1 – 20 of 50")
        page.press("n")  # nothing has the focus yet
        page.wait_for(f"{WHERE}.startsWith('21 – 40')")
        assert page.evaluate(f"{FOCUSED}.matches('#list > details:first-child > summary')") and outline(page)
        page.press("p")
        page.wait_for(f"{WHERE}.startsWith('1 – 20')")
        page.press("Tab")
        assert page.evaluate(f"{FOCUSED}.matches('#list > details:nth-child(2) > summary')") and outline(page)
        page.press("Enter")
        page.wait_for("document.querySelector('#list > details[open] pre.tokens')")
        page.press("Tab")
        assert page.evaluate(f"{FOCUSED}.matches('details[open] pre.tokens')") and outline(page)
        page.evaluate("document.getElementById('problem').focus()")
        for letter in "test-4n":
            page.press(letter)  # typed here, n is a letter
        page.wait_for(f"{WHERE} === 'None is like this.'")
        assert page.console == []


@pytest.mark.browser
def test_the_tokens_of_a_rollout_are_gone_through_with_the_arrow_keys(tmp_path: Path) -> None:
    run = make_reward_run(tmp_path)
    file = tmp_path / "page.html"
    file.write_text(render_report(run.path, 1000), encoding="utf-8")
    with chromium(tmp_path) as page:
        page.open(file)
        page.press("p")
        page.wait_for(f"{FOCUSED}.matches('#list summary')")
        page.evaluate("[...document.querySelectorAll('#list summary')].find((one) => /rollout/.test(one.textContent)).focus()")
        page.press("Enter")
        page.wait_for("document.querySelector('#list > details[open] pre.tokens')")
        while not page.evaluate(f"{FOCUSED}.matches('pre.tokens')"):
            page.press("Tab")
            assert page.evaluate(f"{FOCUSED}.closest('#list > details[open]') !== null")
        assert outline(page)
        said = "document.querySelector('#list > details[open] .said').textContent"
        page.press("ArrowRight")
        first = page.evaluate(said)
        assert "token " in first and "log-prob" in first
        page.press("ArrowRight")
        assert page.evaluate(said) != first
        page.press("ArrowLeft")
        assert page.evaluate(said) == first
        assert page.console == []


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_pages_through_ten_thousand_trajectories_and_runs_nothing_in_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=10_000)
    harm(run)
    file = tmp_path / "page.html"
    file.write_text(render_report(run.path, 10_000), encoding="utf-8")
    assert file.stat().st_size < 8_000_000
    with chromium(tmp_path) as page:
        page.open(file)
        assert "1 – 20 of 10,000, page 1 of 500" in page.evaluate(WHERE)
        assert int(page.evaluate("document.documentElement.dataset.readyMs")) < 2000
        num_nodes = "document.getElementsByTagName('*').length"
        before = page.evaluate(num_nodes)
        assert before < 5000
        for number in range(2, 12):
            page.press("n")
            page.wait_for(f"{WHERE}.includes('page {number} of')")
        page.evaluate("document.getElementById('last').click()")
        page.wait_for(f"{WHERE}.startsWith('9,981')")
        assert page.evaluate(num_nodes) <= before + 20, "what was paged away is gone"
        page.evaluate("for (const one of document.querySelectorAll('#list > details')) one.open = true")
        page.wait_for("document.querySelectorAll('#list pre.tokens').length === 20")
        assert page.evaluate("document.title") != "OWNED"
        assert page.console == []


def harm(run: RunDirectory) -> None:
    """Makes every twentieth question an attempt to run a script."""
    path = run.path / "eval/step_0.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    rng = random.Random(0)
    for row in rows:
        if rng.random() < 0.05:
            row["question"] = HOSTILE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
