"""report.html: what it says of a finished, a failed and a killed run, of a training run, and that no text in it can run."""

from __future__ import annotations

import hashlib
import html
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.errors import InputError
from grpo_gsm8k.runs.checkpoints import Checkpoints
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.report import NUM_TRAJECTORIES, collect_report, write_report

HOSTILE = "</pre></script><script>document.title='OWNED'</script><img src=x onerror=\"document.title='OWNED'\"> & 1 < 2"
VOID = {"meta", "link", "rect", "line", "polyline", "polygon", "br", "img"}


def make_row(index: int, rng: random.Random) -> dict[str, Any]:
    gold, right = rng.randint(2, 400), rng.random() < 0.71
    answer = str(gold if right else gold + rng.randint(1, 9))
    status = "correct" if right else "wrong"
    unparsed = not right and rng.random() < 0.2
    strict = {"value": 0.0, "answer": None, "status": "unparsed", "explanation": "no #### line"}
    numeric = {"value": float(right), "answer": answer, "status": status, "explanation": ""}
    question = (
        f"Mia has {gold} marbles and {'buys a few more at the fair, and ' * (index % 7)}gives some away. How many are left?"
    )
    completion = f"Let us count the marbles.\nMia keeps {answer}.\n\\boxed{{{answer}}}" + " and so on" * (index % 40)
    num_tokens = len(completion) // 3
    return {
        "problem_id": f"gsm8k-test-{index}",
        "sample_index": 0,
        "seed": rng.getrandbits(48),
        "question": question,
        "gold": str(gold),
        "prompt": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "completion": completion,
        "token_ids": [rng.randrange(150_000) for _ in range(num_tokens)],
        "logprobs": [-rng.random() for _ in range(num_tokens)],
        "stop_reason": "length" if index % 50 == 3 else "eos",
        "num_prompt_tokens": 70 + index % 30,
        "num_completion_tokens": num_tokens,
        "scores": {"numeric": strict if unparsed else numeric, "gsm8k_strict": strict if index % 9 == 0 else numeric},
        "disagreement": index % 9 == 0 and not unparsed,
    }


def aggregate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    graders: dict[str, Any] = {}
    for name in ("numeric", "gsm8k_strict"):
        found = [row["scores"][name]["status"] for row in rows]
        accuracy = found.count("correct") / len(rows)
        counts = {status: found.count(status) for status in ("correct", "wrong", "unparsed", "error")}
        graders[name] = {"accuracy": accuracy, "ci95": [accuracy - 0.031, accuracy + 0.03], **counts}
    bins = [(48, 78, 0.81), (79, 109, 0.77), (110, 150, 0.7), (151, 190, 0.66), (191, 270, 0.52)]
    return {
        "step": 0,
        "num_problems": len(rows),
        "num_samples": 4,
        "primary_grader": "numeric",
        "graders": graders,
        "pass_at_k": {"1": 0.7021, "2": 0.781, "4": 0.8433},
        "maj_at_k": {"1": 0.7021, "2": 0.7021, "4": 0.7634},
        "truncated": sum(row["stop_reason"] == "length" for row in rows),
        "disagreements": sum(row["disagreement"] for row in rows),
        "mean_completion_tokens": 213.4,
        "minimum_detectable_difference": 0.104,
        "minimum_detectable_difference_paired": 0.052,
        "accuracy_by_question_length": [
            {"min_chars": low, "max_chars": high, "num_problems": 240, "accuracy": at, "ci95": [at - 0.06, at + 0.055]}
            for low, high, at in bins
        ],
    }


