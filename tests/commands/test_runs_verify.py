"""`runs verify`: whatever of a run directory is not what the run recorded is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from small_runs import ask, fill, make_training_run, reseal

from grpo_gsm8k.cli import main
from grpo_gsm8k.errors import ProofError
from grpo_gsm8k.runs.directory import RunDirectory, read_status
from grpo_gsm8k.runs.lifecycle import Interrupted, running
from grpo_gsm8k.runs.storage import sealed, write_json


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_training_run(tmp_path)


def problems(run: Path) -> dict[str, list[str]]:
    """What verify names, by file; the exit code must agree."""
    asked = ask("verify", run, "--json")
    found: dict[str, list[str]] = {}
    for problem in json.loads(asked.stdout)["problems"]:
        found.setdefault(problem["file"], []).append(problem["what"])
    assert asked.returncode == (1 if found else 0)
    return found


def test_a_run_as_it_was_left_is_as_recorded(run: Path) -> None:
    asked = ask("verify", run)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "2 evaluations" in asked.stdout
    assert "1 file of rollouts" in asked.stdout
    assert "1 checkpoint " in asked.stdout
    assert asked.stdout.rstrip().endswith(f"as recorded, manifest sha256 {read_status(run)['manifest_sha256']}")


def test_a_run_directory_can_be_moved_and_verified_there(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "elsewhere" / "copy")
    assert problems(moved) == {}


def test_one_changed_byte_in_any_file_is_named(run: Path) -> None:
    names = json.loads((run / "manifest.json").read_bytes())["files"]
    assert {"config.json", "ledger.jsonl", "checkpoints/step-2/COMPLETE", "eval/step_0.jsonl"} <= names.keys()
    for name in names:
        before = (run / name).read_bytes()
        (run / name).write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        assert any("was changed" in what for what in problems(run)[name]), name
        (run / name).write_bytes(before)
    assert problems(run) == {}


def test_a_cut_a_missing_and_an_added_file_are_named(run: Path) -> None:
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows[:-10])
    (run / "sys/world.json").unlink()
    (run / "eval/step_9.json").write_text("{}")
    found = problems(run)
    assert f"was cut to {len(rows) - 10:,} of {len(rows):,} bytes, or replaced" in found["metrics.jsonl"]
    assert found["sys/world.json"] == ["is missing"]
    assert found["eval/step_9.json"] == ["was not there when the run ended (manifest.json does not name it)"]


def test_what_later_commands_add_is_no_fault(run: Path) -> None:
    for name in ("report.html", "audit/labels.jsonl", "certificates/resume_1.json"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}\n")
    assert problems(run) == {}


def test_a_changed_or_removed_manifest_is_named(run: Path) -> None:
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(manifest + " ")
    assert "status.json has another sha256 of it" in problems(run)["manifest.json"][0]
    (run / "manifest.json").unlink()
    assert problems(run) == {"manifest.json": ["is missing"]}


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("eval/step_0.jsonl", '"status": "wrong"', '"status": "correct"', "reward gives"),
        ("eval/step_0.jsonl", '"token_ids": [9, 1]', '"token_ids": [9, 2]', "sampled_tokens gives"),
        ("eval/step_0.jsonl", '"completion": "0"', '"completion": "7"', "rows gives"),
        ("eval/step_0.jsonl", '"answer": "7"', '"answer": "8"', "rows gives"),
        ("eval/step_0.jsonl", "Question 1?", "Question 5?", "data gives"),
        ("eval/step_2.json", '"accuracy": 0.75', '"accuracy": 0.85', "the rows give 0.75"),
        ("metrics.jsonl", '"eval/numeric/accuracy": 0.25', '"eval/numeric/accuracy": 0.45', "eval/step_0.jsonl gives 0.25"),
        ("metrics.jsonl", '"train/loss": -0.01', '"train/loss": -0.5', "train/loss is -0.5, and ledger.jsonl gives -0.01"),
        ("metrics.jsonl", '"optim/grad_norm": 0.5', '"optim/lr": 0.5', "optim/grad_norm is not there"),
        ("ledger.jsonl", '"weights": "w2"', '"weights": "w1"', "step 2: weights are not those that checkpoints/step-2/"),
        ("result.json", '"accuracy": 0.75', '"accuracy": 0.99', "accuracy is 0.99, and eval/step_2.json has 0.75"),
        ("result.json", '"w2"', '"w3"', "is not that of the last line of ledger.jsonl"),
        ("rollouts/step_2.jsonl", '"gold": "2"', '"gold": "3"', "not the rollout that was written"),
        ("config.json", '"seed": 1', '"seed": 2', "checkpoints/step-2/trainer_state.json was saved with"),
        ("checkpoints/step-2/model.safetensors", "weights", "Weights", "was changed since the checkpoint was completed"),
        (
            "checkpoints/step-2/COMPLETE",
            '"model.safetensors": "',
            '"model.safetensors": "0',
            "has other hashes than checkpoints.jsonl",
        ),
    ],
)
def test_a_forger_who_makes_the_manifest_fit_is_caught_by_what_numbers_are_derived_from(
    run: Path, name: str, old: str, new: str, said: str
) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))
    reseal(run)
    assert any(said in what for what in problems(run)[name])


def test_a_forged_reward_is_caught_by_the_rollouts_of_its_step(run: Path) -> None:
    rows = (run / "metrics.jsonl").read_text().replace(f'"reward/mean": {1 / 3}', '"reward/mean": 0.99')
    (run / "metrics.jsonl").write_text(rows)
    reseal(run)
    (said,) = problems(run)["metrics.jsonl"]  # of step 1 no rollouts were kept
    assert said.startswith("step 2: reward/mean is 0.99, and rollouts/step_2.jsonl gives 0.33")


@pytest.mark.parametrize(("key", "value"), [("state", "failed"), ("exit_code", 1)])
def test_a_changed_end_and_a_changed_log_are_named(run: Path, key: str, value: object) -> None:
    status = json.loads((run / "status.json").read_bytes())
    (run / "status.json").write_text(json.dumps({**status, key: value}))
    assert "with which the run ended" in problems(run)["status.json"][0]
    (run / "status.json").write_text(json.dumps(status))
    log = (run / "run.log").read_bytes()
    (run / "run.log").write_bytes(log + b"said after the end\n")
    assert problems(run) == {}
    (run / "run.log").write_bytes(b"x" + log)
    assert "was changed" in problems(run)["run.log"][0]
    (run / "run.log").unlink()
    assert problems(run)["run.log"] == ["is missing"]


def test_a_certificate_with_another_verdict_is_named(run: Path) -> None:
    path = run / "certificates/resume_1.json"
    path.parent.mkdir()
    write_json(path, sealed({"verdict": "divergent", "cases": [{"at": 1, "path": Path("x")}]}))
    assert problems(run) == {}
    path.write_text(path.read_text().replace("divergent", "identical"))
    assert "was changed" in problems(run)["certificates/resume_1.json"][0]


def test_a_runs_own_eval_set_is_found_when_the_run_is_moved_and_called_otherwise(run: Path, tmp_path: Path) -> None:
    (run / "eval_set.jsonl").write_text("{}\n")
    row = {"path": f"artifacts/runs/{run.name}/eval_set.jsonl", "sha256": hashlib.sha256(b"{}\n").hexdigest()}
    (run / "data.json").write_text(json.dumps({"files": [row]}))
    moved = Path(shutil.move(run, tmp_path / "copy"))
    assert "not here" not in ask("verify", moved).stdout
    (moved / "eval_set.jsonl").write_text("[]\n")
    assert any("changed since the run" in what for what in problems(moved)["eval_set.jsonl"])


def test_a_data_file_is_checked_where_it_is_still_there(run: Path) -> None:
    data = run.parent.parent / "train.jsonl"
    data.write_text("other\n")
    assert "changed since the run" in problems(run)[str(data)][0]
    data.unlink()
    asked = ask("verify", run)
    assert asked.returncode == 0
    assert "data.json: 1 file is not here to be checked" in asked.stdout


def test_a_damaged_checkpoint_of_a_killed_run_is_found_without_a_manifest(run: Path) -> None:
    status = json.loads((run / "status.json").read_bytes())
    for key in ("manifest_sha256", "ended_at", "exit_code", "reason"):
        status.pop(key)
    status["state"] = "running"
    status["starts"][-1]["pid_start"] -= 1
    (run / "status.json").write_text(json.dumps(status))
    (run / "manifest.json").unlink()
    asked = ask("verify", run)
    assert asked.returncode == 0
    assert "no manifest.json: the run died before it was written" in asked.stdout
    (run / "checkpoints/step-2/model.safetensors").write_bytes(b"other")
    assert "was changed since the checkpoint was completed" in problems(run)["checkpoints/step-2/model.safetensors"][0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"state": "done"}', b'{"state": "running", "starts": 7}', b"\xff", None]
)
def test_a_damaged_status_is_named_beside_whatever_else_is_wrong(run: Path, content: bytes | None) -> None:
    (run / "status.json").unlink()
    if content is not None:
        (run / "status.json").write_bytes(content)
    (run / "config.json").write_text('{"values": ')
    (run / "sys/world.json").unlink()
    (run / "eval/step_2.jsonl").write_bytes((run / "eval/step_2.jsonl").read_bytes()[:-20])
    found = problems(run)
    assert {"status.json", "config.json", "sys/world.json", "eval/step_2.jsonl"} <= found.keys()
    assert len(found["status.json"]) == 1
    asked = ask("verify", run)
    assert "(state unknown): not what was recorded" in asked.stdout
    assert "against manifest.json" in asked.stdout and "1 checkpoint " in asked.stdout and "1 file of rollouts" in asked.stdout


def test_a_run_with_neither_status_nor_manifest_is_checked_as_far_as_others_say(run: Path) -> None:
    (run / "status.json").write_text("{")
    (run / "manifest.json").unlink()
    (run / "checkpoints/step-2/model.safetensors").write_bytes(b"other")
    assert problems(run).keys() == {"status.json", "checkpoints/step-2/model.safetensors"}


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"files": []}', '{"files": {"config.json": 7}}', '{"files": {"config.json": {}}}']
)
def test_beside_a_damaged_manifest_what_other_files_say_is_checked(run: Path, manifest: str) -> None:
    (run / "manifest.json").write_text(manifest)
    (run / "checkpoints/step-2/model.safetensors").write_bytes(b"other")
    (run / "result.json").write_text((run / "result.json").read_text().replace('"w2"', '"w3"'))
    found = problems(run)
    assert "is missing" not in found["manifest.json"]
    assert "checkpoints/step-2/model.safetensors" in found
    assert "is not that of the last line" in " ".join(found["result.json"])


def test_a_folder_that_holds_nothing_of_a_run_is_refused_in_one_line(tmp_path: Path) -> None:
    asked = ask("verify", tmp_path)
    assert (asked.returncode, asked.stderr.count("\n")) == (2, 1)
    assert "is not a run directory" in asked.stderr


def test_interrupted_and_failed_runs_have_a_manifest_and_a_resumed_one_another(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "grpo", ["grpo"])
    with pytest.raises(Interrupted), running(run):
        raise KeyboardInterrupt
    assert problems(run.path) == {}
    first = read_status(run.path)["manifest_sha256"]
    with pytest.raises(ProofError), running(run):
        assert not (run.path / "manifest.json").exists()
        raise ProofError("no")
    with running(run):
        fill(run, tmp_path)
    assert problems(run.path) == {}
    assert read_status(run.path)["manifest_sha256"] != first


def test_a_real_evaluation_verifies_and_its_edited_verdict_is_found(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    assert main(["eval", "--limit", "3", "--wandb", "disabled", "--artifacts-dir", str(artifacts)]) == 0
    (run,) = (artifacts / "runs").iterdir()
    assert problems(run) == {}
    rows = (run / "eval/step_0.jsonl").read_text()
    (run / "eval/step_0.jsonl").write_text(rows.replace('"status": "wrong"', '"status": "correct"'))
    reseal(run)
    found = problems(run)
    assert "reward gives" in found["eval/step_0.jsonl"][0]
    assert "eval/step_0.json" in found


@pytest.mark.slow
def test_a_real_training_run_verifies(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    small = "--max_steps 2 --warmup_steps 1 --prompts_per_step 8 --group_size 2 --eval_examples 8 --num_problems 100"
    options = [*small.split(), "--save_every", "1", "--wandb", "disabled", "--artifacts-dir", str(artifacts)]
    assert main(["grpo", "--config", "grpo-tiny", *options]) == 0
    (run,) = (artifacts / "runs").iterdir()
    assert problems(run) == {}
