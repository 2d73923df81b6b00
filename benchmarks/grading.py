"""Grading rate: `python benchmarks/grading.py [--data FOLDER]`. Goals: numeric 50,000/s in one process, math 200/s.

Completions are the published GSM8K test solutions (`test.jsonl` in FOLDER; without it, problems of our own making) with an
opening paragraph, each ended in one of the ways that models end: 700 characters, some 180 tokens. `mixed` is 40 % boxed,
25 % `####`, 15 % tags, 15 % "the answer is", 5 % no mark. CPU seconds are of this process; wall seconds also count what other
processes took.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from grpo_gsm8k.rewards.math import MathGrader
from grpo_gsm8k.rewards.numbers import gold_number
from grpo_gsm8k.rewards.registry import make_grader

OPENING = (
    "To solve this problem, let's work through it step by step, writing down what is known before calculating anything.\n\n"
    "### Step 1: Understand what is asked\nThe question gives us several quantities and asks for a single one. We list the "
    "quantities, say how each one follows from those before it, and only then put in the numbers.\n\n"
    "### Step 2: Calculate\n"
)
ENDINGS = {
    "boxed": "\n\nThus, the final answer is $\\boxed{{{gold}}}$.",
    "hash": "\n#### {gold}",
    "tags": "\n</think>\n\n<answer>{gold}</answer>",
    "answer is": "\n\nThe answer is **{gold}**.",
    "no mark": "\n\nSo, in total it comes to ${gold} in 3 weeks.",
}
MIX = ["boxed"] * 8 + ["hash"] * 5 + ["tags"] * 3 + ["answer is"] * 3 + ["no mark"]


def load(folder: Path | None) -> list[tuple[str, str]]:
    """Returns (reasoning without its answer, gold) pairs."""
    if folder is None:
        step = "Each of the {i} boxes holds 7 pencils, and there are 12 rows, so we get {i} * 7 = {a} and {a} * 12 = {b}.\n"
        return [("".join(step.format(i=i, a=7 * i, b=84 * i) for _ in range(5)), str(84 * i)) for i in range(2, 1321)]
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return [(re.sub(r"<<[^>]*>>", "", r["answer"].rpartition("####")[0]).strip(), gold_number(r["answer"])) for r in rows]


def measure(name: str, grade: Callable[[list[str], list[str]], object], completions: list[str], golds: list[str]) -> None:
    """Prints one row: completions, characters each, and gradings a second by CPU and by wall time."""
    wall, cpu = time.perf_counter(), time.process_time()
    grade(completions, golds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    chars = sum(map(len, completions)) / len(completions)
    print(f"{name:28} {len(golds):8,} {chars:8.0f} {len(golds) / cpu:14,.0f} {len(golds) / wall:14,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with GSM8K's test.jsonl")
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()
    problems = load(arguments.data)
    golds = [gold for _, gold in problems]
    forms = {name: [OPENING + body + ending.format(gold=gold) for body, gold in problems] for name, ending in ENDINGS.items()}
    forms["mixed"] = [forms[MIX[i % len(MIX)]][i] for i in range(len(problems))]
    print(f"{'grader':28} {'graded':>8} {'chars':>8} {'per CPU second':>14} {'per second':>14}")
    for grader in (make_grader("gsm8k_strict"), make_grader("numeric")):
        for name, completions in forms.items():
            grader.grade_batch(completions[:100], golds[:100])
            measure(f"{grader.name}, {name}", grader.grade_batch, completions * 5, golds * 5)
    math = MathGrader(num_workers=arguments.num_workers)
    math.grade_batch(forms["boxed"][:64], golds[:64])
    measure(f"math, boxed ({arguments.num_workers} workers)", math.grade_batch, forms["boxed"] * 2, golds * 2)
    symbolic = [f"Thus $x=\\boxed{{\\frac{{{i}}}{{7}}+\\sqrt{{{i}}}}}$" for i in range(2, 602)]
    measure("math, symbolic", math.grade_batch, symbolic, [f"\\sqrt{{{i}}}+\\frac{{{i}}}{{7}}" for i in range(2, 602)])
    measure("math, no mark", math.grade_batch, forms["no mark"][:400], golds[:400])
    math.close()


if __name__ == "__main__":
    main()
