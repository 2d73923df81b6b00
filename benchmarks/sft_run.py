"""What strict asynchronous evaluation costs: trained tokens a second of a whole `sft` run against its updates alone.

    python benchmarks/sft_run.py [--steps 120] [--eval-every 20] [--runs 3]

The same run (tiny model, generated pairs, 1 thread for the learner, 1 for the evaluator) twice: evaluated every so often, and
evaluated at its first and last step only. Both take turns, medians are printed, and the seconds that saving, publishing and
waiting for the evaluator took. Also the seconds of saving a checkpoint, and those from the command to the first trained
step: of a new run, and of one that is killed once it has a checkpoint and resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.runs.storage import json_line, read_lines


def cli(folder: Path, *arguments: str) -> None:
    """Runs the command line in a folder."""
    subprocess.run([sys.executable, "-m", "grpo_gsm8k.cli", *arguments], cwd=folder, check=True, capture_output=True)


def options(steps: int, eval_every: int, artifacts: str) -> list[str]:
    """Returns the options of a run."""
    common = (
        f"--max_steps {steps} --eval_every {eval_every} --save_every 40 --lr 1e-3 --eval_max_new_tokens 48 --wandb disabled"
    )
    data = f"--data_path pairs.jsonl --eval_set_path eval.jsonl --graders numeric --artifacts_dir {artifacts}"
    return [*common.split(), *data.split()]


def num_lines(run: Path, name: str, key: str) -> int:
    """Returns how many whole lines of a run's file have `key`."""
    path = run / name
    return sum(key in row for row in read_lines(path)) if path.exists() else 0


def seconds_until(ready: Callable[[], bool], folder: Path, *arguments: str) -> float:
    """Returns the seconds from starting a command to `ready`, and kills it then."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "grpo_gsm8k.cli", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ready():
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(arguments)} ended before it trained")
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    process.kill()
    process.wait()
    return seconds


def start_and_resume(folder: Path, steps: int, eval_every: int) -> dict[str, float]:
    """Returns the seconds from the command to the first trained step: of a new run, and of that run resumed."""
    name = tempfile.mkdtemp(dir=folder)
    runs = Path(name) / "runs"

    def trained(more_than: int) -> bool:
        return any(num_lines(run, "metrics.jsonl", "train/loss") > more_than for run in runs.glob("2*"))

    new = seconds_until(lambda: trained(0), folder, "sft", *options(steps, eval_every, name))
    (run,) = runs.glob("2*")
    seconds_until(lambda: num_lines(run, "checkpoints.jsonl", "step") > 0, folder, "sft", "--resume", str(run))
    step = max(row["step"] for row in read_lines(run / "checkpoints.jsonl"))
    fewest = num_lines(run, "metrics.jsonl", "train/loss")  # what came after the checkpoint is cut off first

    def went_on() -> bool:
        nonlocal fewest
        num = num_lines(run, "metrics.jsonl", "train/loss")
        fewest = min(fewest, num)
        return fewest <= step < num

    resumed = seconds_until(went_on, folder, "sft", "--resume", str(run))
    return {"new run": new, "resumed from its checkpoint": resumed}


def train(folder: Path, steps: int, eval_every: int) -> dict[str, float]:
    """Returns what one run took, from its own metrics."""
    name = tempfile.mkdtemp(dir=folder)
    cli(folder, "sft", *options(steps, eval_every, name))
    (run,) = (Path(name) / "runs").iterdir()
    rows = list(read_lines(run / "metrics.jsonl"))
    updates = [row for row in rows if "train/loss" in row][5:]  # the first steps warm up
    evals = [row for row in rows if "time/eval_s" in row]
    saves = [row["time/save_s"] for row in read_lines(run / "checkpoints.jsonl") if "time/save_s" in row]
    seconds: Any = sum(row["time/update_s"] for row in updates)
    return {
        "trained tokens/s in updates": sum(row["train/num_trained"] for row in updates) / seconds,
        "updates s": seconds,
        "waited for the evaluator s": sum(row["time/eval_wait_s"] for row in updates),
        "evaluations": len(evals),
        "evaluation s, in its own process": sum(row["time/eval_s"] for row in evals),
        "save s, each": statistics.median(saves),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--eval-every", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, num in (("train", 4000), ("val", 256)):
            rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in generate(split, num, 0)]
            (folder / f"{split}.jsonl").write_bytes(b"".join(map(json_line, rows)))
        cli(folder, "data", "render-pairs", "--infile", "train.jsonl", "--outfile", "pairs.jsonl")
        cli(folder, "data", "render-eval", "--infile", "val.jsonl", "--outfile", "eval.jsonl")
        kinds = {f"evaluated every {args.eval_every} steps": args.eval_every, "first and last step only": args.steps}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        starts: list[dict[str, float]] = []
        for _ in range(args.runs):
            for name, every in kinds.items():
                found[name].append(train(folder, args.steps, every))
            starts.append(start_and_resume(folder, args.steps, args.eval_every))
    keys = list(next(iter(found.values()))[0])
    print(f"tiny, {args.steps} steps of 64, medians of {args.runs} alternating runs\n")
    print("| | " + " | ".join(keys) + " |\n|---" * 1 + "|---" * len(keys) + "|")
    for name, runs in found.items():
        print(f"| {name} | " + " | ".join(f"{statistics.median(run[key] for run in runs):,.3f}" for key in keys) + " |")
    print("\nfrom the command to the first trained step (with the interpreter's start), s:")
    for name in starts[0]:
        print(f"  {name}: {statistics.median(start[name] for start in starts):.2f}")
    print(json.dumps({"python": sys.version.split()[0]}))


if __name__ == "__main__":
    main()
