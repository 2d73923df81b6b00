"""The whole GRPO step on the tiny model: rollouts, scores, advantages, update, weights back to the engine; ours against TRL.

    python benchmarks/grpo_step.py --threads 1
    python benchmarks/grpo_step.py --threads 2 --runs 5 --steps 10

32 word problems x 8 completions of 40 tokens at most, temperature 1, fp32, no KL, Dr. GRPO's loss on advantages divided by
their group's standard deviation, AdamW at one learning rate. Both take the same problems in the same order under the same chat
template, and score by the same grader; both really learn, so lengths and rewards of the timed steps are printed beside the
times and must be alike. TRL samples by transformers `generate` in its own process. Every run is a process of its own, the ways
in turn; the first steps are not counted. Seconds of TRL's parts are those of its own methods; `update` is what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPTS, GROUP, MAX_TOKENS = 32, 8, 40
LEARNING_RATE, MAX_GRAD_NORM, SEED = 3e-4, 1.0, 0
WARM_UP = 3  # steps that are not counted
PARTS = ("step_s", "cpu_s", "sample_s", "score_s", "update_s", "publish_s")

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, no shared prompts": {"share_prefixes": False},
}
TRL: dict[str, dict[str, Any]] = {
    "TRL, its defaults": {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    "TRL, batch of 8": {"per_device_train_batch_size": 8},
    "TRL, batch of 64": {"per_device_train_batch_size": 64},
    "TRL, whole step": {"per_device_train_batch_size": 256},
}

Step = dict[str, float]  # the seconds of PARTS, `tokens` (mean length) and `reward` (mean)


def problems(steps: int) -> list[Any]:
    """Returns the problems of all steps, the uncounted ones first."""
    from grpo_gsm8k.data.word_problems import generate

    return generate("train", PROMPTS * (WARM_UP + steps), SEED)


def ours(steps: int, options: dict[str, Any]) -> Callable[[], list[Step]]:
    """Returns our steps on the tiny model."""
    from grpo_gsm8k.engines.transformers import TransformersEngine
    from grpo_gsm8k.envs.dataset import DatasetEnv
    from grpo_gsm8k.learners.native import NativeLearner
    from grpo_gsm8k.learners.options import LearnerOptions
    from grpo_gsm8k.models import tiny_path
    from grpo_gsm8k.prompts import render_batch
    from grpo_gsm8k.rewards.registry import make_grader

    engine = TransformersEngine(str(tiny_path()), device="cpu", dtype="float32")
    chosen = LearnerOptions(dtype="float32", max_grad_norm=MAX_GRAD_NORM, entropy=True, **options)
    learner = NativeLearner.from_pretrained(str(tiny_path()), chosen, device="cpu")
    chosen_problems = problems(steps)
    prompts = render_batch(engine.tokenizer, chosen_problems, template="question")

    def decode(ids: Sequence[int]) -> str:
        return str(engine.tokenizer.decode(list(ids), skip_special_tokens=True))

    def run() -> list[Step]:
        with closing(DatasetEnv("tiny", {"train": chosen_problems}, make_grader("gsm8k_strict"))) as env:
            return our_steps(env, engine, learner, chosen_problems, prompts, decode, PROMPTS, GROUP, MAX_TOKENS, LEARNING_RATE)

    return run


def our_steps(
    env: Any,
    engine: Any,
    learner: Any,
    chosen: Sequence[Any],
    prompts: Sequence[Any],
    decode: Callable[[Sequence[int]], str],
    per_step: int,
    group: int,
    max_tokens: int,
    learning_rate: float,
) -> list[Step]:
    """Returns what each step took, made of the loop's own parts: all problems once, in their order, `per_step` a step."""
    from grpo_gsm8k.algorithms.algorithm import with_parts
    from grpo_gsm8k.algorithms.registry import find_algorithm
    from grpo_gsm8k.loops.collect import Collector
    from grpo_gsm8k.loops.curriculum import PassOrder
    from grpo_gsm8k.loops.policy_sync import PolicySync
    from grpo_gsm8k.loops.policy_update import PolicyUpdate, update_policy
    from grpo_gsm8k.loops.rollouts import RolloutLimits, RolloutSampler
    from grpo_gsm8k.runs.weight_folders import WeightFolders, choose_place
    from grpo_gsm8k.types import Sampling

    class InOrder(PassOrder):
        def choose(self, num: int, step: int, attempt: int = 0) -> list[int]:
            return list(range(step * num, (step + 1) * num))

    algorithm = with_parts(find_algorithm("dr_grpo"), scale="group_std")
    plan = PolicyUpdate(
        algorithm=algorithm,
        max_tokens=max_tokens,
        num_updates=1,
        num_minibatches=1,
        correction="none",
        correction_cap=2.0,
        mask_truncated=False,
        stale=False,
        seed=SEED,
    )
    collector = Collector(chosen, prompts, InOrder(chosen, SEED), group, SEED, max_error_rate=0.0)
    sampling = Sampling(temperature=1.0, max_tokens=max_tokens)
    sampler = RolloutSampler(env, engine, sampling, RolloutLimits(1, max_tokens), decode)
    weights_bytes = sum(weight.numel() * weight.element_size() for weight in learner.model.parameters())
    found: list[Step] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(WeightFolders(choose_place(Path(folder), weights_bytes, 1))) as folders,
    ):
        sync = PolicySync(learner, engine, folders)
        for step in range(len(chosen) // per_step):
            began = time.perf_counter()
            cpu = time.process_time()
            rollouts = collector.collect(sampler, per_step, step)
            done = update_policy(plan, rollouts.groups, learner, step, learning_rate, nullcontext())
            publish_s = sync.publish(step + 1)
            found.append(
                {
                    "step_s": time.perf_counter() - began,
                    "cpu_s": time.process_time() - cpu,
                    "sample_s": rollouts.sample_s,
                    "score_s": rollouts.score_s,
                    "update_s": done.advantage_s + done.update_s,
                    "publish_s": publish_s,
                    "tokens": statistics.fmean(rollout.num_sampled for rollout in rollouts.rollouts),
                    "reward": statistics.fmean(rollout.score.value for rollout in rollouts.rollouts),
                }
            )
    return found


def trl(steps: int, options: dict[str, Any]) -> Callable[[], list[Step]]:
    """Returns TRL's steps on the tiny model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grpo_gsm8k.models import tiny_path
    from grpo_gsm8k.rewards.registry import make_grader

    grader = make_grader("gsm8k_strict")
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())

    def judge(rows_ids: list[list[int]], golds: list[str]) -> list[float]:
        ended = [ids[-1] == tokenizer.eos_token_id for ids in rows_ids]
        scores = grader.grade_batch(tokenizer.batch_decode(rows_ids, skip_special_tokens=True), golds)
        return [float(end and score.status == "correct") for end, score in zip(ended, scores, strict=True)]

    rows = [{"prompt": [{"role": "user", "content": problem.question}], "gold": problem.gold} for problem in problems(steps)]
    shared = {"bf16": False, "use_cpu": True, "max_completion_length": MAX_TOKENS, "learning_rate": LEARNING_RATE}
    model = AutoModelForCausalLM.from_pretrained(tiny_path())
    return trl_steps(model, tokenizer, rows, judge, PROMPTS, GROUP, shared | options)


def trl_steps(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    judge: Callable[[list[list[int]], list[str]], list[float]],
    per_step: int,
    group: int,
    options: dict[str, Any],
) -> Callable[[], list[Step]]:
    """Returns what runs TRL over all rows once, in their order; no evaluation, saving, logging or reporting."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    found: list[Step] = []
    current: Step = dict.fromkeys(PARTS, 0.0)

    def reward(completion_ids: list[list[int]], gold: list[str], **_: Any) -> list[float]:
        values = judge(completion_ids, gold)
        current["reward"] = statistics.fmean(values)
        current["tokens"] = statistics.fmean(len(ids) for ids in completion_ids)
        return values

    def timed(method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **kwargs)
            current[part] += time.perf_counter() - began
            return result

        return call

    class Clock(TrainerCallback):  # type: ignore[misc]
        ended = cpu = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ended, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now, cpu = time.perf_counter(), time.process_time()
            current["step_s"], self.ended = now - self.ended, now
            current["cpu_s"], self.cpu = cpu - self.cpu, cpu
            current["update_s"] = current["step_s"] - current["sample_s"] - current["score_s"]
            found.append(dict(current))
            current.update(dict.fromkeys(PARTS, 0.0))

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        gradient_accumulation_steps=per_step * group // options["per_device_train_batch_size"],
        num_generations=group,
        max_steps=len(rows) // per_step,
        temperature=1.0,
        beta=0.0,
        loss_type="dr_grpo",
        scale_rewards="group",
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=MAX_GRAD_NORM,
        shuffle_dataset=False,
        seed=SEED,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        **({"gradient_checkpointing": False, "use_vllm": False} | options),
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer._generate = timed(trainer._generate, "sample_s")
    trainer._calculate_rewards = timed(trainer._calculate_rewards, "score_s")

    def run() -> list[Step]:
        trainer.train()
        return found

    return run


def run_once(way: str, steps: int, threads: int) -> None:
    """Prints one way's median seconds a step, and its peak of resident memory in MB (before: once everything is loaded)."""
    import torch

    torch.set_num_threads(threads)
    run = ours(steps, OURS[way]) if way in OURS else trl(steps, TRL[way])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counted = found[WARM_UP:]
    result = {part: statistics.median(step[part] for step in counted) for part in PARTS}
    result |= {name: statistics.fmean(step[name] for step in counted) for name in ("tokens", "reward")}
    print(json.dumps(result | {"peak_mb": peak, "before_mb": before}))


def measure(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Returns what one run of `way` in a process of its own printed."""
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env["OMP_WAIT_POLICY"] = "passive"  # threads that spin collapse where the machine is shared
    env |= {"WANDB_MODE": "disabled", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__)), "--threads", str(args.threads), "--steps", str(args.steps), "--once", way]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return result


def main() -> None:
    """Runs the ways in turn and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ways", nargs="*", default=[*OURS, *TRL], choices=[*OURS, *TRL])
    parser.add_argument("--once", metavar="WAY", help="run one way in this process (used by this script itself)")
    args = parser.parse_args()
    if args.once:
        run_once(args.once, args.steps, args.threads)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for _ in range(args.runs):
        for way in args.ways:
            found[way].append(measure(way, args))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{args.threads} thread(s), fp32, {args.runs} runs in turn of {args.steps} steps after {WARM_UP}; {versions}")
    print(f"tiny model, {PROMPTS} prompts x {GROUP} completions of {MAX_TOKENS} tokens at most\n")
    print(
        "| way | s a step: median (min-max) | ratio | CPU s | ratio | sampling | scoring | update | weights to engine ", end=""
    )
    print("| peak MB | of it before training | mean tokens | mean reward |\n|" + "---|" * 13)
    first = {part: statistics.median(run[part] for run in found[args.ways[0]]) for part in PARTS}
    for way, runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        times = [run["step_s"] for run in runs]
        parts = " | ".join(f"{median[part]:.3f}" for part in PARTS[2:])
        print(
            f"| {way} | {median['step_s']:.3f} ({min(times):.3f}-{max(times):.3f}) | {median['step_s'] / first['step_s']:.2f} "
            f"| {median['cpu_s']:.3f} | {median['cpu_s'] / first['cpu_s']:.2f} | {parts} | {median['peak_mb']:,.0f} "
            f"| {median['before_mb']:,.0f} | {median['tokens']:.1f} | {median['reward']:.2f} |"
        )


if __name__ == "__main__":
    main()