def make_run(folder: Path, num_rows: int = 400) -> RunDirectory:
    """A finished run directory as the harness leaves it, written by the harness's own writers."""
    run = RunDirectory.create(folder, "eval", ["eval", "--limit", str(num_rows), "--template", "qwen_math_cot"])
    run.start()
    values = {
        "model_id": "Qwen/Qwen2.5-Math-1.5B",
        "engine": "transformers",
        "template": "qwen_math_cot",
        "k_shot": 0,
        "seed": 31415,
    }
    sources = {"model_id": "flag", "engine": "auto: no CUDA device", "template": "flag", "k_shot": "default", "seed": "default"}
    run.write_json("config.json", {"values": {**values, "adapter": None}, "sources": {**sources, "adapter": "default"}})
    run.write_json("sys/git.json", {"sha": "fd85b4f0c2", "source": "checkout", "branch": "main", "dirty": True})
    run.write_json(
        "sys/system.json", {"cpu": {"model": "A CPU", "cores": 8, "usable_cores": 2}, "memory_bytes": {"MemTotal": 2**34}}
    )
    run.write_json("sys/versions.json", {"stack": {"torch": "2.13.0", "vllm": None}, "cuda": None})
    run.write_json("sys/nvidia.json", {"present": False, "why": "no nvidia-smi on the PATH"})
    run.write_json("sys/engine.json", {"library": "transformers 5.17.0", "device": "cpu", "dtype": "float32"})
    toggle = {"name": "torch.num_threads", "asked": "1", "got": "1", "decided_by": "harness", "held": True}
    run.write_json("sys/determinism.json", [toggle, {**toggle, "name": "PYTHONHASHSEED", "got": "random", "held": False}])
    (run.path / "sys" / "packages.txt").write_text("numpy==2.4.6\n", encoding="utf-8")
    test_file = {"dataset": "gsm8k", "split": "test", "source": "openai/gsm8k", "revision": "main", "rows": 1319}
    template = {"role": "template", "source": "qwen_math_cot", "sha256": "a10c1e22ffee", "rows": None, "commit": None}
    files = [{**test_file, "commit": "e53f048856ff4f59", "sha256": "3730d312f6e34405"}, template]
    run.write_json("data.json", {"files": files})
    rng = random.Random(7)
    rows = [make_row(index, rng) for index in range(num_rows)]
    for row in rows:
        if row["disagreement"]:
            row["completion"] += "\n" + HOSTILE
    run.append("eval/step_0.jsonl", *rows)
    run.write_json("eval/step_0.json", aggregate(rows))
    run.write_json("result.json", {"accuracy": 0.7, "times": {"time/tokens_per_s": 1843.2}})
    run.append("metrics.jsonl", {"step": 0, "eval/numeric/accuracy": 0.7})
    run.finish("completed", None, 0)
    return run


def make_training_run(folder: Path, num_steps: int = 1200, num_problems: int = 200) -> RunDirectory:
    """A training run that was resumed once, as the harness leaves it: evaluated every quarter, two of four checkpoints kept."""
    run = RunDirectory.create(folder, "sft", ["sft", "--data_path", "pairs.jsonl"])
    run.start()
    run.start()
    values = {"model_id": "Qwen/Qwen2.5-0.5B", "data_path": "pairs.jsonl", "lr": 2e-5, "lora_rank": None, "seed": 31415}
    run.write_json("config.json", {"values": values, "sources": dict.fromkeys(values, "flag")})
    run.write_json("sys/learner.json", {"model": "Qwen2ForCausalLM", "dtype": "bfloat16", "num_trained_parameters": 494032768})
    run.write_json("sys/world.json", {"code": "0e175e1d67d955ac", "torch": "2.13.0", "gpu": "NVIDIA H100"})
    run.append(
        "sys/eval_worker.jsonl", {"event": "started"}, {"event": "ready", "engine": {"engine": "vllm", "dtype": "bfloat16"}}
    )
    model = {"role": "model", "source": "Qwen/Qwen2.5-0.5B", "revision": "main", "commit": "060db6499f32faf8", "sha256": None}
    data = {"role": "training data", "source": "local", "path": "pairs.jsonl", "sha256": "743f3544a860b8cf", "rows": 4000}
    evals = {"role": "eval set", "source": "local", "path": "val.jsonl", "sha256": "336ab0a804f1d6e6", "rows": num_problems}
    run.write_json("data.json", {"files": [model, {**data, "num_trained": 84436, "dropped": ["a", "b"]}, evals]})
    run.write_json("overlap.json", {"num_overlapping": 3, "pairs": []})
    run.append("resumed.jsonl", {"argv": ["sft"], "after": "running", "changes": ["torch was '2.12.0' and is '2.13.0'"]})
    run.append("resumed.jsonl", {"data_changes": ["training data/None was {} and is {'rows': 4000}"]})
    rng = random.Random(11)
    checkpoints = Checkpoints(run, keep_last=2)
    for step in range(num_steps + 1):
        if step:
            loss = 0.9 * 0.998**step + 0.1 * rng.random() + (7.5 if step == num_steps // 3 else 0.0)
            row = {"train/loss": loss, "optim/lr": 2e-5 * (1 - step / num_steps), "optim/grad_norm": 1 + rng.random()}
            run.append("metrics.jsonl", {"step": step, **row, "time/tokens_per_s": 9000.0 + step})
        if step % (num_steps // 4):
            continue
        rows = [make_row(index, rng) for index in range(num_problems)]
        found = aggregate(rows)
        gain = 0.1 * step / num_steps
        for scores in found["graders"].values():
            scores.update(accuracy=0.5 + gain, ci95=[0.45 + gain, 0.55 + gain])
        run.append(f"eval/step_{step}.jsonl", *rows)
        run.write_json(f"eval/step_{step}.json", {**found, "step": step})
        run.append("metrics.jsonl", {"step": step, "eval/numeric/accuracy": 0.5 + gain})
        if step:
            with checkpoints.writing(step) as path:
                for name in ("model.safetensors", "trainer/optimizer.safetensors", "pending_eval/step-0/model.safetensors"):
                    (path / name).parent.mkdir(parents=True, exist_ok=True)
                    (path / name).write_bytes(f"{name} of step {step}".encode())
    run.write_json("result.json", {"steps": num_steps, "weights_sha256": "19d243105c97b34c", "last_eval_step": num_steps})
    run.finish("completed", None, 0)
    return run


def plotted(page: str, title: str) -> list[tuple[float, float]]:
    """The points of the curve of that title, in units of the plot (0 to 1000, from the top left)."""
    figure = next(part for part in page.split("<figure>")[1:] if f"<b>{title}</b>" in part)
    line = re.search(r'<polyline class="curve" points="([^"]*)"', figure.replace(" faint", ""))
    assert line is not None
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line[1].split())]


