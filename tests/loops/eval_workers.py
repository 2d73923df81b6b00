"""What the tests of the evaluation worker share: a rendered eval set, perturbed weights, a plain evaluation, processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from grpo_gsm8k.data import word_problems
from grpo_gsm8k.engines.select import make_engine
from grpo_gsm8k.loops.eval_spec import EvalWorkerSpec
from grpo_gsm8k.loops.eval_work import load_eval_set
from grpo_gsm8k.loops.evaluate import EvalTask, evaluate
from grpo_gsm8k.loops.grading import open_graders
from grpo_gsm8k.models import tiny_path
from grpo_gsm8k.prompts import render_batch
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.types import Sampling

WEIGHTS_BYTES = 1 << 20


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_path())


def write_eval_set(path: Path, count: int = 12) -> Path:
    problems = word_problems.generate("test", count, 0)
    prompts = render_batch(tokenizer(), problems, template="question")
    rows = [
        {"prompt": prompt.text, "gold": problem.gold, "gold_num": float(problem.gold)}
        for problem, prompt in zip(problems, prompts, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_spec(run: RunDirectory, eval_set: Path, **changes: Any) -> EvalWorkerSpec:
    values: dict[str, Any] = {
        "run_path": str(run.path),
        "engine": "transformers",
        "engine_arguments": {"model_id": "tiny", "device": "cpu"},
        "eval_set_path": str(eval_set),
        "graders": ("numeric", "gsm8k_strict"),
        "sampling": Sampling(temperature=0.8, max_tokens=40),
        "num_samples": 2,
        "seed": 7,
        "batch_size": 8,
    }
    return EvalWorkerSpec(**{**values, **changes})


def publish(folder: Path, seed: int) -> Path:
    """Writes the tiny model's weights, perturbed as `seed` says (0: as they are), as a learner publishes them."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_path())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters() if seed else ():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def evaluate_plainly(spec: EvalWorkerSpec, weights: Path, run: RunDirectory, step: int) -> dict[str, Any]:
    """Evaluates in this process, as the eval command does."""
    problems, prompts = load_eval_set(spec, tokenizer())
    engine, _ = make_engine(spec.engine, **spec.engine_arguments)
    try:
        engine.load_weights(weights, step)
        with open_graders(spec.graders) as graders:
            task = EvalTask(
                problems, prompts, graders.grade, spec.sampling, spec.num_samples, spec.seed, spec.batch_size or 8, True
            )
            return evaluate(
                run, task, engine, lambda ids: str(tokenizer().decode(list(ids), skip_special_tokens=True)), step=step
            )
    finally:
        engine.close()


def wait_until(holds: Callable[[], bool], timeout_s: float = 20.0) -> float:
    """Waits until something holds, and returns how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, "it did not come true in time"
        time.sleep(0.02)
    return time.monotonic() - began


def is_running(pid: int) -> bool:
    """A zombie that nobody has waited for yet is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """The processes below `pid`, of every generation."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: list[int] = []
    layer = {pid}
    while layer := {child for child, parent in parents.items() if parent in layer}:
        found += layer
    return found


def ram_folders(pid: int) -> list[Path]:
    """The folders of published weights in RAM that belong to the process `pid`."""
    return list(Path("/dev/shm").glob(f"grpo_gsm8k-{pid}-*"))
