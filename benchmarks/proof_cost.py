"""What proof costs: CPU seconds of a run's ledger, snapshot and manifest, against those of the run's whole process.

    python benchmarks/proof_cost.py [--repeats 3]

Real runs of the tiny model, each a process of its own in which the functions that make the proof are timed as the run calls
them: the ledger's digests and lines, the hashes of the weights, the snapshot (git, packages, machine, the package's digest) and
the manifest. Numerator and denominator are of the same process, so that a busy machine slows both. CPU seconds are those of all
threads; the snapshot's include its git processes. The evaluator, which a training run has as a process beside its own, counts
only in "all processes", of which the last column is the share. The goal is under 2 %.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.runs.storage import json_line

# What is timed, by part: where the run looks the function up.
PARTS = {
    "ledger": (
        "loops.evaluate write_ledger",
        "loops.grpo digest",
        "loops.grpo rollout_digests",
        "loops.sft digest",
        "loops.expert_iteration digest",
        "loops.expert_iteration rollout_digests",
        "runs.directory RunDirectory.append",
    ),
    "weights": ("learners.native NativeLearner.weights_digest",),
    "snapshot": ("commands.start write_snapshot", "commands.start read_world", "runs.directory read_git"),
    "manifest": ("runs.lifecycle write_manifest",),
}
RUNS = {
    "eval, 500 problems": "eval --limit 500",
    "sft-tiny": "sft --config sft-tiny --data_path pairs.jsonl --eval_set_path eval.jsonl",
    "grpo-tiny": "grpo --config grpo-tiny",
    "ei-tiny": "expert-iteration --config ei-tiny",
}


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of the children it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def time_parts() -> dict[str, list[float]]:
    """Returns, by part, a cell that its functions add their CPU seconds to from now on; a call inside another counts once."""
    spent = {part: [0.0] for part in PARTS}
    under_way: list[str] = []

    def timed(function: Callable[..., Any], cell: list[float]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            is_other_file = function.__name__ == "append" and arguments[1] != "ledger.jsonl"
            if under_way or is_other_file:
                return function(*arguments, **named)
            under_way.append(function.__name__)
            began = cpu_seconds()
            try:
                return function(*arguments, **named)
            finally:
                cell[0] += cpu_seconds() - began
                under_way.pop()

        return call

    for part, places in PARTS.items():
        for place in places:
            module, name = place.split()
            owner: Any = importlib.import_module(f"grpo_gsm8k.{module}")
            *classes, attribute = name.split(".")
            for each in classes:
                owner = getattr(owner, each)
            setattr(owner, attribute, timed(getattr(owner, attribute), spent[part]))
    return spent


def run_one(arguments: list[str]) -> None:
    """Does one run in this process; prints its CPU seconds by part, and those of the whole process, as JSON."""
    from grpo_gsm8k.cli import main

    spent = time_parts()
    began = time.perf_counter()
    code = main(arguments)
    if code != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {code}")
    whole = {"own": time.process_time(), "run": cpu_seconds(), "wall": time.perf_counter() - began}
    print(json.dumps({**whole, **{part: cell[0] for part, cell in spent.items()}}))


def measure(command: str, folder: Path) -> dict[str, float]:
    """Returns what `run_one` prints of a run in a process of its own."""
    words = [*command.split(), "--wandb", "disabled"]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def make_data(folder: Path) -> None:
    """Writes what `sft` trains on and is evaluated on."""
    for split, num, command, name in (("train", 20000, "render-pairs", "pairs"), ("val", 200, "render-eval", "eval")):
        rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in generate(split, num, 0)]
        (folder / f"{split}.jsonl").write_bytes(b"".join(map(json_line, rows)))
        words = ["data", command, "--infile", f"{split}.jsonl", "--outfile", f"{name}.jsonl"]
        subprocess.run([sys.executable, "-m", "grpo_gsm8k.cli", *words], cwd=folder, check=True, capture_output=True)


def main() -> None:
    """Prints the table."""
    if sys.argv[1:2] == ["--one"]:
        run_one(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=RUNS, help="measure this run alone")
    options = parser.parse_args()
    print("| run | wall s | CPU s: own process | all processes | ledger | weights | snapshot | manifest | share | of all |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name))
        for label in [options.only] if options.only else RUNS:
            found = [measure(RUNS[label], Path(name)) for _ in range(options.repeats)]
            middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
            numbers = [f"{middle[key]:.1f}" for key in ("wall", "own", "run")] + [f"{middle[part]:.2f}" for part in PARTS]
            for of in ("own", "run"):
                share = statistics.median(sum(one[part] for part in PARTS) / one[of] for one in found)
                numbers.append(f"{100 * share:.2f} %")
            print(f"| {label} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
