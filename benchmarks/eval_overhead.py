"""What the harness costs: the whole evaluation loop against bare `model.generate` over the same batches, in one run.

    python benchmarks/eval_overhead.py [--num-problems 512] [--batch-size 64] [--max-tokens 64] [--runs 5]

`generate` is transformers' own (left-padded batches, greedy) with the completions decoded and nothing else. The loop
samples with the transformers engine, writes every completion to disk as it finishes, grades with two graders, and writes rows,
aggregate and ledger. The engine alone stands between the two. They take turns; medians are printed. Goal: at most 1.10.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from grpo_gsm8k.commands.assembly import open_graders
from grpo_gsm8k.data.word_problems import generate
from grpo_gsm8k.engines.loading import load_model, load_tokenizer
from grpo_gsm8k.engines.transformers import TransformersEngine
from grpo_gsm8k.loops.evaluate import EvalTask, evaluate, plan_batches, plan_requests
from grpo_gsm8k.prompts import render_batch
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.types import Sampling


def bare(model: Any, tokenizer: Any, task: EvalTask) -> int:
    """Samples and decodes with `model.generate`; returns the number of completions."""
    texts = []
    for batch in plan_batches(plan_requests(task, 0), task):
        prompts = [task.prompts[request.problem_index].token_ids for request in batch]
        length = max(map(len, prompts))
        ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=task.sampling.max_tokens)
        texts += tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return len(texts)


def random_model(hidden: int) -> str:
    """Returns the folder of a random Qwen2 with tiny's tokenizer."""
    folder = tempfile.mkdtemp()
    load_tokenizer("tiny").save_pretrained(folder)
    config = load_model("tiny", device="cpu").config
    config.update({"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 6, "num_attention_heads": 8})
    config.update({"num_key_value_heads": 8, "layer_types": None})
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config.to_dict())).save_pretrained(folder)
    return folder


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-problems", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hidden", type=int, help="a random model of this width and 6 layers (512: 25 M) in place of tiny")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    model_id = "tiny" if args.hidden is None else random_model(args.hidden)
    engine = TransformersEngine(model_id, device="cpu", batch_size=args.batch_size)
    model, tokenizer = load_model(model_id, device="cpu"), engine.tokenizer
    problems = generate("val", args.num_problems, 0)
    prompts = render_batch(tokenizer, problems, template="question")
    sampling = Sampling(max_tokens=args.max_tokens)
    seconds: dict[str, list[float]] = {"model.generate": [], "engine.generate": [], "evaluation loop": []}
    with tempfile.TemporaryDirectory() as folder, open_graders(("numeric", "gsm8k_strict")) as graders:
        task = EvalTask(problems, prompts, graders.grade, sampling, 1, 0, args.batch_size, True)

        def loop() -> Any:
            run = RunDirectory.create(Path(folder), "benchmark", [])
            with contextlib.redirect_stderr(io.StringIO()):
                return evaluate(run, task, engine, lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))

        def alone() -> Any:
            for batch in plan_batches(plan_requests(task, 0), task):
                engine.generate([prompts[r.problem_index] for r in batch], sampling, [r.seed for r in batch])

        work: dict[str, Callable[[], Any]] = {
            "model.generate": lambda: bare(model, tokenizer, task),
            "engine.generate": alone,
            "evaluation loop": loop,
        }
        for number in range(args.runs + 1):
            for name, do in work.items():
                began = time.perf_counter()
                do()
                if number > 0:
                    seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    size = f"{engine.describe()['num_parameters']:,} parameters, {args.num_problems} problems in batches of {args.batch_size}"
    print(f"{size}, at most {args.max_tokens} tokens, greedy, 1 thread,")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, medians of {args.runs} alternating runs\n")
    print("| what | s | of model.generate |\n|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {value:.3f} | {value / median['model.generate']:.3f} |")
    share = median["evaluation loop"] - median["engine.generate"]
    print(f"\nThe harness around the engine takes {share:.3f} s, {share / median['model.generate']:.1%} of model.generate.")


if __name__ == "__main__":
    main()
