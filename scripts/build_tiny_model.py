"""Builds the tiny model: tokenizer, weights trained from scratch, model card. Reads top to bottom.

    python scripts/build_tiny_model.py --out grpo_gsm8k/models/tiny

The model is right on about a third of held-out word problems, on purpose: three quarters of its training examples stop after
the first step, so it has learnt all that it needs and yet leaves reinforcement learning something to find. The same machine and
versions give the same model.safetensors, byte for byte (one thread, deterministic algorithms, fixed seed).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils.logging import disable_progress_bar

from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.data import word_problems
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import AdamWOptions, LearnerOptions
from grpo_gsm8k.learners.schedules import learning_rate
from grpo_gsm8k.prompts import render_batch
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.types import Problem

MAX_POSITIONS = 4096  # GSM8K questions are up to 1,000 bytes; few-shot prompts several times that
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CARD_TEMPLATE = Path(__file__).parent / "tiny_model_card.md"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """All that the build depends on, apart from versions and machine."""

    seed: int = 0
    vocab_size: int = 448
    num_examples: int = 20_000
    lazy_fraction: float = 0.75
    num_steps: int = 700
    batch_size: int = 64
    lr: float = 5e-3
    num_warmup_steps: int = 50
    final_lr_fraction: float = 0.1
    num_eval: int = 1000


def build_tokenizer(problems: Sequence[Problem], vocab_size: int) -> Qwen2Tokenizer:
    """Returns Qwen2's tokenizer (bytes, digits one by one) with a vocabulary of our own: 256 bytes, then frequent pieces."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"user\n{p.question}\nassistant\n{p.answer}\nsystem\n" for p in problems), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    )


def build_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """Returns the untrained model. head_dim is 32, the least that vLLM's attention takes."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.05,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def prompt_ids(tokenizer: Qwen2Tokenizer, problems: Sequence[Problem]) -> list[list[int]]:
    """Returns the prompts' ids: one user message that is the question, then the assistant's turn."""
    return [list(prompt.token_ids) for prompt in render_batch(tokenizer, problems, template="question")]


def train(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, problems: Sequence[Problem], recipe: Recipe) -> NativeLearner:
    """Trains the model in place, from scratch, on mostly lazy answers; returns its learner."""
    rng = random.Random(recipe.seed)
    examples = []
    for prompt, problem in zip(prompt_ids(tokenizer, problems), problems, strict=True):
        lazy = rng.random() < recipe.lazy_fraction
        answer = word_problems.lazy_answer(problem) if lazy else problem.answer
        response = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        examples.append(TokenSequence.of_response(problem.id, prompt, response))
    learner = NativeLearner(model, LearnerOptions(adamw=AdamWOptions(betas=(0.9, 0.95), weight_decay=0.0)))
    floor = recipe.lr * recipe.final_lr_fraction
    order: list[int] = []
    for step in range(recipe.num_steps):
        if len(order) < recipe.batch_size:
            order = rng.sample(range(len(examples)), len(examples))
        batch = [examples[order.pop()] for _ in range(recipe.batch_size)]
        metrics = learner.forward_backward(batch, SftLoss(num_trained=sum(sequence.num_trained for sequence in batch)))
        learner.optim_step(
            learning_rate(step, total=recipe.num_steps, warmup=recipe.num_warmup_steps, peak=recipe.lr, floor=floor)
        )
        if step % 100 == 0 or step == recipe.num_steps - 1:
            print(f"step {step:4d}  loss {metrics['loss']:.4f}", flush=True)
    return learner


@torch.inference_mode()
def accuracy(folder: Path, problems: Sequence[Problem], sampled: bool = False, batch_size: int = 250) -> dict[str, float]:
    """Returns how many problems the saved model gets right (greedy, or sampled at temperature 1) and works in full."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    torch.manual_seed(0)
    num_correct = num_full_work = 0
    for start in range(0, len(problems), batch_size):
        chunk = problems[start : start + batch_size]
        prompts = tokenizer.pad({"input_ids": prompt_ids(tokenizer, chunk)}, return_tensors="pt")
        output = model.generate(**prompts, **how, max_new_tokens=48)
        texts = tokenizer.decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for problem, text in zip(chunk, texts, strict=True):
            final = re.search(r"\n#### (\d+)$", text)
            num_correct += final is not None and final[1] == problem.gold
            num_full_work += text.count("=") == problem.meta["num_steps"]
    num = len(problems)
    return {"num": num, "correct": num_correct, "accuracy": num_correct / num, "full_work": num_full_work / num}


def facts(folder: Path, recipe: Recipe, num_parameters: int, num_tokens: int) -> dict[str, Any]:
    """Returns what the model card states in JSON: a rebuild compares itself with it."""
    val, test = (word_problems.generate(split, recipe.num_eval, recipe.seed) for split in ("val", "test"))
    return {
        "recipe": asdict(recipe),
        "num_parameters": num_parameters,
        "num_tokens": num_tokens,
        "accuracy": {
            "val_greedy": accuracy(folder, val),
            "test_greedy": accuracy(folder, test),
            "test_sampled": accuracy(folder, test, sampled=True),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "machine": {"cpu": cpu_name(), "instructions": torch.backends.cpu.get_cpu_capability(), "num_threads": 1},
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "tokenizer.json")
        },
    }


def cpu_name() -> str:
    """Returns the processor's name: another processor may round differently, and so give another hash."""
    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def build(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes the whole model folder; returns the facts on its card."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()
    problems = word_problems.generate("train", recipe.num_examples, recipe.seed)
    tokenizer = build_tokenizer(problems, recipe.vocab_size)
    model = build_model(tokenizer, recipe.seed)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters:,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, problems, recipe).publish_weights(folder)
    tokenizer.save_pretrained(folder)
    found = facts(folder, recipe, num_parameters, len(tokenizer))
    card = Template(CARD_TEMPLATE.read_text())
    (folder / "README.md").write_text(card.substitute(facts=json.dumps(found, indent=2), **card_figures(found)))
    return found


def card_figures(found: dict[str, Any]) -> dict[str, str]:
    """Returns the figures that the card's prose quotes."""
    figures = {name: f"{a['accuracy']:.3f} ({a['correct']}/{a['num']})" for name, a in found["accuracy"].items()}
    return figures | {"parameters": f"{found['num_parameters']:,}", "tokens": str(found["num_tokens"])}


def main() -> None:
    """Builds beside the target and moves the files in only when all are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    out: Path = options.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        found = build(Path(temporary), Recipe(**options))
        for file in Path(temporary).iterdir():
            file.chmod(0o644)
            file.replace(out / file.name)
    for name, figure in card_figures(found).items():
        print(f"{name:13s} {figure}")
    print(f"{found['sha256']['model.safetensors']}  {out / 'model.safetensors'}  (built in {time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
