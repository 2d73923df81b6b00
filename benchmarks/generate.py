"""Tokens a second: the transformers engine against bare `model.generate`, on the same model, prompts and batch, in one run.

    python benchmarks/generate.py [--model tiny] [--num-prompts 32] [--num-samples 8] [--max-tokens 64] [--runs 7]

The two take turns, so that both meet the same noise; medians are printed. Both sample at temperature 1 with no top-p and no
top-k. `generate` is given the whole batch, left-padded, as TRL gives it; tokens after a row's end are not counted for either.
It draws its own random numbers, so the two sample different (equally long, on average) completions; a first greedy round
checks that both say the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from grpo_gsm8k.engines.loading import load_model
from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.types import Prompt, Sampling

NAMES, OBJECTS = ("Ada", "Ben", "Mia", "Tom"), ("apples", "pens", "books", "coins")


def make_prompts(tokenizer: Any, count: int) -> list[Prompt]:
    """Returns word problems in the model's chat template (as they are, where it has none)."""
    rng = random.Random(0)
    prompts = []
    for i in range(count):
        name, thing, first, second = rng.choice(NAMES), rng.choice(OBJECTS), rng.randrange(2, 21), rng.randrange(2, 21)
        text = f"{name} has {first} {thing}. {name} gets {second} more {thing}. How many {thing} does {name} have now?"
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(Prompt(f"p{i}", tuple(tokenizer.encode(text, add_special_tokens=False)), text))
    return prompts


def bare_generate(engine: TransformersEngine, model: Any, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
    """Returns what `model.generate` samples for the whole batch at once, each row cut after its end."""
    length = max(len(prompt.token_ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, length - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        mask[i, length - len(prompt.token_ids) :] = 1
    how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    with torch.inference_mode():
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=sampling.max_tokens,
            pad_token_id=min(engine.describe()["eos_token_ids"]),
            eos_token_id=engine.describe()["eos_token_ids"],
            **(how if sampling.temperature else {"do_sample": False}),
        )
    ends = set(engine.describe()["eos_token_ids"])
    rows = []
    for row in out[:, length:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:end])
    return rows


def measure(sample: Callable[[int], int]) -> Callable[[int], tuple[float, int]]:
    """Returns a function that gives the seconds and the tokens of one run."""

    def run(number: int) -> tuple[float, int]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        tokens = sample(number)
        return time.perf_counter() - started, tokens

    return run


def print_table(options: argparse.Namespace, got: Mapping[str, Any], times: Mapping[str, list[tuple[float, int]]]) -> None:
    """Prints what was measured and on what."""
    print(f"model {options.model} ({got['num_parameters']:,} parameters, {got['dtype']}, {got['attention']} attention)")
    print(
        f"{options.num_prompts} prompts x {options.num_samples}, {options.max_tokens} new tokens at most, "
        f"{options.runs} runs each, in turn"
    )
    print(
        f"torch {got['torch']}, transformers {got['transformers']}, {got['device_name']}, {got['num_threads']} thread(s), "
        f"Python {platform.python_version()}, {platform.machine()}"
    )
    print(f"{'':24}{'median s':>10}{'min s':>9}{'tokens':>9}{'tokens/s':>11}{'ratio':>8}")
    rates = {name: statistics.median(tokens / seconds for seconds, tokens in runs) for name, runs in times.items()}
    for name, runs in times.items():
        seconds = [run[0] for run in runs]
        tokens = statistics.median(run[1] for run in runs)
        ratio = rates[name] / rates["model.generate"]
        print(f"{name:24}{statistics.median(seconds):10.3f}{min(seconds):9.3f}{tokens:9.0f}{rates[name]:11,.0f}{ratio:8.2f}")


def main() -> None:
    """Runs both in turn and prints a table."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()

    rows = options.num_prompts * options.num_samples
    engine = TransformersEngine(options.model, device=options.device, batch_size=rows)
    model = load_model(options.model, device=options.device)
    distinct = make_prompts(engine.tokenizer, options.num_prompts)
    prompts = [prompt for prompt in distinct for _ in range(options.num_samples)]

    greedy = Sampling(max_tokens=options.max_tokens)
    ours = [list(c.token_ids) for c in engine.generate(distinct, greedy, [0] * len(distinct))]
    same = sum(a == b for a, b in zip(ours, bare_generate(engine, model, distinct, greedy), strict=True))

    warm = Sampling(temperature=1.0, max_tokens=options.max_tokens)

    def engine_run(number: int) -> int:
        seeds = [number * rows + i for i in range(rows)]
        return sum(len(c.token_ids) for c in engine.generate(prompts, warm, seeds))

    def bare_run(number: int) -> int:
        torch.manual_seed(number)
        return sum(len(row) for row in bare_generate(engine, model, prompts, warm))

    contestants = {"engine (transformers)": measure(engine_run), "model.generate": measure(bare_run)}
    times: dict[str, list[tuple[float, int]]] = {name: [] for name in contestants}
    for number in range(options.runs + 1):
        for name, run in contestants.items():
            result = run(number)
            if number:  # the first warms up
                times[name].append(result)

    print_table(options, engine.describe(), times)
    print(f"greedy completions the same as bare generate: {same} of {len(distinct)}")


if __name__ == "__main__":
    main()
