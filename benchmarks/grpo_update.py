"""One policy-gradient update, forward and backward: the native learner against plain transformers and TRL's GRPOTrainer.

    python benchmarks/grpo_update.py --threads 2 --runs 3

Two groups of eight completions of one prompt each, of skewed lengths, under a model of 45 M parameters with a vocabulary of
151,936 tokens, in float32; on-policy, the loss the token mean of the clipped objective (TRL's default). Every run is a process
of its own, the ways in turn, so that the peak is the process's own high-water mark; the time is that of the update alone, after
one on two short sequences. The gradients of all ways are compared with those of the first.

TRL's loss is computed by its trainer's own method from the batch that its trainer would have sampled (prompts padded on the
left, completions on the right, then split into micro-batches). "Compact" is its policy for GPUs, taken on the CPU: only the
completions' positions are projected.
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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

VOCAB, HIDDEN, LAYERS = 151_936, 256, 6
GROUPS, GROUP = 2, 8
OURS = "native, prompt shared"

Update = Callable[["Batch"], None]


@dataclass(frozen=True)
class Batch:
    """Prompts, completions and advantages, one entry a sequence; groups lie together."""

    prompts: list[list[int]]
    completions: list[list[int]]
    advantages: list[float]

    @property
    def num_trained(self) -> int:
        """How many completion tokens there are."""
        return sum(map(len, self.completions))


def draw(groups: int, size: int, longest: int) -> Batch:
    """Returns random tokens: prompts of 100 to 200, completions log-normal from 50 to 400 (or `longest`)."""
    rng = random.Random(0)

    def tokens(num: int) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(min(num, longest))]

    prompts = [tokens(rng.randint(100, 200)) for _ in range(groups)]
    completions = [tokens(min(400, max(50, round(rng.lognormvariate(4.8, 0.7))))) for _ in range(groups * size)]
    advantages = [rng.gauss(0, 1) for _ in completions]
    return Batch([prompt for prompt in prompts for _ in range(size)], completions, advantages)


def build() -> Any:
    """Returns the model, with random weights, in float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=None,
        )
    )


def padded(model: Any, _: dict[str, Any]) -> Update:
    """Returns the update of plain transformers: a group at a time, padded on the right, all logits, autograd."""
    import torch

    def update(batch: Batch) -> None:
        for start in range(0, len(batch.prompts), GROUP):
            part = slice(start, start + GROUP)
            pairs = list(zip(batch.prompts[part], batch.completions[part], strict=True))
            width = max(len(prompt) + len(completion) for prompt, completion in pairs)
            rows = [[*prompt, *completion, *[0] * (width - len(prompt) - len(completion))] for prompt, completion in pairs]
            ids_BT = torch.tensor(rows)
            place_T = torch.arange(width)
            starts_B1 = torch.tensor([[len(prompt)] for prompt, _ in pairs])
            ends_B1 = torch.tensor([[len(prompt) + len(completion)] for prompt, completion in pairs])
            logits_BTV = model(input_ids=ids_BT, attention_mask=(place_T < ends_B1).long(), use_cache=False).logits[:, :-1]
            chosen_BT = logits_BTV.gather(2, ids_BT[:, 1:, None])[..., 0]
            logprobs_BT = chosen_BT - logits_BTV.logsumexp(-1)
            ratio_BT = (logprobs_BT - logprobs_BT.detach()).exp()
            advantages_B1 = torch.tensor(batch.advantages[part])[:, None]
            clipped_BT = torch.min(ratio_BT * advantages_B1, ratio_BT.clamp(0.8, 1.2) * advantages_B1)
            trained_BT = ((place_T >= starts_B1) & (place_T < ends_B1))[:, 1:]
            (-(clipped_BT * trained_BT).sum() / batch.num_trained).backward()

    return update


def trl(model: Any, options: dict[str, Any]) -> Update:
    """Returns TRL's update: `GRPOTrainer._compute_loss` and backward, a micro-batch at a time."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import utils

    from grpo_gsm8k.models import tiny_path

    size, checkpointing = options["batch"], options.get("gradient_checkpointing", False)
    if options.get("compact"):
        utils._use_triton = lambda _: True  # read where positions are selected; the kernels have a name of their own
    count = GROUPS * GROUP // size
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=count,
        num_generations=GROUP,
        gradient_checkpointing=checkpointing,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "1 + 1"}] * GROUPS),
        processing_class=AutoTokenizer.from_pretrained(tiny_path()),
    )
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def update(batch: Batch) -> None:
        longest_prompt, longest = max(map(len, batch.prompts)), max(map(len, batch.completions))
        left = [[0] * (longest_prompt - len(prompt)) for prompt in batch.prompts]
        right = [[0] * (longest - len(completion)) for completion in batch.completions]
        inputs = {
            "prompt_ids": [[*pad, *prompt] for pad, prompt in zip(left, batch.prompts, strict=True)],
            "prompt_mask": [[*pad, *[1] * len(prompt)] for pad, prompt in zip(left, batch.prompts, strict=True)],
            "completion_ids": [[*completion, *pad] for pad, completion in zip(right, batch.completions, strict=True)],
            "completion_mask": [[*[1] * len(each), *pad] for pad, each in zip(right, batch.completions, strict=True)],
            "advantages": batch.advantages,
        }
        tensors = {name: torch.tensor(values) for name, values in inputs.items()}
        trainer.current_gradient_accumulation_steps = count
        for start in range(0, len(batch.prompts), size):
            part = {name: tensor[start : start + size] for name, tensor in tensors.items()}
            trainer._compute_loss(model, part | {"num_items_in_batch": torch.tensor(float(batch.num_trained))}).backward()

    return update


def native(model: Any, options: dict[str, Any]) -> Update:
    """Returns the native learner's update."""
    from grpo_gsm8k.algorithms.policy_loss import PolicyLoss
    from grpo_gsm8k.algorithms.registry import find_algorithm
    from grpo_gsm8k.learners.native import NativeLearner
    from grpo_gsm8k.learners.options import LearnerOptions
    from grpo_gsm8k.tokenize import TokenSequence

    learner = NativeLearner(model, LearnerOptions(dtype="float32", tokens_per_microbatch=2048, **options))
    algorithm = find_algorithm("dapo")

    def update(batch: Batch) -> None:
        sequences = []
        for place, (prompt, completion) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
            values = {"advantage": batch.advantages[place], "weight": 1 / batch.num_trained, "sampling_logprob": 0.0}
            ids = (*prompt, *completion)
            extras = {name: (value,) * len(ids) for name, value in values.items()}
            sequences.append(TokenSequence(str(place), ids, (False,) * len(prompt) + (True,) * len(completion), extras))
        learner.forward_backward(sequences, PolicyLoss(algorithm, on_policy=True))

    return update


