"""`expert-iteration` as a person runs it: it learns from what was right; killed, it ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from training_runs import facts, here, kill_and_resume, metrics_of, run_whole, start, wait_for

from grpo_gsm8k.algorithms.rollout_sequences import plain_sequence
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.rollout_files import read_rollouts
from grpo_gsm8k.runs.storage import read_lines

SMALL = (
    "--num_rounds 3 --prompts_per_round 24 --group_size 4 --save_every 1 --eval_examples 32 --num_problems 300 --wandb disabled"
)
COMMON = ["expert-iteration", "--config", "ei-tiny", *SMALL.split()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_whole(tmp_path_factory.mktemp("whole"), *COMMON)


def test_what_was_kept_and_why_the_rest_was_not_is_in_the_run(whole: Path) -> None:
    assert read_status(whole)["state"] == "completed"
    rows = {row["step"]: row for row in metrics_of(whole) if "ei/kept" in row}
    assert sorted(rows) == [1, 2, 3]
    for number, row in rows.items():
        kept = list(read_lines(whole / f"expert_data/round_{number}.jsonl"))
        counts = Counter(line["verdict"] for line in kept)
        assert len(kept) == row["ei/sampled"] == 24 * 4
        assert counts["kept"] == row["ei/kept"]
        assert sum(value for key, value in row.items() if key.startswith("ei/rejected_")) == len(kept) - counts["kept"]
        assert all(line["status"] == "correct" for line in kept if line["verdict"] in ("kept", "duplicate"))
        texts = [(line["problem_id"], *line["response"]) for line in kept if line["verdict"] == "kept"]
        assert len(set(texts)) == len(texts)


@pytest.mark.slow
def test_killed_after_its_first_round_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *COMMON)
    wait_for(lambda: list(tmp_path.glob("artifacts/runs/*/checkpoints/step-1/COMPLETE")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run, _ = kill_and_resume(tmp_path, COMMON, [])
    assert facts(run) == facts(whole)


@pytest.mark.slow
def test_rounds_from_the_first_weights_are_resumed_with_the_same_bits(tmp_path: Path) -> None:
    arguments = [*COMMON, "--start_from", "base"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = run_whole(tmp_path / "whole", *arguments)
    process = start(tmp_path / "killed", *arguments)
    wait_for(lambda: list((tmp_path / "killed").glob("artifacts/runs/*/checkpoints/step-2/COMPLETE")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run, _ = kill_and_resume(tmp_path / "killed", arguments, [])
    assert facts(run) == facts(whole)


def test_a_cap_keeps_so_many_of_a_problem_and_a_warm_up_that_is_cut_is_said(tmp_path: Path) -> None:
    done = here(
        tmp_path,
        *COMMON[:3],
        *SMALL.replace("--num_rounds 3", "--num_rounds 1").split(),
        "--max_kept_per_problem",
        "1",
        "--warmup_steps",
        "3",
    )
    assert done.returncode == 0, done.stderr
    assert "round 1 has 2 updates, so its warm-up is all of them and not warmup_steps, 3" in done.stderr
    (run,) = (tmp_path / "artifacts" / "runs").iterdir()
    kept = [line["problem_id"] for line in read_lines(run / "expert_data/round_1.jsonl") if line["verdict"] == "kept"]
    assert len(kept) == len(set(kept)) > 0


def test_a_round_in_which_nothing_is_right_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "What is the question?", "answer": "#### 987654321"}\n')
    (tmp_path / "val.jsonl").write_text('{"question": "What is 2 and 2?", "answer": "#### 4"}\n')
    assert here(tmp_path, "data", "render-eval", "--infile", "val.jsonl", "--outfile", "eval.jsonl").returncode == 0
    own = ["--env", "jsonl", "--env_path", "train.jsonl", "--eval_set_path", "eval.jsonl", "--prompts_per_round", "1"]
    options = SMALL.replace("--prompts_per_round 24 ", "").split()
    done = here(tmp_path, *COMMON[:3], *options, *own)
    assert done.returncode == 1
    assert "none of 4 rollouts was kept" in done.stderr
    (run,) = (path for path in (tmp_path / "artifacts" / "runs").iterdir() if "expert" in (path / "command.json").read_text())
    assert read_status(run)["state"] == "failed"
    assert json.loads((run / "status.json").read_bytes())["reason"]


def test_whatever_the_sampling_temperature_it_fine_tunes_at_1(tmp_path: Path) -> None:
    options = SMALL.replace("--num_rounds 3", "--num_rounds 1 --num_epochs 1 --sft_batch_size 999 --temperature 0.5").split()
    done = here(tmp_path, *COMMON[:3], *options)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "artifacts" / "runs").iterdir()
    (row,) = [row for row in metrics_of(run) if "ei/kept" in row]
    rollouts = read_rollouts(run / "rollouts/step_1.jsonl")
    sequences = [plain_sequence(kept.rollout) for kept in rollouts if kept.trained]
    assert row["ei/kept"] == len(sequences) > 1 and row["train/num_updates"] == 1
    losses = {}
    for temperature in (0.5, 1.0):
        learner = NativeLearner.from_pretrained("tiny", LearnerOptions("float32", temperature=temperature), device="cpu")
        values = [value for values in learner.logprobs(sequences) for value in values]
        losses[temperature] = -sum(values) / len(values)
    assert row["train/loss"] == pytest.approx(losses[1.0], rel=1e-5)
    assert abs(losses[0.5] / losses[1.0] - 1) > 0.05  # so that the two are told apart


def test_a_warm_up_longer_than_any_round_is_refused(tmp_path: Path) -> None:
    done = here(tmp_path, *COMMON, "--warmup_steps", "4", "--dry-run")  # 24 * 4 rollouts, 2 passes by 64
    assert done.returncode == 2
    assert "each round warms up anew and has at most 3 updates (all its rollouts kept); allowed is 0 to 3" in done.stderr
    assert here(tmp_path, *COMMON, "--warmup_steps", "3", "--dry-run").returncode == 0


def test_limits_that_keep_nothing_are_refused(tmp_path: Path) -> None:
    done = here(tmp_path, *COMMON, "--min_kept_tokens", "9", "--max_kept_tokens", "8")
    assert done.returncode == 2
    assert "max_kept_tokens is 8; allowed is min_kept_tokens (9) or more" in done.stderr
    assert not (tmp_path / "artifacts" / "runs").exists()
