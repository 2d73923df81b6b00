"""`sft` as a person runs it: it learns, and however it is killed it ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from training_runs import facts, here, kill_and_resume, only_run, run_whole, start

from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.runs.storage import json_line, read_lines

SMALL = "--max_steps 10 --batch_size 16 --eval_every 4 --save_every 3 --keep_last 2 --eval_examples 32 --lr 2e-3"
COMMON = [*SMALL.split(), "--eval_max_new_tokens", "40", "--graders", "numeric", "--wandb", "disabled"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to train on and a rendered eval set, made by the commands that make them."""
    folder = tmp_path_factory.mktemp("material")
    for split, num in (("train", 1500), ("val", 100)):
        rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in generate(split, num, 0)]
        (folder / f"{split}.jsonl").write_bytes(b"".join(map(json_line, rows)))
    assert here(folder, "data", "render-pairs", "--infile", "train.jsonl", "--outfile", "pairs.jsonl").returncode == 0
    assert here(folder, "data", "render-eval", "--infile", "val.jsonl", "--outfile", "eval.jsonl").returncode == 0
    return folder


def command_line(material: Path) -> list[str]:
    return ["sft", *inputs(material), *COMMON]


def inputs(material: Path) -> list[str]:
    return ["--data_path", str(material / "pairs.jsonl"), "--eval_set_path", str(material / "eval.jsonl")]


@pytest.fixture(scope="module")
def whole(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return run_whole(folder, *command_line(material))


def test_a_run_leaves_checkpoints_evaluations_and_a_result(whole: Path) -> None:
    assert read_status(whole)["state"] == "completed"
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-10", "step-9"]
    assert [row["step"] for row in read_lines(whole / "metrics.jsonl") if "eval/numeric/accuracy" in row] == [0, 4, 8, 10]
    assert [row["step"] for row in read_lines(whole / "metrics.jsonl") if "train/loss" in row] == list(range(1, 11))
    assert {path.name for path in (whole / "eval").glob("*.json")} == {f"step_{n}.json" for n in (0, 4, 8, 10)}
    result = json.loads((whole / "result.json").read_bytes())
    assert result["steps"] == 10
    assert (whole / "report.html").exists()
    ledger = list(read_lines(whole / "ledger.jsonl"))
    assert result["weights_sha256"] == [row for row in ledger if "weights" in row][-1]["weights"]


def test_a_checkpoint_is_a_model_folder_that_transformers_loads(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = whole / "checkpoints/step-10"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == 158_272
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def kill_when(material: Path, folder: Path, sign: str) -> None:
    """Starts a run and kills it as soon as a file that matches `sign` is in its directory."""
    process = start(folder, *command_line(material))
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(folder.glob(f"artifacts/runs/*/{sign}")):
        time.sleep(0.001)
    assert process.poll() is None, (folder / "stderr").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    "sign", ["checkpoints/step-6/trainer", pytest.param("eval/step_4.partial.jsonl", marks=pytest.mark.slow)]
)
def test_killed_in_a_save_or_an_evaluation_it_ends_with_the_same_bits(
    material: Path, whole: Path, tmp_path: Path, sign: str
) -> None:
    kill_when(material, tmp_path, sign)
    run, _ = kill_and_resume(tmp_path, command_line(material), [])
    assert facts(run) == facts(whole)
    assert "resumed at step" in (run / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_twenty_random_points_it_ends_with_the_same_bits(material: Path, whole: Path, tmp_path: Path) -> None:
    status = read_status(whole)
    took = time_of(status["ended_at"]) - time_of(status["created_at"]) + 3.0
    kills = trial = 0
    while kills < 20:
        folder = tmp_path / str(trial)
        folder.mkdir()
        trial += 1
        moments = [random.uniform(0.5, took * 0.9) for _ in range(3)]
        run, killed = kill_and_resume(folder, command_line(material), moments)
        kills += killed
        assert facts(run) == facts(whole), moments
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("grpo_gsm8k-")]  # noqa: PTH208


def time_of(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_resuming_with_changed_data_or_options_is_refused_unless_allowed(material: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes((material / "pairs.jsonl").read_bytes())
    arguments = ["--data_path", str(tmp_path / "pairs.jsonl"), "--eval_set_path", str(material / "eval.jsonl"), *COMMON]
    process = start(tmp_path, "sft", *arguments)
    while process.poll() is None and not list(tmp_path.glob("artifacts/runs/*/checkpoints/step-3/COMPLETE")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    run = only_run(tmp_path)
    changed = here(tmp_path, "sft", "--resume", str(run), "--lr", "1e-3")
    assert changed.returncode == 2
    assert "lr is 0.002 there and 0.001 here" in changed.stderr
    lines = (tmp_path / "pairs.jsonl").read_bytes().split(b"\n")
    (tmp_path / "pairs.jsonl").write_bytes(b"\n".join(lines[1:]))
    refused = here(tmp_path, "sft", "--resume", str(run), "--allow-changes")
    assert refused.returncode == 0, refused.stderr
    record = list(read_lines(run / "resumed.jsonl"))
    assert any("training data" in str(row.get("data_changes")) for row in record)


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["--eval_set_path", "gone.jsonl"], "gone.jsonl", 2),
        (["--eval_set_path", "empty.jsonl"], "empty.jsonl", 2),
        (["--eval_set_path", "plain.jsonl"], "plain.jsonl:1", 2),
        (["--data_path", "gone.jsonl"], "gone.jsonl", 2),
        (["--data_path", "no_response.jsonl"], "no_response.jsonl:1", 2),
        (["--max_total_tokens", "20"], "more than max_total_tokens 20", 2),
        (["--warmup_steps", "99"], "warmup_steps is 99", 2),
        (["--lora_rank", "4", "--lora_target", "q_prj"], "q_proj", 2),
        (["--learner_device", "cuda:0"], "no CUDA device", 1),
        (["--vllm_device", "cuda:1"], "cuda:1 asked for", 1),
        (["--eval_engine", "vllm"], "not installed", 1),
    ],
)
def test_bad_input_is_one_line_before_any_step(
    material: Path, tmp_path: Path, arguments: list[str], says: str, code: int
) -> None:
    if "vllm" in arguments[1]:
        import importlib.util

        if importlib.util.find_spec("vllm") is not None:
            pytest.skip("vllm is installed here")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "plain.jsonl").write_text('{"question": "a?", "answer": "1"}\n')
    (tmp_path / "no_response.jsonl").write_text('{"prompt": "a?", "response": ""}\n')
    given = dict(zip(inputs(material)[::2], inputs(material)[1::2], strict=True))
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    done = here(tmp_path, "sft", *[part for pair in given.items() for part in pair], *COMMON)
    assert done.returncode == code, done.stderr
    last = done.stderr.rstrip().split("\n")[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in done.stderr
    assert read_status(only_run(tmp_path))["state"] == "failed"
    assert not list((only_run(tmp_path)).glob("checkpoints/*"))


def test_training_on_the_eval_set_is_refused_unless_allowed_on_record(material: Path, tmp_path: Path) -> None:
    leaked = here(tmp_path, "data", "render-pairs", "--infile", str(material / "val.jsonl"), "--outfile", "leak.jsonl")
    assert leaked.returncode == 0
    arguments = ["--data_path", "leak.jsonl", "--eval_set_path", str(material / "eval.jsonl"), *COMMON, "--artifacts_dir", "a"]
    refused = here(tmp_path, "sft", *arguments)
    assert refused.returncode == 1
    assert "32 training examples are problems of the eval set" in refused.stderr
    done = here(tmp_path, "sft", *arguments, "--allow_overlap", "true")
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in (tmp_path / "a/runs").iterdir() if read_status(path)["state"] == "completed")
    assert json.loads((run / "overlap.json").read_bytes())["num_overlapping"] == 32