def read_report(run: RunDirectory) -> str:
    return write_report(run.path).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.split("</style>")[1])).split())


class Outline(HTMLParser):
    """The tags of a page, with those that were never closed or opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_finished_run_is_on_one_page_with_its_interval_tables_and_provenance(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    record = json.loads((run.path / "eval/step_0.json").read_text())["graders"]
    shown = text_of(read_report(run))
    accuracy = record["numeric"]["accuracy"]
    assert f"Accuracy, numeric grader {100 * accuracy:.1f} % 95 % interval {100 * accuracy - 3.1:.1f} %" in shown
    strict = record["gsm8k_strict"]
    assert f"{strict['correct']} {strict['wrong']} {strict['unparsed']} {strict['error']}" in shown
    for expected in (
        "pass@k 70.2 % 78.1 % 84.3 %",
        "maj@k 70.2 % 70.2 % 76.3 %",
        "191–270 chars n = 240 52.0 % 46.0 % – 57.5 %",
        "a difference of 5.2 points against a run on the same problems, 10.4 points against one on others",
        "1,843.2 tokens/s",
        "fd85b4f0c2 on main dirty",
        "engine transformers auto: no CUDA device",
        "gsm8k test openai/gsm8k asked: main e53f048856ff4f59 1,319 3730d312f6e34405",
        "template qwen_math_cot – – a10c1e22ffee",
        "Determinism: 1 of 2 toggles hold as asked",
        "GPU no nvidia-smi on the PATH",
        "1 row in metrics.jsonl",
    ):
        assert expected in shown
    assert "not complete" not in shown


@pytest.mark.parametrize("make", [make_run, make_training_run])
def test_the_page_is_well_formed_and_asks_the_network_for_nothing(make: Callable[[Path], RunDirectory], tmp_path: Path) -> None:
    outline = Outline()
    page = read_report(make(tmp_path))
    outline.feed(page)
    assert outline.open == []
    assert {tag for tag, _ in outline.seen}.isdisjoint({"script", "img", "iframe", "object", "embed"})
    fetched = [
        value for _, attrs in outline.seen for name, value in attrs.items() if name in ("src", "href", "srcset", "action")
    ]
    assert fetched
    assert all(value is not None and value.startswith(("#", "data:")) for value in fetched)
    assert "url(" not in page.split("</style>")[0]


def test_text_from_the_model_is_shown_and_is_never_markup(tmp_path: Path) -> None:
    page = read_report(make_run(tmp_path))
    assert HOSTILE not in page
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_the_twenty_trajectories_are_the_same_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = collect_report(run.path)["rows"]
    assert first.num == 400
    assert len(first.sample) == NUM_TRAJECTORIES == 20
    file = run.path / "eval/step_0.jsonl"
    lines = file.read_text("utf-8").split("\n")[:-1]
    file.write_text("".join(line + "\n" for line in reversed(lines)), "utf-8")
    again = collect_report(run.path)["rows"]
    assert {row["problem_id"] for row in again.sample} == {row["problem_id"] for row in first.sample}


def test_disagreements_are_all_counted_and_the_first_fifty_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1000)
    expected = json.loads((run.path / "eval/step_0.json").read_text())["disagreements"]
    rows = collect_report(run.path)["rows"]
    assert rows.disagreements == expected > 50
    assert len(rows.first_disagreements) == 50
    assert f"{expected} of 1,000 completions; the first 50 are listed" in text_of(read_report(run))


def test_a_killed_run_says_that_it_died_and_gives_no_accuracy(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "eval", ["eval"])
    run.start()
    status = json.loads((run.path / "status.json").read_text())
    status["starts"][0]["pid_start"] += 1  # the process that wrote this is gone; its number may have been given out again
    run.write_json("status.json", status)
    kept = {"token_ids": [5, 6], "logprobs": None, "stop_reason": "eos", "text": None}
    run.append("eval/step_0.partial.jsonl", *({"index": index, **kept} for index in range(30)))
    with (run.path / "eval/step_0.partial.jsonl").open("ab") as file:
        file.write(b'{"index": 30, "token_i')
    shown = text_of(read_report(run))
    assert "died grpo-gsm8k eval" in shown
    assert "30 completions are on disk" in shown
    assert "step_0.partial.jsonl is there: that eval did not finish" in shown
    assert "result.json is missing" in shown
    assert "95 % interval" not in shown


def test_a_torn_or_broken_row_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, 30)
    with (run.path / "eval/step_0.jsonl").open("ab") as file:
        file.write(b'nonsense\n{"problem_id": "gsm8k-test-30", "comple')
    shown = text_of(read_report(run))
    assert "line 31 is not a JSON object and is left out" in shown
    assert "line 32 was being written when the run ended and is left out" in shown
    assert "20 of 30 completions" in shown


def test_a_run_that_failed_before_it_began_still_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "eval", ["eval"])
    run.finish("failed", "unknown template 'x' <b>", 2)
    shown = text_of(read_report(run))
    assert "unknown template 'x' <b>" in shown
    assert "exit code 2" in shown
    assert "eval/ is missing: nothing was evaluated" in shown


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        write_report(tmp_path)


def test_control_characters_and_lone_surrogates_do_not_break_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, 5)
    row = make_row(5, random.Random(1)) | {"completion": "a\x00b\x1b[31m\ud800\u2028é", "disagreement": True}
    run.append("eval/step_0.jsonl", row)
    assert "a␀b␛[31m\\ud800\u2028é" in read_report(run)


def test_ten_thousand_rows_give_a_small_page_in_seconds(tmp_path: Path) -> None:
    run = make_run(tmp_path, 10_000)
    started = time.process_time()
    page = write_report(run.path)
    assert time.process_time() - started < 8
    assert page.stat().st_size < 500_000


def test_a_training_page_has_its_evaluations_checkpoints_and_provenance(tmp_path: Path) -> None:
    run = make_training_run(tmp_path)
    weights = hashlib.sha256(b"model.safetensors of step 1200").hexdigest()[:12]
    shown = text_of(read_report(run))
    for expected in (
        "Accuracy, numeric grader, step 1200 60.0 % 95 % interval 55.0 % – 65.0 % +10.0 points against step 0 (50.0 %)",
        "0 50.0 % 45.0 % – 55.0 % – 50.0 %",
        "900 57.5 % 52.5 % – 62.5 % +7.5 57.5 %",
        "300 pruned model.safetensors",
        f"1,200 kept model.safetensors {weights}",
        "20 of 200 completions, drawn by seed 0, not chosen",
        "Sampled trajectories of step 1,200",
        "num_trained_parameters 494032768",
        "trained weights 19d243105c97b34c",
        "Evaluator: what was really got engine vllm",
        "was cut off while running torch was '2.12.0' and is '2.13.0' data: training data/None was {} and is {'rows': 4000}",
        "model Qwen/Qwen2.5-0.5B asked: main 060db6499f32faf8",
        "training data 84,436 trained tokens, 2 dropped local pairs.jsonl – 4,000 743f3544a860b8cf",
        "3 training examples are problems of the eval set, as allowed",
        "code 0e175e1d67d955ac",
    ):
        assert expected in shown
    assert "optimizer.safetensors" not in shown
    assert "pending_eval" not in shown
    assert "sys/engine.json" not in shown
    assert shown.count("Gold answer:") == 20


def test_a_curve_is_drawn_where_its_values_are(tmp_path: Path) -> None:
    page = read_report(make_training_run(tmp_path, num_steps=8))
    rate = plotted(page, "Learning rate")  # falls evenly from 7/8 of the peak to nothing, on an axis from 0 to 2e-05
    assert rate == [(125.0 * step, 125.0 * step) for step in range(1, 9)]
    assert [x for x, _ in plotted(page, "Accuracy, numeric grader")] == [0, 250, 500, 750, 1000]
    assert plotted(page, "Accuracy, numeric grader")[0][1] == pytest.approx(1000 * (0.65 - 0.5) / (0.65 - 0.45))
    assert '<line class="base" x1="0" x2="1000" y1="750.0" y2="750.0"/>' in page


def test_a_long_series_is_thinned_and_keeps_its_spike(tmp_path: Path) -> None:
    page = read_report(make_training_run(tmp_path, num_steps=6000, num_problems=20))
    points = plotted(page, "Loss")
    assert 300 <= len(points) <= 400
    assert points == sorted(points, key=lambda point: point[0])
    assert min(points, key=lambda point: point[1])[0] == pytest.approx(1000 * 2000 / 6000, abs=0.1)
    assert "highest 7.5" in text_of(page)
    assert f"{len(points)} of 6,000 values drawn" in text_of(page)
    assert len(page) < 400_000


def test_one_step_is_a_dot_and_huge_values_stay_short(tmp_path: Path) -> None:
    run = make_training_run(tmp_path, num_steps=4, num_problems=5)
    (run.path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5, "optim/lr": 1e30}\n', "utf-8")
    page = read_report(run)
    assert page.count('class="dot"') == 2 + len(plotted(page, "Accuracy, numeric grader"))
    assert "last 1e+30" in page


def test_a_training_run_that_was_killed_shows_what_it_has(tmp_path: Path) -> None:
    run = make_training_run(tmp_path, num_steps=40, num_problems=10)
    for step in (30, 40):
        (run.path / f"eval/step_{step}.json").unlink()
    (run.path / "result.json").unlink()
    shutil.rmtree(run.path / "checkpoints/step-40")
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"loss": 1}\n{"step": 41, "train/lo')
    run.append("eval/step_30.partial.jsonl", {"index": 0})
    shown = text_of(read_report(run))
    assert "Accuracy, numeric grader, step 20 55.0 %" in shown
    assert "40 kept, and not in the run directory now model.safetensors" in shown
    assert "30 kept model.safetensors" in shown
    assert "metrics.jsonl: a row without a step is left out" in shown
    assert "metrics.jsonl: line 47 was being written when the run ended" in shown
    assert "that eval did not finish; --resume does it again" in shown
    assert "result.json is missing" in shown


def test_a_training_run_that_failed_before_its_first_step_still_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "sft", ["sft"])
    run.finish("failed", "no file pairs.jsonl", 2)
    shown = text_of(read_report(run))
    for expected in ("No step was done.", "No evaluation was finished.", "No checkpoint was saved.", "no file pairs.jsonl"):
        assert expected in shown


def test_twenty_thousand_steps_give_a_small_page_in_seconds(tmp_path: Path) -> None:
    run = make_training_run(tmp_path, num_steps=40, num_problems=10)
    lines = [{"step": step, "train/loss": 1 / step, "optim/lr": 1e-5, "optim/grad_norm": 1.0} for step in range(1, 20_001)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    found = json.loads((run.path / "eval/step_0.json").read_text())
    for step in range(100, 20_001, 100):
        run.write_json(f"eval/step_{step}.json", {**found, "step": step})
    started = time.process_time()
    page = write_report(run.path)
    assert time.process_time() - started < 4
    assert page.stat().st_size < 250_000
    assert "All 205 evaluations" in text_of(page.read_text("utf-8"))


@pytest.mark.browser
def test_a_real_browser_shows_the_page_without_errors_and_runs_nothing_in_it(tmp_path: Path) -> None:
    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if chromium is None:
        pytest.skip("no Chromium on the PATH")
    page = write_report(make_run(tmp_path).path)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    done = subprocess.run(
        [chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert re.search(r"<title>[^<]+ · grpo-gsm8k eval</title>", done.stdout)
    assert "<script" not in done.stdout
    assert "<img" not in done.stdout
    assert done.stdout.count("<details>") == page.read_text("utf-8").count("<details>")
