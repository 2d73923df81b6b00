"""Supervised updates: the native learner against TRL's SFTTrainer, on the same model, data, tokens per step and precision.

    python benchmarks/sft_update.py --shape tiny --threads 1
    python benchmarks/sft_update.py --shape vocabulary --threads 2

One epoch over the same sequences (lengths spread like GSM8K's), in optimiser steps of the same number of sequences; TRL
packs whole rows instead where it is asked to, so that its steps have about as many tokens. Every run is a process of its own,
the ways in turn, so that the peak is the process's own high-water mark; the time is that of the training loop alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-4
PACKED_ROW = 2048


@dataclass(frozen=True)
class Shape:
    """A model and how much it trains: `num` sequences in steps of `step`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    num: int
    step: int


SHAPES = {
    "tiny": Shape(hidden=64, layers=2, heads=2, kv_heads=2, mlp=256, vocab=414, num=512, step=64),
    "vocabulary": Shape(hidden=256, layers=4, heads=4, kv_heads=2, mlp=1024, vocab=151_936, num=32, step=16),
}
TRL: dict[str, dict[str, Any]] = {
    "TRL, its defaults": {"gradient_checkpointing": True, "batch": 8},
    "TRL, batch of 8": {"batch": 8},
    "TRL, sorted by length": {"batch": 8, "train_sampling_strategy": "group_by_length"},
    "TRL, whole step": {},
    "TRL, padding-free": {"padding_free": True, "batch": 8},
    "TRL, packing": {"packing": True, "batch": 1},
    "TRL, packing, rows of 1024": {"packing": True, "batch": 1, "max_length": 1024},
}
OURS = {  # tokens_per_microbatch
    "native learner": 4096,
    "native learner, 1024 a micro-batch": 1024,
    "native learner, 512 a micro-batch": 512,
}


def sequences(shape: Shape) -> list[tuple[list[int], list[int]]]:
    """Returns prompts and responses of random tokens; lengths are log-normal around those of GSM8K under a template."""
    rng = random.Random(0)
    found = []
    for _ in range(shape.num):
        prompt = min(300, max(40, round(rng.lognormvariate(4.6, 0.35))))
        response = min(400, max(25, round(rng.lognormvariate(4.7, 0.5))))
        found.append(
            ([rng.randrange(3, shape.vocab) for _ in range(prompt)], [rng.randrange(3, shape.vocab) for _ in range(response)])
        )
    return found


def build(shape: Shape) -> Any:
    """Returns the model, with random weights, in float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=None,
        )
    )


def native(shape: Shape, tokens: int) -> Callable[[], None]:
    """Returns the native learner's epoch."""
    from grpo_gsm8k.algorithms.sft_loss import SftLoss
    from grpo_gsm8k.learners.native import NativeLearner
    from grpo_gsm8k.learners.options import AdamWOptions, LearnerOptions
    from grpo_gsm8k.tokenize import TokenSequence

    adamw = AdamWOptions(betas=(0.9, 0.999))
    options = LearnerOptions(dtype="float32", max_grad_norm=1.0, adamw=adamw, tokens_per_microbatch=tokens)
    learner = NativeLearner(build(shape), options)
    examples = [TokenSequence.of_response(str(i), *pair) for i, pair in enumerate(sequences(shape))]

    def epoch() -> None:
        for start in range(0, shape.num, shape.step):
            step = examples[start : start + shape.step]
            learner.forward_backward(step, SftLoss(sum(example.num_trained for example in step)))
            learner.optim_step(LEARNING_RATE)

    return epoch


def trl(shape: Shape, options: dict[str, Any]) -> Callable[[], None]:
    """Returns TRL's epoch: pre-tokenised data, no evaluation, saving or reporting."""
    import tempfile

    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
    from trl import SFTConfig, SFTTrainer

    from grpo_gsm8k.models import tiny_path

    disable_progress_bars()
    disable_progress_bar()
    options = dict(options)
    rows = [{"input_ids": p + r, "labels": [-100] * len(p) + r} for p, r in sequences(shape)]
    num_tokens = sum(len(row["input_ids"]) for row in rows)
    batch = options.pop("batch", shape.step)
    row = options.pop("max_length", PACKED_ROW)
    # A packed step is as many full rows as have the tokens of a step of sequences.
    rows_per_step = max(1, round(num_tokens * shape.step / shape.num / row)) if options.get("packing") else shape.step
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(1, rows_per_step // batch),
        num_train_epochs=1,
        max_length=row if options.get("packing") else None,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **({"train_sampling_strategy": "sequential", "gradient_checkpointing": False} | options),
    )
    trainer = SFTTrainer(
        model=build(shape),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_path()),
    )
    return trainer.train


def run_once(shape: Shape, way: str, threads: int) -> None:
    """Prints one way's seconds, and its peak of resident memory in MB (before: once everything is loaded)."""
    import torch

    torch.set_num_threads(threads)
    epoch = native(shape, OURS[way]) if way in OURS else trl(shape, TRL[way])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu = time.perf_counter(), time.process_time()
    epoch()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak, "before_mb": before}))


def measure(name: str, way: str, threads: int) -> dict[str, float]:
    """Returns what one run of `way` in a process of its own printed."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env["OMP_WAIT_POLICY"] = "passive"  # threads that spin collapse where the machine is shared
    env |= {"WANDB_MODE": "disabled", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__)), "--shape", name, "--threads", str(threads), "--once", way]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def main() -> None:
    """Runs the ways in turn and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=[*OURS, *TRL], choices=[*OURS, *TRL])
    parser.add_argument("--once", metavar="WAY", help="run one way in this process (used by this script itself)")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.once:
        run_once(shape, args.once, args.threads)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for _ in range(args.runs):
        for way in args.ways:
            found[way].append(measure(args.shape, way, args.threads))
    pairs = sequences(shape)
    num_trained = sum(len(response) for _, response in pairs)
    num_tokens = num_trained + sum(len(prompt) for prompt, _ in pairs)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{args.shape}, {args.threads} thread(s), fp32, {args.runs} runs in turn; {versions}")
    print(f"{shape.num} sequences in steps of {shape.step}, {num_tokens:,} tokens of which {num_trained:,} trained\n")
    print("| way | median s (min-max) | trained tokens/s | ratio | CPU s | ratio | peak MB | of it before training | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    medians = {way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()}
    first = medians[args.ways[0]]
    for way, median in medians.items():
        times = [run["seconds"] for run in found[way]]
        print(
            f"| {way} | {median['seconds']:.2f} ({min(times):.2f}-{max(times):.2f}) | {num_trained / median['seconds']:,.0f} "
            f"| {median['seconds'] / first['seconds']:.2f} | {median['cpu_s']:.2f} | {median['cpu_s'] / first['cpu_s']:.2f} "
            f"| {median['peak_mb']:,.0f} | {median['before_mb']:,.0f} "
            f"| {median['peak_mb'] / first['peak_mb']:.2f} |"
        )


if __name__ == "__main__":
    main()