def test_sft_needs_data_and_an_eval_set(tmp_path: Path) -> None:
    done = here(tmp_path, "sft")
    assert done.returncode == 2
    assert "data_path is not given" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_raises_held_out_accuracy_fully_and_with_lora(material: Path, tmp_path: Path) -> None:
    more = "--max_steps 40 --batch_size 32 --eval_every 40 --eval_max_new_tokens 40 --graders numeric --wandb disabled"
    for name, rest in (("full", ["--lr", "2e-3"]), ("lora", ["--lr", "8e-3", "--lora_rank", "16"])):
        (tmp_path / name).mkdir()
        done = here(tmp_path / name, "sft", *inputs(material), *more.split(), *rest)
        assert done.returncode == 0, done.stderr
        result = json.loads((only_run(tmp_path / name) / "result.json").read_bytes())
        assert result["eval"]["accuracy"] > result["first_eval"]["accuracy"] + 0.15, (name, result)
    adapter = only_run(tmp_path / "lora") / "checkpoints/step-40"
    assert (adapter / "adapter_model.safetensors").exists()
    evaluated = here(
        tmp_path, "eval", "--model_id", "tiny", "--adapter", str(adapter), "--eval_path", str(material / "val.jsonl"),
        "--template", "question", "--wandb", "disabled", "--max_new_tokens", "40", "--graders", "numeric",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads((only_run(tmp_path) / "result.json").read_bytes())
    assert abs(again["accuracy"] - result["eval"]["accuracy"]) <= 0.02


def test_a_disk_that_fills_up_in_a_save_leaves_the_earlier_checkpoint_to_resume_from(material: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    try:
        (tmp_path / "stderr").touch()
        often = " ".join(COMMON).replace("--save_every 3 --keep_last 2", "--save_every 1").split()
        failed = start(tmp_path, "sft", *inputs(material), *often)
        assert failed.wait(timeout=200) == 1
        last = (tmp_path / "stderr").read_text().rstrip().split("\n")[-1]
        assert last.startswith("error: the disk is full")
        run = only_run(tmp_path)
        assert read_status(run)["state"] == "failed"
        complete = [path.parent.name for path in run.glob("checkpoints/*/COMPLETE")]
        assert "step-1" in complete
        assert len(complete) == len(list((run / "checkpoints").iterdir()))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
