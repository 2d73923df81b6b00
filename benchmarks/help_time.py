"""Seconds until `--help` has answered, beside a bare interpreter, in one run.

    python benchmarks/help_time.py [--runs 15]

The goal is under 0.3 s. Each command is a process of its own; they take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import click'": ["-c", "import click"],
    "grpo-gsm8k --help": ["-m", "grpo_gsm8k.cli", "--help"],
    "grpo-gsm8k eval --help": ["-m", "grpo_gsm8k.cli", "eval", "--help"],
    "grpo-gsm8k eval --dry-run": ["-m", "grpo_gsm8k.cli", "eval", "--dry-run"],
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(runs + 1):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if number > 0:  # the first round warms the file cache
                seconds[name].append(time.perf_counter() - began)
    print(f"Python {sys.version.split()[0]}, medians of {runs}\n\n| command | median s | max s |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
