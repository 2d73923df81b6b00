"""The GRPO step on a CUDA device at Qwen2.5-1.5B's shape: seconds of its parts, MFU and peak memory; ours against TRL.

    python benchmarks/grpo_cuda.py [--layers 28] [--prompts 64] [--max-tokens 1024] [--steps 3] [--runs 3] [--peak-tflops 989]
    python benchmarks/grpo_cuda.py --tiny --device cpu      # the same code on a tiny shape: does it run?

Random weights in bf16, 64 prompts x 8 completions a step. Several hundred token ids count as end tokens, so that a model which
picks at random ends a completion after --mean-tokens on average, geometrically distributed: as skewed as real ones. Whether a
completion is right is a coin's toss, found by the real grader. Ours has float32 masters and moments; TRL's precision is named.
Every run is a process of its own, the ways in turn; the first step is not counted. The update's MFU is 6 FLOPs a parameter and
token of the rollouts (prompts counted with each, padding never) against the peak that is given (989: an H100's dense bf16).
`update` of TRL is what is left of its step after sampling and scoring. A way that cannot run is listed with why.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpo_step import PARTS, Step, our_steps, trl_steps

GROUP, LEARNING_RATE = 8, 1e-6
WAYS: dict[str, dict[str, Any]] = {
    "ours, transformers": {},
    "ours, transformers, checkpointed": {"gradient_checkpointing": True},
    "ours, vLLM": {"engine": "vllm"},
    "TRL, its defaults, fp32 weights": {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    "TRL, bf16 weights": {"per_device_train_batch_size": 16, "weights": "bfloat16"},
    "TRL, bf16 weights, vLLM": {"per_device_train_batch_size": 16, "weights": "bfloat16", "use_vllm": True},
}
SHAPE: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 414,
}


def write_model(folder: Path, args: argparse.Namespace) -> None:
    """Writes the random model, with its end tokens and the tiny model's tokenizer, into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    from grpo_gsm8k.models import tiny_path

    torch.manual_seed(0)
    shape = TINY if args.tiny else SHAPE
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    config = Qwen2Config(
        **shape,
        num_hidden_layers=2 if args.tiny else args.layers,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    num_ends = max(1, shape["vocab_size"] // args.mean_tokens)
    ends = {tokenizer.eos_token_id, *range(shape["vocab_size"] - num_ends, shape["vocab_size"])}
    model.generation_config.eos_token_id = sorted(ends - {tokenizer.pad_token_id})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def questions(args: argparse.Namespace) -> list[str]:
    """Returns the text of every prompt: words, their number spread like the lengths of GSM8K's problems."""
    rng = random.Random(0)
    words = "a box has books and coins . How many are left ? Tom gives away 12 more then 7".split()
    median = 12 if args.tiny else 90
    lengths = [
        min(4 * median, max(8, round(rng.lognormvariate(0, 0.35) * median))) for _ in range(args.prompts * (args.steps + 1))
    ]
    return [" ".join(rng.choice(words) for _ in range(length)) for length in lengths]


def text_of(ids: Sequence[int]) -> str:
    """Returns a text of about the length that real tokens have, whose answer is the parity of the last token but one."""
    return " ".join(map(str, ids)) + f"\n#### {ids[-2] % 2 if len(ids) > 1 else 0}"


def ours(folder: Path, args: argparse.Namespace, options: dict[str, Any]) -> list[Step]:
    """Returns our steps."""
    from transformers import AutoTokenizer

    from grpo_gsm8k.engines.select import make_engine
    from grpo_gsm8k.envs.dataset import DatasetEnv
    from grpo_gsm8k.learners.native import NativeLearner
    from grpo_gsm8k.learners.options import LearnerOptions
    from grpo_gsm8k.rewards.registry import make_grader
    from grpo_gsm8k.types import Problem, Prompt

    options = dict(options)
    name, dtype = options.pop("engine", "transformers"), "float32" if args.device == "cpu" else "bfloat16"
    where = {"gpu_mem_util": args.vllm_share, "seed": 0} if name == "vllm" else {"device": args.device}
    engine, _ = make_engine(name, model_id=str(folder), dtype=dtype, **where)
    chosen = LearnerOptions(dtype=dtype, max_grad_norm=1.0, tokens_per_microbatch=args.tokens_per_microbatch, **options)
    learner = NativeLearner.from_pretrained(str(folder), chosen, device=args.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems = [Problem(str(i), text, "", "1") for i, text in enumerate(questions(args))]
    prompts = [Prompt(problem.id, tuple(tokenizer(problem.question)["input_ids"])) for problem in problems]
    with closing(engine), closing(DatasetEnv("coin", {"train": problems}, make_grader("gsm8k_strict"))) as env:
        return our_steps(env, engine, learner, problems, prompts, text_of, args.prompts, GROUP, args.max_tokens, LEARNING_RATE)


def trl(folder: Path, args: argparse.Namespace, options: dict[str, Any]) -> list[Step]:
    """Returns TRL's steps."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grpo_gsm8k.rewards.registry import make_grader

    options = dict(options)
    weights = "float32" if args.device == "cpu" else options.pop("weights", "float32")
    options.pop("weights", None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, weights)).to(args.device)
    grader, ends = make_grader("gsm8k_strict"), set(model.generation_config.eos_token_id)

    def judge(rows_ids: list[list[int]], golds: list[str]) -> list[float]:
        scores = grader.grade_batch([text_of(ids) for ids in rows_ids], golds)
        return [float(ids[-1] in ends and score.status == "correct") for ids, score in zip(rows_ids, scores, strict=True)]

    if options.get("use_vllm"):
        options |= {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": args.vllm_share}
    shared = {"bf16": args.device != "cpu", "use_cpu": args.device == "cpu"}
    shared |= {"max_completion_length": args.max_tokens, "learning_rate": LEARNING_RATE}
    rows = [{"prompt": text, "gold": "1"} for text in questions(args)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return trl_steps(model, tokenizer, rows, judge, args.prompts, GROUP, shared | options)()


def run_once(way: str, args: argparse.Namespace) -> None:
    """Prints one way's median seconds of each part (the first step left out), tokens, and peak memory."""
    import torch

    steps = (trl if way.startswith("TRL") else ours)(args.model, args, WAYS[way])[1:]
    result = {name: statistics.median(step[name] for step in steps) for name in PARTS}
    result |= {name: statistics.fmean(step[name] for step in steps) for name in ("tokens", "reward")}
    if args.device == "cpu":
        result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(result))


def installed(name: str) -> str:
    """Returns the version of a distribution, or that there is none."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def print_table(found: dict[str, list[dict[str, float]]], failed: dict[str, str], args: argparse.Namespace) -> None:
    """Prints the medians of all ways."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on = "the CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{args.prompts} prompts x {GROUP} completions, {args.max_tokens} tokens at most, {args.runs} runs of {args.steps}")
    print(f"on {on}; {', '.join(map(installed, ('torch', 'transformers', 'trl', 'vllm')))}\n")
    model = AutoModelForCausalLM.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompt_tokens = statistics.fmean(len(tokenizer(text)["input_ids"]) for text in questions(args))
    print("| way | s a step | sampling | tokens/s | scoring | update | MFU | weights to engine | peak GiB | tokens | reward |")
    print("|" + "---|" * 11)
    for way, runs in found.items():
        if way in failed:
            print(f"| {way} | could not run: {failed[way][:120]} " + "| " * 9 + "|")
            continue
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        num_rollouts = args.prompts * GROUP
        flops = 6 * model.num_parameters() * num_rollouts * (prompt_tokens + median["tokens"])
        print(
            f"| {way} | {median['step_s']:.2f} | {median['sample_s']:.2f} "
            f"| {num_rollouts * median['tokens'] / median['sample_s']:,.0f} | {median['score_s']:.3f} "
            f"| {median['update_s']:.2f} | {flops / median['update_s'] / (args.peak_tflops * 1e12):.1%} "
            f"| {median['publish_s']:.2f} | {median['peak_gib']:.1f} | {median['tokens']:.0f} | {median['reward']:.2f} |"
        )


def main() -> None:
    """Runs the ways in turn and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, few and short completions")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--mean-tokens", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens-per-microbatch", type=int, default=16_384)
    parser.add_argument("--vllm-share", type=float, default=0.4, help="of the GPU's memory, for vLLM")
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=WAYS)
    parser.add_argument("--model", type=Path, help="folder of the random model (used by this script itself)")
    parser.add_argument("--once", choices=WAYS, help="run one way in this process (used by this script itself)")
    args = parser.parse_args()
    args.prompts = args.prompts or (8 if args.tiny else 64)
    args.mean_tokens = args.mean_tokens or (12 if args.tiny else 300)
    args.max_tokens = args.max_tokens or (32 if args.tiny else 1024)
    if args.once:
        run_once(args.once, args)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        args.model = Path(folder)
        write_model(args.model, args)
        for _ in range(args.runs):
            for way in [way for way in args.ways if way not in failed]:
                command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--model", folder, "--once", way]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    found[way].append(json.loads(done.stdout.strip().split("\n")[-1]))
                else:
                    failed[way] = done.stderr.strip().split("\n")[-1]
        print_table(found, failed, args)


if __name__ == "__main__":
    main()
