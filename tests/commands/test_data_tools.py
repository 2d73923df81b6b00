"""`data pretokenize`, `data render-eval` and their scripts, as a person runs them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_gsm8k.cli import main
from grpo_gsm8k.commands import pretokenize, render_eval
from grpo_gsm8k.commands.start import OWN_SCRIPTS
from grpo_gsm8k.data.rendered_eval import load_rendered_eval_set
from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.runs.directory import read_status
from grpo_gsm8k.training_data.reading import load_training_data

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "shell"
PAIRS = [{"prompt": f"<|im_start|>user\n{n}?<|im_end|>\n<|im_start|>assistant\n", "response": f"#### {n}"} for n in range(9)]
PROBLEMS = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(5)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("pairs.jsonl", PAIRS), ("val.jsonl", PROBLEMS)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_pretokenize_leaves_shards_and_a_run_and_refuses_another_limit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "pretokenize", "--infile", "pairs.jsonl", "--out_dir", "out", "--shard_size", "4"]
    assert main([*arguments, "--max_total_tokens", "2048"]) == 0
    assert "9 of 9 examples in 3 shard(s)" in capsys.readouterr().out
    assert len(load_training_data(Path("out"), load_tokenizer("tiny"))) == 9
    (run,) = Path("artifacts/runs").iterdir()
    assert read_status(run)["state"] == "completed"
    assert json.loads((run / "result.json").read_bytes())["num_examples"] == 9
    assert json.loads((run / "data.json").read_bytes())["files"][0]["rows"] == 9
    assert main([*arguments, "--max_total_tokens", "100"]) == 2
    assert "max_total_tokens: asked 100, there 2048" in capsys.readouterr().err
    assert main(["data", "verify", "out"]) == 0


def test_render_eval_writes_what_training_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "render-eval", "--infile", "val.jsonl"]) == 0
    path = Path("artifacts/eval_sets/val_tiny.jsonl")
    read = load_rendered_eval_set(path, load_tokenizer("tiny"))
    assert [problem.gold for problem, _ in read] == ["1", "2", "3", "4", "5"]
    assert read[0][1].text == "<|im_start|>user\nWhat is 0 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert main(["data", "render-eval", "--infile", "val.jsonl", "--limit", "2", "--outfile", "two.jsonl"]) == 0
    assert len(load_rendered_eval_set(Path("two.jsonl"), load_tokenizer("tiny"))) == 2
    capsys.readouterr()
    shots = ["--k_shot", "2", "--shots_path", "pairs.jsonl"]
    assert main(["data", "render-eval", "--infile", "val.jsonl", *shots]) == 2
    assert "pairs.jsonl:1: no 'answer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretokenize"], "infile is not given"),
        (["pretokenize", "--infile", "absent.jsonl"], "absent.jsonl: no such file"),
        (["pretokenize", "--infile", "pairs.jsonl", "--overlong", "cut"], "unknown overlong 'cut'"),
        (["pretokenize", "--infile", "pairs.jsonl", "--model_id", "./none"], "no model folder './none'"),
        (["render-eval"], "infile is not given"),
        (["render-eval", "--infile", "val.jsonl", "--k_shot", "1"], "k_shot and shots_path go together"),
        (["render-eval", "--infile", "val.jsonl", "--template", "nope"], "unknown template 'nope'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line


RUNS = [
    ("pretokenize_r1_pairs.py", "--model_id tiny --infile pairs.jsonl --out_dir shards --max_total_tokens 2048", "shards"),
    ("prep_val_for_vllm.py", "--model_id tiny --infile val.jsonl --outfile val_rendered.jsonl", "val_rendered.jsonl"),
]


def test_the_scripts_run_the_commands() -> None:
    for (script, _, _), command in zip(RUNS, (pretokenize.command, render_eval.command), strict=True):
        assert runpy.run_path(str(SCRIPTS / script))["command"] is command
        assert Path(script).stem in OWN_SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize(("script", "arguments", "made"), RUNS)
def test_a_script_is_a_process_that_records_its_arguments(script: str, arguments: str, made: str, folder: Path) -> None:
    command = [sys.executable, str(SCRIPTS / script), *arguments.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (folder / made).exists()
    (run,) = (folder / "artifacts/runs").iterdir()
    assert "--infile" in json.loads((run / "command.json").read_bytes())["argv"]
