"""Runs done again from their directories alone, and resumption certified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_training_run
from training_runs import here, only_run

from grpo_gsm8k.commands.runs_rerun import verdict_text
from grpo_gsm8k.runs.divergence import compare_runs
from grpo_gsm8k.runs.git import PACKAGE

GRPO = "grpo --config grpo-tiny --max_steps 3 --warmup_steps 1 --prompts_per_step 8 --group_size 4 --num_minibatches 1"
GRPO += " --eval_examples 8 --num_problems 100 --wandb disabled"
EVAL = "eval --limit 6 --wandb disabled"


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a person does, so that what its own processes print is seen as well."""
    command = [sys.executable, "-m", "grpo_gsm8k.cli", *arguments]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=280)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert here(folder, *EVAL.split()).returncode == 0
    return only_run(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GRPO run."""
    folder = tmp_path_factory.mktemp("trained")
    done = harness(folder, *GRPO.split())
    assert done.returncode == 0, done.stderr
    return only_run(folder)


def copied(run: Path, tmp_path: Path) -> Path:
    """Returns a copy of a run that a test may change, in a folder of the same name as the first one's."""
    folder = tmp_path / run.parents[2].name
    shutil.copytree(run.parents[2], folder)
    return only_run(folder)


def rewrite(path: Path, key: str, value: Any, step: int | None = None) -> None:
    """Sets a key of a JSON file, or of the line of `step` in a JSONL."""
    if step is None:
        values = json.loads(path.read_bytes())
        values["values"] |= {key: value}
        values["sources"] |= {key: "flag"}
        path.write_text(json.dumps(values))
        return
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    path.write_text(
        "".join(json.dumps(row | ({key: value} if row["step"] == step and key in row else {})) + "\n" for row in rows)
    )


def verdict_of(out: Path) -> dict[str, Any]:
    """Returns what the only rerun under `out` recorded."""
    (path,) = out.glob("runs/*/certificates/rerun.json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_an_evaluation_done_again_is_identical(evaluated: Path, tmp_path: Path) -> None:
    done = harness(tmp_path, "runs", "rerun", str(evaluated), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "nothing differs: the two must be equal to the last bit" in done.stdout
    assert "verdict  identical" in done.stdout
    found = verdict_of(tmp_path / "out")
    assert (found["verdict"], found["rerun_of"], found["differs"]) == ("identical", evaluated.name, [])


@pytest.mark.slow
def test_another_limit_or_length_is_seen_at_its_stage(evaluated: Path, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    rewrite(run / "config.json", "limit", 5)
    done = here(tmp_path, "runs", "rerun", str(run), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "first divergence at step 0, data" in done.stderr
    rewrite(run / "config.json", "limit", 6)
    rewrite(run / "config.json", "max_new_tokens", 3)
    done = here(tmp_path, "runs", "rerun", str(run), "--out", str(tmp_path / "shorter"))
    assert done.returncode == 1
    assert "first divergence at step 0, sampled tokens" in done.stderr
    assert "token_ids differ from number 3 on" in done.stdout


@pytest.mark.slow
def test_an_edited_verdict_and_another_code_are_named(evaluated: Path, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    rewrite(run / "ledger.jsonl", "reward", "0" * 64, step=0)
    world = json.loads((run / "sys/world.json").read_bytes())
    (run / "sys/world.json").write_text(json.dumps(world | {"code": "0" * 16, "torch": "2.0"}))
    done = here(tmp_path, "runs", "rerun", str(run), "--out", str(tmp_path / "out"))
    assert done.returncode == 1 and "first divergence at step 0, reward" in done.stderr
    assert "may change bits: torch was 2.0" in done.stdout and "--at-commit" in done.stdout


@pytest.mark.slow
def test_prepared_data_that_were_changed_are_prepared_anew(evaluated: Path, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    data = run.parents[1] / "tiny/val.jsonl"
    data.write_text(data.read_text().replace("keys", "cups"))
    done = here(run.parents[2], "runs", "rerun", str(run))
    assert done.returncode == 0, done.stderr
    assert "so it is prepared anew from its source" in done.stdout


@pytest.mark.slow
def test_the_data_tools_give_the_same_bytes_again(tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text(
        '{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2 + 1?", "answer": "#### 3"}\n'
    )
    for words in (
        "data prep --dataset tiny",
        "data render-eval --infile problems.jsonl",
        "data render-pairs --infile problems.jsonl",
    ):
        assert here(tmp_path, *words.split(), "--artifacts-dir", words.split()[1]).returncode == 0
        (run,) = (tmp_path / words.split()[1] / "runs").iterdir()
        done = here(tmp_path, "runs", "rerun", str(run))
        assert done.returncode == 0, done.stderr
    problems = tmp_path / "problems.jsonl"
    problems.write_text(problems.read_text().replace("#### 3", "#### 4"))
    done = here(tmp_path, "runs", "rerun", str(run))
    assert done.returncode == 1 and "rules out equality: problems.jsonl was" in done.stdout


def test_what_cannot_be_done_again_is_said_in_one_line(evaluated: Path, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    for arguments, said in (
        (("rerun", str(run), "--steps", "2"), "--steps is for training runs"),
        (("certify-resume", str(run), "--at", "6"), "allowed are different completions from 1 to 5"),
        (("rerun", "nowhere"), "no run 'nowhere'"),
    ):
        done = here(tmp_path, "runs", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr
    rewrite(run / "config.json", "eval_path", "gone.jsonl")
    done = here(tmp_path, "runs", "rerun", str(run))
    assert done.returncode == 2 and "eval_path" in done.stderr and "gone.jsonl" in done.stderr
    for name in ("sys/world.json", "config.json", "command.json"):
        (run / name).write_text('{"values": ')
        done = here(tmp_path, "runs", "rerun", str(run))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "changed or damaged" in done.stderr


def edited(run: Path, name: str, step: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the line of a step in a JSONL file of a run, or all of its lines where they have no step."""
    rows = [json.loads(line) for line in (run / name).read_text().split("\n") if line]
    for row in rows:
        if row.get("step", step) == step and not any(key.startswith("eval/") for key in row):
            change(row)
    (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_loss_that_drifts_by_1e_7_is_named_with_both_values_and_its_size(tmp_path: Path) -> None:
    there, here_ = make_training_run(tmp_path / "a"), make_training_run(tmp_path / "b")
    edited(here_, "ledger.jsonl", 2, lambda row: row.update(loss=[row["loss"][0] + 1e-7]))
    edited(here_, "metrics.jsonl", 2, lambda row: row.update({"train/loss": row["train/loss"] + 1e-7}))
    said = verdict_text(compare_runs(there, here_), there, here_, None)
    assert "verdict  first divergence at step 2, loss (ledger.jsonl)" in said
    assert "  there  [-0.01]" in said and "  here   [-0.0099999]" in said
    counts = {line.split()[0]: line.split()[-3:] for line in said if line.endswith(("1 of 2", "2 of 2"))}
    assert counts["loss"] == ["1", "of", "2"] and counts["data"] == counts["gradient"] == ["2", "of", "2"]
    assert said[-1].split() == ["train/loss", "1e-07", "(step", "2:", "-0.01,", "-0.0099999)"]


def test_log_probs_that_drift_by_1e_7_are_found_among_the_kept_rollouts(tmp_path: Path) -> None:
    there, here_ = make_training_run(tmp_path / "a"), make_training_run(tmp_path / "b")
    edited(here_, "rollouts/step_2.jsonl", 2, lambda row: row.update(logprobs=[row["logprobs"][0], row["logprobs"][1] + 1e-7]))
    found = compare_runs(there, here_).divergence
    assert found is not None and (found.file, found.step) == ("rollouts/step_2.jsonl", 2)
    assert found.detail is not None and "logprobs differ from number 1 on: -0.25 and -0.2499999" in found.detail
    edited(here_, "ledger.jsonl", 2, lambda row: row.update(sampled_tokens="0" * 64))
    found = compare_runs(there, here_).divergence
    assert found is not None and (found.step, found.stage) == (2, "sampled_tokens")
    assert found.detail is not None and "logprobs differ from number 1 on: -0.25 and -0.2499999" in found.detail


def test_a_run_that_asked_a_server_cannot_be_done_again_and_that_is_said(tmp_path: Path) -> None:
    run = make_training_run(tmp_path)
    for name in ("command.json", "status.json"):
        (run / name).write_text((run / name).read_text().replace('"command": "grpo"', '"command": "traces generate"'))
    done = here(tmp_path, "runs", "rerun", str(run))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be done again (its server would answer otherwise)" in done.stderr
    done = here(tmp_path, "runs", "certify-resume", str(run))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "has no --resume" in done.stderr


@pytest.mark.slow
def test_the_code_that_ran_is_restored_from_commit_and_diff(tmp_path: Path) -> None:
    repository, work = tmp_path / "repository", tmp_path / "work"
    package = shutil.copytree(PACKAGE, repository / "grpo_gsm8k", ignore=shutil.ignore_patterns("__pycache__"))
    work.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=A", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)

    def theirs(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "grpo_gsm8k.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        return subprocess.run(command, cwd=work, text=True, capture_output=True, timeout=280, env=environment)

    grader = package / "rewards/numeric.py"
    text = grader.read_text()
    old = 'if right else Score(0.0, answer, "wrong"'
    assert old in text
    grader.write_text(text.replace(old, old.replace("right", "not right")))  # not committed
    (package / "rewards/untracked.py").write_text("NEW = 1\n")
    assert theirs(*EVAL.split()).returncode == 0
    run = only_run(work)
    assert "untracked.py" in (run / "sys/dirty.diff").read_text()
    grader.write_text(text)
    done = theirs("runs", "rerun", str(run), "--out", "now")
    assert done.returncode == 1 and "may change bits: code was" in done.stdout and "with dirty.diff" in done.stdout
    assert "first divergence at step 0, reward" in done.stderr
    done = theirs("runs", "rerun", str(run), "--out", "then", "--at-commit")
    assert done.returncode == 0, done.stderr
    assert "nothing differs: the two must be equal" in done.stdout
    trees = subprocess.run([*git, "worktree", "list"], check=True, capture_output=True, text=True).stdout
    assert trees.count("\n") == 1


@pytest.mark.slow
def test_training_done_again_is_identical_whole_and_up_to_a_step(trained: Path, tmp_path: Path) -> None:
    done = harness(tmp_path, "runs", "rerun", str(trained), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "verdict  identical" in done.stdout
    done = harness(tmp_path, "runs", "rerun", str(trained), "--out", str(tmp_path / "first"), "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert "verdict  identical up to step 1" in done.stdout
    assert verdict_of(tmp_path / "first")["upto"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 7, "step 0, rows of the evaluation"),  # each row holds its seed
        ("lr", 1e-3, "step 1, weights"),
        ("kl_beta", 0.5, "step 1, loss"),
        ("scale", "one", "advantage"),
        ("temperature", 0.9, "step 1, sampled tokens"),
    ],
)
def test_a_changed_option_is_seen_at_the_stage_that_it_decides(
    trained: Path, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    run = copied(trained, tmp_path)
    rewrite(run / "config.json", key, value)
    done = here(tmp_path, "runs", "rerun", str(run), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.slow
def test_resumption_after_a_kill_is_certified(trained: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    done = here(tmp_path, "runs", "certify-resume", str(run), "--at", "1,2", "--kill")
    assert done.returncode == 0, done.stderr
    (path,) = (run / "certificates").iterdir()
    certificate = json.loads(path.read_bytes())
    assert certificate["verdict"] == "identical" and certificate["recorded_run"] == "identical"
    assert [case["at"] for case in certificate["cases"]] == [1, 2]
    assert all(case["hashes"] == certificate["uninterrupted"] for case in certificate["cases"])
    assert {case["stopped_by"] for case in certificate["cases"]} == {"SIGKILL"}
    done = here(tmp_path, "runs", "certify-resume", str(run), "--at", "3")
    assert done.returncode == 2 and "allowed are different steps from 1 to 2" in done.stderr


@pytest.mark.slow
def test_resumption_of_an_evaluation_after_a_kill_is_certified(tmp_path: Path) -> None:
    assert here(tmp_path, "eval", "--limit", "150", "--num_samples", "2", "--temperature", "1").returncode == 0
    run = only_run(tmp_path)
    done = here(tmp_path, "runs", "certify-resume", str(run), "--at", "40", "--kill")
    assert done.returncode == 0, done.stderr
    (path,) = (run / "certificates").iterdir()
    certificate = json.loads(path.read_bytes())
    assert (certificate["verdict"], certificate["unit"], certificate["num_units"]) == ("identical", "completion", 300)
    assert [case["at"] for case in certificate["cases"]] == [40]
    assert all(case["at"] <= case["stopped_after"] <= 300 for case in certificate["cases"])
    assert certificate["cases"][0]["stopped_after"] < 300, "the copy was killed while it sampled"
    assert all(case["hashes"] == certificate["uninterrupted"] for case in certificate["cases"])
