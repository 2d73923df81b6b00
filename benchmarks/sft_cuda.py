"""Supervised updates on a CUDA device: tokens/s, model FLOPs utilisation and peak memory; the native learner against TRL.

    python benchmarks/sft_cuda.py [--layers 28] [--steps 5] [--runs 5] [--peak-tflops 989]

Qwen2.5-1.5B's shape with random weights, bf16; sequences of random tokens, lengths spread like GSM8K's problems with long
worked answers. Ours has float32 masters and moments; TRL trains float32 weights under bf16 autocast, which is the same
precision of what is kept. Every run is a process of its own, the ways in turn; the first step is not counted. MFU is 6 FLOPs a
parameter and real (unpadded) token against the peak that is given (989: an H100's dense bf16).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VOCAB, EMBEDDED = 151_936, 1536
STEP = 64  # sequences of an optimiser step
WAYS: dict[str, dict[str, Any]] = {
    "native learner": {},
    "native learner, checkpointed": {"gradient_checkpointing": True},
    "TRL, its defaults": {"gradient_checkpointing": True, "per_device_train_batch_size": 8},
    "TRL, no checkpointing": {"per_device_train_batch_size": 8},
    "TRL, padding-free flash attention": {"per_device_train_batch_size": 16, "padding_free": True},
}


def sequences(num: int) -> list[tuple[list[int], list[int]]]:
    """Returns prompts and responses of random tokens."""
    rng = random.Random(0)
    found = []
    for _ in range(num):
        prompt, response = round(rng.lognormvariate(4.9, 0.35)), round(rng.lognormvariate(5.7, 0.5))
        found.append(tuple([rng.randrange(3, VOCAB) for _ in range(min(2000, max(20, n)))] for n in (prompt, response)))
    return found


def build(layers: int, attention: str) -> Any:
    """Returns the model in float32 on the device."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=EMBEDDED,
        intermediate_size=8960,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def native(pairs: list[tuple[list[int], list[int]]], options: dict[str, Any], layers: int, tokens: int) -> list[float]:
    """Returns the seconds of each step."""
    import torch

    from grpo_gsm8k.algorithms.sft_loss import SftLoss
    from grpo_gsm8k.learners.native import NativeLearner
    from grpo_gsm8k.learners.options import LearnerOptions
    from grpo_gsm8k.tokenize import TokenSequence

    chosen = LearnerOptions(dtype="bfloat16", max_grad_norm=1.0, tokens_per_microbatch=tokens, **options)
    learner = NativeLearner(build(layers, "sdpa"), chosen)
    examples = [TokenSequence.of_response(str(i), *pair) for i, pair in enumerate(pairs)]
    times = []
    for start in range(0, len(examples), STEP):
        step = examples[start : start + STEP]
        torch.cuda.synchronize()
        began = time.perf_counter()
        learner.forward_backward(step, SftLoss(sum(example.num_trained for example in step)))
        learner.optim_step(1e-5)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times


def trl(pairs: list[tuple[list[int], list[int]]], options: dict[str, Any], layers: int) -> list[float]:
    """Returns the seconds of each step."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from grpo_gsm8k.models import tiny_path

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            gradient_accumulation_steps=STEP // options["per_device_train_batch_size"],
            num_train_epochs=1,
            max_length=None,
            learning_rate=1e-5,
            max_grad_norm=1.0,
            bf16=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **({"train_sampling_strategy": "sequential", "gradient_checkpointing": False} | options),
        )
        SFTTrainer(
            model=build(layers, "flash_attention_2" if options.get("padding_free") else "sdpa"),
            args=config,
            train_dataset=Dataset.from_list([{"input_ids": p + r, "labels": [-100] * len(p) + r} for p, r in pairs]),
            processing_class=AutoTokenizer.from_pretrained(tiny_path()),
            callbacks=[Clock()],
        ).train()
    return times


def run_once(way: str, args: argparse.Namespace) -> None:
    """Prints one way's seconds a step (the first left out) and peak of allocated memory."""
    import torch

    pairs = sequences(STEP * (args.steps + 1))
    if way.startswith("native"):
        times = native(pairs, WAYS[way], args.layers, args.tokens_per_microbatch)
    else:
        times = trl(pairs, WAYS[way], args.layers)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"seconds": sum(times[1:]), "peak_gib": peak, "device": torch.cuda.get_device_name()}))


def main() -> None:
    """Runs the ways in turn and prints their medians; a way that cannot run here is listed with its last line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens-per-microbatch", type=int, default=16_384)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--once", choices=WAYS, help="run one way in this process (used by this script itself)")
    args = parser.parse_args()
    if args.once:
        run_once(args.once, args)
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    failed: dict[str, str] = {}
    for _ in range(args.runs):
        for way in [way for way in WAYS if way not in failed]:
            done = subprocess.run(
                [sys.executable, str(Path(__file__)), *sys.argv[1:], "--once", way], capture_output=True, text=True
            )
            if done.returncode == 0:
                found[way].append(json.loads(done.stdout.strip().split("\n")[-1]))
            else:
                failed[way] = done.stderr.strip().split("\n")[-1]
    pairs = sequences(STEP * (args.steps + 1))[STEP:]
    num_trained = sum(len(response) for _, response in pairs)
    num_tokens = num_trained + sum(len(prompt) for prompt, _ in pairs)
    per_layer = EMBEDDED * EMBEDDED * 2 + EMBEDDED * 256 * 2 + 3 * EMBEDDED * 8960
    num_parameters = args.layers * per_layer + VOCAB * EMBEDDED
    print("| way | trained tokens/s | tokens/s | MFU | peak GiB |\n|---|---|---|---|---|")
    for way, runs in found.items():
        if way in failed:
            print(f"| {way} | failed: {failed[way][:100]} | | | |")
            continue
        seconds = statistics.median(run["seconds"] for run in runs)
        used = 6 * num_parameters * num_tokens / seconds / (args.peak_tflops * 1e12)
        print(
            f"| {way} | {num_trained / seconds:,.0f} | {num_tokens / seconds:,.0f} | {used:.1%} "
            f"| {statistics.median(run['peak_gib'] for run in runs):.1f} |"
        )


if __name__ == "__main__":
    main()