WAYS: dict[str, tuple[Callable[[Any, dict[str, Any]], Update], dict[str, Any]]] = {
    "padded, all logits": (padded, {}),
    "TRL, its defaults": (trl, {"batch": 8, "gradient_checkpointing": True}),
    "TRL, no checkpointing, batch of 16": (trl, {"batch": 16}),
    "TRL, compact, batch of 16": (trl, {"batch": 16, "compact": True}),
    "TRL, compact, batch of 4": (trl, {"batch": 4, "compact": True}),
    "native, packed": (native, {"share_prefixes": False}),
    OURS: (native, {}),
    "native, prompt shared, entropy measured": (native, {"entropy": True}),
}


def run_once(way: str, threads: int, gradients: Path | None) -> None:
    """Prints one way's seconds, and its peak of resident memory in MB (before: once everything is loaded)."""
    import torch

    torch.set_num_threads(threads)
    make, options = WAYS[way]
    model = build()
    update = make(model, options)
    update(draw(GROUPS, GROUP, longest=4))
    for parameter in model.parameters():
        parameter.grad = None
    batch = draw(GROUPS, GROUP, longest=1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu = time.perf_counter(), time.process_time()
    update(batch)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if gradients is not None:
        torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, gradients)
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak, "before_mb": before}))


def compare(folder: Path, ways: list[str]) -> None:
    """Prints how far each way's gradient is from the first way's: the largest of any weight, over the norm of all."""
    import torch

    first = torch.load(folder / "0.pt")
    norm = torch.stack([gradient.norm() for gradient in first.values()]).norm()
    differences = {}
    for place, way in enumerate(ways):
        found = torch.load(folder / f"{place}.pt")
        differences[way] = max(((found[name] - wanted).norm() / norm).item() for name, wanted in first.items())
    print(json.dumps(differences))


def call(arguments: list[str], threads: int) -> dict[str, float]:
    """Returns what this script printed, run with `arguments` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env["OMP_WAIT_POLICY"] = "passive"  # threads that spin collapse where the machine is shared
    env |= {"WANDB_MODE": "disabled", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__)), "--threads", str(threads), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{arguments} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def main() -> None:
    """Runs the ways in turn and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--once", metavar="WAY", help="run one way in this process (used by this script itself)")
    parser.add_argument("--gradients", type=Path, help="where that run leaves its gradients")
    parser.add_argument("--compare", type=Path, help="compare the gradients in a folder (used by this script itself)")
    args = parser.parse_args()
    if args.once:
        run_once(args.once, args.threads, args.gradients)
        return
    if args.compare:
        compare(args.compare, args.ways)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(args.runs):
            for place, way in enumerate(args.ways):
                kept = ["--gradients", str(Path(folder) / f"{place}.pt")] if run == 0 else []
                found[way].append(call(["--once", way, *kept], args.threads))
        differences = call(["--compare", folder, "--ways", *args.ways], args.threads)
    batch = draw(GROUPS, GROUP, longest=1000)
    num_prompts = sum(len(prompt) for prompt in batch.prompts)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{args.threads} thread(s), fp32, {args.runs} runs in turn; {versions}")
    print(
        f"{GROUPS} groups of {GROUP}, {batch.num_trained + num_prompts:,} tokens of which {batch.num_trained:,} trained, "
        f"{batch.num_trained + num_prompts // GROUP:,} with shared prompts\n"
    )
    reference = OURS if OURS in args.ways else args.ways[-1]
    print(f"Ratios are to {reference!r}.\n")
    print("| way | median s (min-max) | ratio | CPU s | peak MB | of it before | ratio | gradient difference |")
    print("|---|---|---|---|---|---|---|---|")
    medians = {way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()}
    for way, median in medians.items():
        times = [run["seconds"] for run in found[way]]
        slower, larger = (median[key] / medians[reference][key] for key in ("seconds", "peak_mb"))
        print(
            f"| {way} | {median['seconds']:.2f} ({min(times):.2f}-{max(times):.2f}) | {slower:.2f} | {median['cpu_s']:.1f} "
            f"| {median['peak_mb']:,.0f} | {median['before_mb']:,.0f} | {larger:.2f} | {differences[way]:.1e} |"
        )


if __name__ == "__main__":
    main()
