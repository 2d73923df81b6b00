"""`env list | verify | rollouts | loss-mask`, as a person runs them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_gsm8k.cli import main
from grpo_gsm8k.envs.registry import ENV_NAMES
from grpo_gsm8k.runs.rollout_files import write_rollouts

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))

from reward_runs import make_reward_run, make_rollout


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_list_names_every_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ENV_NAMES)


def test_verify_reports_each_split_and_fails_on_golds_that_its_grader_does_not_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(9)]
    Path("good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert main(["env", "verify", "jsonl", "--env_path", "good.jsonl"]) == 0
    assert "jsonl train: 9 of 9 published answers earn the full score" in capsys.readouterr().out
    assert main(["env", "verify", "jsonl", "--env_path", "good.jsonl", "--reward", "format"]) == 2
    printed = capsys.readouterr()
    assert "jsonl train: 0 of 9 published answers" in printed.out
    assert "FAULT 9 published answers without the full score" in printed.out
    assert printed.err.startswith("error: environment jsonl is not sound: 9 published answers without the full score in train")
    assert printed.err.count("\n") == 1


def test_rollouts_of_an_environment_are_printed_turn_by_turn_and_are_the_same_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["env", "rollouts", "calculator_inline", "--num", "2", "--max_new_tokens", "40"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "prompt, 26 tokens" in first
    assert "model, turn 1" in first
    assert "environment, " in first
    assert "tokens: trained " in first
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "seed=1"]) == 0
    assert capsys.readouterr().out != first


def test_the_loss_mask_of_an_environment_is_printed_and_written_as_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "loss-mask", "calculator_inline", "--num", "3", "--max_new_tokens", "40"]) == 0
    printed = capsys.readouterr().out
    assert "[prompt 26]<|im_start|>user" in printed
    assert "[trained " in printed
    assert "said by the environment" in printed
    assert "page  loss_mask_calculator_inline.html" in printed
    assert '<i class="t" title=' in Path("loss_mask_calculator_inline.html").read_text("utf-8")


def test_a_mask_that_was_asked_for_is_stated_and_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["env", "loss-mask", "tiny", "--num", "3", "--max_new_tokens", "3", "--html", "page.html"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--mask_truncated", "true"]) == 0
    printed = capsys.readouterr()
    assert "3 without a trained token: masked as asked for by mask_truncated" in printed.out
    assert "ended by length after 3 sampled tokens" in printed.out
    assert "error" not in printed.err
    assert Path("page.html").exists()


def test_a_prompt_longer_than_the_window_is_refused_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "1 + " * 3000 + "1?", "answer": "#### 3001"}
    Path("long.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    assert main(["env", "loss-mask", "jsonl", "--env_path", "long.jsonl"]) == 2
    assert "do not fit the model's window of 4096" in capsys.readouterr().err


def test_a_runs_rollouts_are_shown_by_step_and_its_mask_fails_for_all_steps(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    run = make_reward_run(folder / "artifacts", num_steps=3)
    assert main(["env", "rollouts", "latest", "--num", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("model, turn 2") == 2
    assert "calc>" in printed
    assert "advantage " in printed
    assert main(["env", "rollouts", run.path.name, "--step", "2"]) == 2
    assert "kept no rollouts of step 2; there are 1, 3" in capsys.readouterr().err
    assert main(["env", "loss-mask", str(run.path)]) == 0
    assert "2 without a trained token: masked as asked for by mask_truncated" in capsys.readouterr().out
    untrained = replace(make_rollout(99), token_ids=(), sampled=(), logprobs=())
    write_rollouts(run, 1, [make_rollout(3), untrained], trained=[True, True])
    assert main(["env", "loss-mask", str(run.path)]) == 2
    printed_mask = capsys.readouterr()
    assert "18 rollouts" in printed_mask.out
    assert printed_mask.err.startswith(
        "error: 1 of 18 rollouts have no trained token; the first, calculator/train/99/0: missing"
    )
    assert printed_mask.err.count("\n") == 1
    assert "calculator/train/99/0" in printed_mask.out
    assert (run.path / "loss_mask.html").exists()


def test_what_is_neither_environment_nor_run_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert main(["env", "rollouts", "wordl"]) == 2
    assert "unknown environment 'wordl'; did you mean 'wordle'?" in capsys.readouterr().err
    assert main(["env", "verify", "wordl"]) == 2
    assert "did you mean 'wordle'?" in capsys.readouterr().err
    assert main(["env", "loss-mask", str(folder)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
