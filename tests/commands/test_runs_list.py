"""`runs list` and `runs show`: what they say of runs that ended, died, or are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from small_runs import ask, make_training_run

from grpo_gsm8k.runs.directory import RunDirectory


def test_the_table_has_status_steps_headline_and_commit_newest_first(tmp_path: Path) -> None:
    first = make_training_run(tmp_path)
    second = RunDirectory.create(tmp_path, "sft", ["sft"])
    second.start()
    heading, newest, oldest = ask("list", "--artifacts-dir", tmp_path).stdout.rstrip().split("\n")
    assert heading.split() == ["name", "command", "model", "status", "steps", "headline", "commit"]
    assert newest.split() == [second.path.name, "sft", "-", "running", "-", "-", "-"]
    assert oldest.split() == [first.name, "grpo", "tiny", "completed", "2", "75.0", "%", "[0.0,", "100.0]", "1234567+"]


def test_the_limit_says_how_many_are_older_and_json_has_the_numbers(tmp_path: Path) -> None:
    runs = [make_training_run(tmp_path) for _ in range(3)]
    assert "… 2 older (--limit)" in ask("list", "--limit", 1, "--artifacts-dir", tmp_path).stdout
    newest, *_ = json.loads(ask("list", "--json", "--artifacts-dir", tmp_path).stdout)
    assert newest["name"] == runs[-1].name
    assert newest["headline"] == {"step": 2, "grader": "numeric", "accuracy": 0.75, "low": 0.0, "high": 1.0, "num_problems": 4}
    assert (newest["dirty"], newest["num_steps"], newest["notes"]) == (True, 2, [])


def test_a_run_that_goes_on_shows_its_last_step_and_its_last_evaluation(tmp_path: Path) -> None:
    path = make_training_run(tmp_path)
    (path / "result.json").unlink()
    (entry,) = json.loads(ask("list", "--json", "--artifacts-dir", tmp_path).stdout)
    assert (entry["num_steps"], entry["headline"]["step"], entry["headline"]["accuracy"]) == (2, 2, 0.75)


def test_where_there_are_no_runs_that_is_said(tmp_path: Path) -> None:
    asked = ask("list", "--artifacts-dir", tmp_path)
    assert asked.returncode == 2
    assert f"no run under {tmp_path / 'runs'}" in asked.stderr
    (tmp_path / "runs").mkdir()
    assert ask("list", "--artifacts-dir", tmp_path).returncode == 0


def test_show_says_where_a_run_comes_from_and_warns(tmp_path: Path) -> None:
    path = make_training_run(tmp_path)
    shown = ask("show", path).stdout
    for said in (
        "75.0 % [0.0, 100.0] numeric, 4 problems, step 2",
        "1234567890123456789012345678901234567890 on main, with uncommitted changes, package files c0de",
        "tiny/train, 1 rows, sha256 ",
        "model_id",
        "checkpoints/step-2/ (4 files)",
        "warning: the code had uncommitted changes (sys/dirty.diff)",
        "warning: determinism: PYTHONHASHSEED was 1, not 0",
    ):
        assert said in shown, said
    assert json.loads(ask("show", path, "--json").stdout)["entry"]["headline"]["accuracy"] == 0.75


def test_listing_showing_and_verifying_import_no_torch(tmp_path: Path) -> None:
    path = make_training_run(tmp_path)
    code = (
        "import sys; from grpo_gsm8k.cli import main\n"
        f"assert main(['runs', 'list', '--artifacts-dir', {str(tmp_path)!r}]) == 0\n"
        f"assert main(['runs', 'show', {str(path)!r}]) == main(['runs', 'verify', {str(path)!r}]) == 0\n"
        "print({'torch', 'transformers', 'numpy', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("set()")


def test_a_name_and_a_model_with_line_ends_and_escapes_stay_on_one_line(tmp_path: Path) -> None:
    path = make_training_run(tmp_path)
    config = json.loads((path / "config.json").read_text("utf-8"))
    config["values"]["model_id"] = "ti\nny\x1b[31m"
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    path.rename(path.with_name("a\nb\x1b[31m"))
    heading, row = ask("list", "--artifacts-dir", tmp_path).stdout.rstrip().split("\n")
    assert heading.startswith("name")
    assert row.split()[:3] == ["a\\nb\\x1b[31m", "grpo", "ti\\nny\\x1b[31m"]
