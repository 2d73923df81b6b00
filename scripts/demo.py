"""The whole story on a CPU, in minutes: data → eval → expert iteration → GRPO → eval → paired comparison → report.

    python scripts/demo.py [--seed N] [--artifacts_dir FOLDER]

Every stage is a command of the harness, printed before it runs, so that each can be run by hand. Choices were made on the
validation split; what is compared at the end is the test split, which no training run has seen (the runs refuse to train on
problems of their eval set, and the splits are told apart by a hash of the question with its names blanked).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

TEST = ["--dataset", "tiny", "--split", "test", "--template", "question", "--max_new_tokens", "48", "--num_threads", "1"]


class Stage:
    """Runs commands of the harness one after the other, and says what each is for."""

    def __init__(self, artifacts: Path, seed: int) -> None:
        self._shared = ["--artifacts_dir", str(artifacts), "--seed", str(seed), "--wandb", "disabled"]
        self.seconds: dict[str, float] = {}

    def run(self, what: str, *arguments: str, shared: bool = True) -> Path | None:
        """Runs one command and returns its run directory, if it made one; ends the demo where the command fails."""
        command = ["grpo-gsm8k", *arguments, *(self._shared if shared else [])]
        print(f"\n\033[1m── {what}\033[0m\n$ {shlex.join(command)}", flush=True)
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo_gsm8k.cli", *command[1:]], stderr=subprocess.PIPE, text=True, bufsize=1
        )
        found: Path | None = None
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("run directory: "):
                found = Path(line.removeprefix("run directory: ").strip())
        if process.wait() != 0:
            raise SystemExit(process.returncode)
        self.seconds[what] = time.monotonic() - began
        return found


def last_checkpoint(run: Path) -> Path:
    """Returns the newest checkpoint of a run."""
    return max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def accuracy(run: Path) -> str:
    """Returns an evaluation's headline as text."""
    result = json.loads((run / "result.json").read_bytes())
    low, high = result["ci95"]
    return f"{100 * result['accuracy']:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Tells the story and says where it can be read."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=31415)
    parser.add_argument("--artifacts_dir", type=Path, default=Path(os.environ.get("ARTIFACTS_DIR", "artifacts")))
    args = parser.parse_args()
    stage, began = Stage(args.artifacts_dir, args.seed), time.monotonic()
    data = ["--dataset", "tiny", "--artifacts_dir", str(args.artifacts_dir)]
    stage.run("Word problems, split so that no wording with its numbers is in two splits", "data", "prep", *data, shared=False)
    before = stage.run("The packaged tiny model, as it came", "eval", "--model_id", "tiny", *TEST)
    expert = stage.run("Expert iteration: it learns from its own right answers", "expert-iteration", "--config", "ei-tiny")
    assert before is not None and expert is not None
    model = ["--model_id", str(last_checkpoint(expert))]
    after_expert = stage.run("The model after expert iteration", "eval", *model, *TEST)
    grpo = stage.run("GRPO: it learns from how its answers compare", "grpo", "--config", "grpo-tiny")
    assert after_expert is not None and grpo is not None
    after_grpo = stage.run("The model after GRPO", "eval", "--model_id", str(last_checkpoint(grpo)), *TEST)
    assert after_grpo is not None
    compared = [str(before), str(after_expert), str(after_grpo)]
    stage.run("Problem by problem, before and after", "runs", "compare", *compared, shared=False)
    print(f"\n{'═' * 80}\nGreedy accuracy on the test split, which no run trained on or chose by (seed {args.seed})")
    for name, run in (("as it came", before), ("expert iteration", after_expert), ("GRPO", after_grpo)):
        print(f"  {name:<18} {accuracy(run)}")
    print(f"\nreports  {grpo / 'report.html'}\n         {expert / 'report.html'}")
    print(
        f"seconds  {', '.join(f'{seconds:.0f}' for seconds in stage.seconds.values())}; {time.monotonic() - began:.0f} in all"
    )
    print(
        "\nWith a GPU, the same commands on a real model and GSM8K:\n"
        "  grpo-gsm8k eval                                      # Qwen2.5-Math-1.5B as it comes\n"
        "  grpo-gsm8k grpo --config grpo-qwen-math-1.5b-1gpu    # or grpo-qwen-math-1.5b with two GPUs\n"
        "  grpo-gsm8k presets                                   # what else there is"
    )


if __name__ == "__main__":
    main()
