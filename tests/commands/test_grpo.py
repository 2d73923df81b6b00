"""`grpo` as a person runs it: it learns, and however it is killed it ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest
from training_runs import facts, here, kill_and_resume, metrics_of, run_whole, start, wait_for

from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.storage import json_line, read_lines

SMALL = {
    "max_steps": "6",
    "prompts_per_step": "8",
    "group_size": "4",
    "eval_every": "3",
    "save_every": "2",
    "keep_last": "2",
    "eval_examples": "32",
    "num_problems": "300",
    "warmup_steps": "1",
    "save_rollouts_every": "2",
    "wandb": "disabled",
}


def arguments(**changed: str | int | float) -> list[str]:
    """The command line of a small run, with some options changed."""
    given = {**SMALL, **{key: str(value) for key, value in changed.items()}}
    return ["grpo", "--config", "grpo-tiny", *(part for key, value in given.items() for part in (f"--{key}", value))]


COMMON = arguments()


def last_run(folder: Path) -> Path:
    return max((folder / "artifacts" / "runs").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_whole(tmp_path_factory.mktemp("whole"), *COMMON)


def test_a_run_leaves_metrics_rollouts_evaluations_checkpoints_and_a_report(whole: Path) -> None:
    assert read_status(whole)["state"] == "completed"
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-4", "step-6"]
    assert {path.name for path in (whole / "eval").glob("*.json")} == {f"step_{n}.json" for n in (0, 3, 6)}
    assert sorted(path.name for path in (whole / "rollouts").iterdir()) == [f"step_{n}.jsonl" for n in (1, 3, 5, 6)]
    assert (whole / "report.html").exists()
    rows = [row for row in read_lines(whole / "metrics.jsonl") if "reward/mean" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for key in ("groups/distinct_rewards", "groups/distinct_answers", "policy/entropy", "rollout/mean_tokens"):
        assert all(key in row for row in rows), key
    for key in ("sample", "score", "advantage", "update", "publish", "step"):
        assert all(row[f"time/{key}_s"] >= 0 for row in rows), key
    ledger = [row for row in read_lines(whole / "ledger.jsonl") if "data" in row]
    order = ["step", "data", "prompt", "sampled_tokens", "reward", "advantage", "loss", "grad_norm", "weights"]
    assert all(list(row) == order for row in ledger)
    assert json.loads((whole / "result.json").read_bytes())["weights_sha256"] == ledger[-1]["weights"]
    assert json.loads((whole / "overlap.json").read_bytes())["num_overlapping"] == 0


def test_on_policy_the_learner_and_the_engine_agree_at_every_step(whole: Path) -> None:
    rows = [row for row in read_lines(whole / "metrics.jsonl") if "mismatch/max_abs" in row]
    assert len(rows) == 6
    assert all(0 < row["mismatch/max_abs"] < 2e-5 for row in rows)
    assert all(row["policy/ratio_max"] == 1.0 for row in rows)
    gate = json.loads((whole / "sys/ratio_gate.json").read_bytes())
    assert gate["mean_abs"] < 1e-5


def test_killed_while_it_saves_or_samples_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *COMMON)
    wait_for(lambda: list(tmp_path.glob("artifacts/runs/*/checkpoints/step-2/config.json")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run, _ = kill_and_resume(tmp_path, COMMON, [])
    assert facts(run) == facts(whole)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(4)
    run, kills = kill_and_resume(tmp_path, COMMON, [rng.uniform(3.0, 9.0) for _ in range(12)])
    assert kills >= 3
    assert facts(run) == facts(whole)


OTHER_WAYS: dict[str, dict[str, str | int | float]] = {
    "several updates on stale rollouts": {"num_updates_per_rollout": 2, "num_minibatches": 2, "correction": "token"},
    "one step off": {"overlap": "one_step_off", "algorithm": "grpo"},
    "a curriculum and resampling": {"curriculum": "pass_rate", "zero_variance": "resample"},
    "a reference, an entropy bonus and LoRA": {"kl_beta": 0.01, "entropy_coef": 0.001, "lora_rank": 4},
}


@pytest.mark.parametrize(
    "options",
    [pytest.param(way, id=name, marks=() if name == "one step off" else pytest.mark.slow) for name, way in OTHER_WAYS.items()],
)
def test_resumed_from_a_checkpoint_every_way_of_training_ends_with_the_same_bits(
    options: dict[str, str | int | float], tmp_path: Path
) -> None:
    is_ahead = "overlap" in options  # a step more, so that resumed at 2 it has rollouts ahead, which its gate looks at
    done = here(tmp_path, *arguments(**options, max_steps=4 if is_ahead else 3, keep_last=9, eval_examples=8))
    assert done.returncode == 0, done.stderr
    run = last_run(tmp_path)
    before = facts(run)
    status = json.loads((run / "status.json").read_bytes())
    (run / "status.json").write_bytes(json_line({**status, "state": "interrupted"}))  # as if it had been stopped after a save
    done = here(tmp_path, "grpo", "--resume", str(run / "checkpoints/step-2"))
    assert done.returncode == 0, done.stderr
    assert facts(run) == before
    gate = json.loads((run / "sys/start-2/ratio_gate.json").read_bytes())
    assert gate["mean_abs"] < 1e-5
    if is_ahead:
        assert gate["num_sequences"] == 8 * 4


@pytest.mark.parametrize("algorithm", ["reinforce", "reinforce_baseline", "rloo", "grpo", "dapo", "gspo", "cispo"])
def test_every_algorithm_takes_steps(algorithm: str, tmp_path: Path) -> None:
    scale = "group_std" if algorithm in ("grpo", "dapo", "gspo", "cispo") else "one"
    done = here(tmp_path, *arguments(algorithm=algorithm, scale=scale, max_steps=2, eval_examples=8))
    assert done.returncode == 0, done.stderr
    rows = [row for row in metrics_of(last_run(tmp_path)) if "reward/mean" in row]
    assert all(row["optim/grad_norm"] > 0 for row in rows)


REFUSED: dict[str, tuple[dict[str, str | int | float], str]] = {
    "a group of one": ({"group_size": 1}, "group_size"),
    "an algorithm that is not there": ({"algorithm": "gpro"}, "grpo"),
    "a sampler that is not the policy": ({"top_p": 0.9}, "top_p"),
    "more minibatches than groups": ({"num_minibatches": 9}, "num_minibatches"),
    "an environment that is not there": ({"env": "wordel"}, "wordle"),
    "an engine without weight updates": ({"engine": "openai"}, "engine"),
    "problems of its own without a file": ({"env": "jsonl"}, "env_path"),
    "dropout, which blurs the comparison": ({"lora_rank": 4, "lora_dropout": 0.1}, "lora_dropout is 0.1"),
    "a correction that overlap has no policy for": ({"overlap": "one_step_off", "correction": "token"}, "correction"),
    "older rollouts without a ratio": ({"overlap": "one_step_off", "algorithm": "reinforce", "scale": "one"}, "reinforce"),
    "older rollouts without a ratio, by rloo": ({"overlap": "one_step_off", "algorithm": "rloo", "scale": "one"}, "rloo"),
    "more problems a step than there are": ({"prompts_per_step": 301}, "allowed is 1 to 300"),
    "a penalty over more than a rollout": ({"overlong_buffer": 41}, "overlong_buffer is 41 tokens, and a rollout has 40"),
}


@pytest.mark.parametrize(("options", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_one_line(options: dict[str, str | int | float], named: str, tmp_path: Path) -> None:
    done = here(tmp_path, *arguments(**options))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert named in line
    assert not [*tmp_path.glob("artifacts/runs/*/sys/learner.json"), *tmp_path.glob("artifacts/runs/*/eval/*")]  # no weights


def write_problems(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_bytes(b"".join(map(json_line, rows)))


def test_training_on_the_eval_set_is_refused_with_examples_unless_allowed_on_record(tmp_path: Path) -> None:
    rows = [{"question": p.question, "answer": p.answer} for p in generate("train", 40, 0)]
    write_problems(tmp_path / "train.jsonl", rows)
    write_problems(
        tmp_path / "val.jsonl", rows[:2] + [{"question": p.question, "answer": p.answer} for p in generate("val", 9, 0)]
    )
    assert here(tmp_path, "data", "render-eval", "--infile", "val.jsonl", "--outfile", "eval.jsonl").returncode == 0
    own = {"env": "jsonl", "env_path": "train.jsonl", "eval_set_path": "eval.jsonl", "max_steps": 1}
    done = here(tmp_path, *arguments(**own))
    assert done.returncode == 1
    assert "2 training examples are problems of the eval set (train/00000" in done.stderr
    done = here(tmp_path, *arguments(**own, allow_overlap="true"))
    assert done.returncode == 0, done.stderr
    assert json.loads((last_run(tmp_path) / "overlap.json").read_bytes())["num_overlapping"] == 2


def test_a_dry_run_shows_the_algorithm_that_is_named_without_the_parts_of_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('command = "grpo"\nalgorithm = "dr_grpo"\nscale = "group_std"\nzero_variance = "drop"\n', "utf-8")
    shown = json.loads(here(tmp_path, "grpo", "--config", str(config), "--dry-run").stdout)
    assert shown["values"]["scale"] == "group_std"
    named = here(tmp_path, "grpo", "--config", str(config), "--algorithm", "rloo", "--zero-variance", "keep", "--dry-run")
    shown = json.loads(named.stdout)
    assert (shown["values"]["scale"], shown["values"]["zero_variance"]) == (None, "keep")
    assert shown["sources"]["scale"] == f"auto: algorithm rloo is named, so file {config} does not say its scale"


def test_a_task_without_any_distinct_reward_stops_and_says_why(tmp_path: Path) -> None:
    hard = [{"question": f"What is {n} times {n} to the power of {n}?", "answer": "#### 123456789"} for n in range(2, 40)]
    write_problems(tmp_path / "train.jsonl", hard)
    write_problems(tmp_path / "val.jsonl", [{"question": p.question, "answer": p.answer} for p in generate("val", 4, 0)])
    assert here(tmp_path, "data", "render-eval", "--infile", "val.jsonl", "--outfile", "eval.jsonl").returncode == 0
    own = {"env": "jsonl", "env_path": "train.jsonl", "eval_set_path": "eval.jsonl"}
    done = here(tmp_path, *arguments(**own, zero_variance_patience=3))
    assert done.returncode == 1
    assert "no rollout had an advantage for 3 steps" in done.stderr
    assert "too hard" in done.stderr
    assert read_status(last_run(tmp_path))["state"] == "failed"


def test_steps_that_train_no_rollout_stop_the_run_though_rewards_differ(tmp_path: Path) -> None:
    done = here(tmp_path, *arguments(zero_variance_patience=2, max_new_tokens=1, mask_truncated="true", eval_examples=8))
    assert done.returncode == 1
    assert "no rollout had an advantage for 2 steps" in done.stderr
    assert "its prompt or its limits are wrong" in done.stderr


def test_without_a_baseline_equal_rewards_go_on_training(tmp_path: Path) -> None:
    greedy: dict[str, str | int | float] = {"algorithm": "reinforce", "scale": "one", "temperature": 0.01, "ratio_tolerance": 1}
    done = here(tmp_path, *arguments(**greedy, zero_variance_patience=1, max_steps=3, eval_examples=8))
    assert done.returncode == 0, done.stderr
    rows = [row for row in metrics_of(last_run(tmp_path)) if "reward/mean" in row]
    assert [row["groups/distinct_rewards"] for row in rows] == [0, 0, 0]
    assert all(row["rollout/learnable"] == row["reward/mean"] > 0 for row in rows)
