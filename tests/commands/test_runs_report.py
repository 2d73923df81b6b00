"""`runs report` and `runs export` as commands: what they write where, what they leave alone, and what they refuse."""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from reward_runs import make_reward_run
from test_runs_compare import HALF, MOST, make_run

from grpo_gsm8k.cli import main


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["runs", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out.strip(), printed.err.strip()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_runs_are_compared_on_the_page_with_their_flips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a", {0: HALF}), make_run(tmp_path / "b", {0: MOST})
    before = files_of(a), files_of(b)
    code, out, _ = said(capsys, "report", a, b, "--out", tmp_path / "page.html")
    assert (code, out) == (0, str(tmp_path / "page.html"))
    assert (files_of(a), files_of(b)) == before
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", Path(out).read_text(encoding="utf-8"))).split())
    for expected in ("a difference of +30.0 points", "exact McNemar p = 0.45", "5 gained", "2 lost", "p5 Question 5?"):
        assert expected in text, expected


def test_runs_that_are_not_alike_are_compared_and_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a", {0: HALF}), make_run(tmp_path / "b", {0: MOST}, version="4")
    said(capsys, "report", a, b, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not alike, so not a fair comparison" in page
    assert "grader: numeric 3 in A and numeric 4 in B" in page


def test_runs_without_a_problem_in_common_are_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a", {0: HALF}), make_run(tmp_path / "b", {0: MOST}, first=100)
    code, _, _ = said(capsys, "report", a, b, "--out", tmp_path / "page.html")
    assert code == 0
    assert "have no problem in common" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_one_run_goes_under_reports_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_reward_run(tmp_path)
    code, out, _ = said(capsys, "report", "latest", "--artifacts-dir", tmp_path)
    assert code == 0
    assert Path(out).parent == tmp_path / "reports"
    assert 'id="browse"' in Path(out).read_text(encoding="utf-8")


def test_a_file_of_another_shape_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, {0: HALF})  # its aggregate lacks the counts that an evaluation writes
    code, out, error = said(capsys, "report", run, "--out", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert "is not what a run writes" in error
    assert "\n" not in error


def test_a_damaged_evaluation_is_a_note_and_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a", {0: HALF}), make_run(tmp_path / "b", {0: MOST})
    path = b / "eval/step_0.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    code, _, _ = said(capsys, "report", a, b, "--out", tmp_path / "page.html")
    assert code == 0
    assert "not compared: " in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments", [("report", "nowhere"), ("export", "nowhere", "--to", "csv"), ("report", "{run}", "{run}")]
)
def test_what_is_no_run_or_named_twice_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, {0: HALF})
    code, out, error = said(capsys, *(word.format(run=run) for word in arguments))
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert "\n" not in error


def test_an_export_goes_under_exports_and_a_run_without_metrics_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, {0: HALF})
    code, _, error = said(capsys, "export", run, "--to", "csv", "--artifacts-dir", tmp_path)
    assert code == 2
    assert "metrics.jsonl is missing" in error
    (run / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.5}\n', encoding="utf-8")
    code, out, _ = said(capsys, "export", run, "--to", "csv", "--artifacts-dir", tmp_path)
    assert (code, out) == (0, str(tmp_path / "exports" / run.name / "metrics.csv"))
    shutil.rmtree(tmp_path / "exports")
