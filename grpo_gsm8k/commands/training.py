"""The parts of a training run, built from its config: examples, eval set, learner, evaluator, record."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo_gsm8k.algorithms.data_order import num_steps
from grpo_gsm8k.commands.eval import headline_metrics
from grpo_gsm8k.commands.start import Started
from grpo_gsm8k.config import SftConfig
from grpo_gsm8k.data.prepared import file_record
from grpo_gsm8k.data.rendered_eval import load_rendered_eval_set, rendered_meta
from grpo_gsm8k.errors import ConfigError, ProofError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import AdamWOptions, LearnerOptions, LoraOptions
from grpo_gsm8k.learners.rng import restore_rng, save_rng
from grpo_gsm8k.learners.schedules import learning_rate
from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.loops.eval_spec import EvalWorkerSpec, visible_device
from grpo_gsm8k.loops.training import Schedule, TrainingRecord
from grpo_gsm8k.runs.checkpoints import Checkpoints, find_checkpoint
from grpo_gsm8k.runs.metrics import MetricsWriter, WandbTracker
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.training_data.jsonl_examples import Limits
from grpo_gsm8k.training_data.overlap import overlapping
from grpo_gsm8k.training_data.reading import TrainingData, read_training_data
from grpo_gsm8k.types import Prompt, Sampling

log = logging.getLogger("grpo_gsm8k")


@dataclass(frozen=True)
class TrainEvalSet:
    """The eval set of a training run: the prompts that are used, the strings that end a completion, its file's record."""

    prompts: list[Prompt]
    stop: tuple[str, ...]
    record: dict[str, Any]

    @property
    def num_problems(self) -> int:
        """How many problems are evaluated."""
        return len(self.prompts)


def read_examples(config: SftConfig, tokenizer: Any) -> TrainingData:
    """Returns the training data of a config. Raises: DataError."""
    return read_training_data(Path(str(config.data_path)), tokenizer, Limits(config.max_total_tokens, config.overlong))


def read_eval_set(config: SftConfig, tokenizer: Any) -> TrainEvalSet:
    """Returns the eval set of a config, checked line by line. Raises: DataError."""
    path = Path(str(config.eval_set_path))
    prompts = [prompt for _, prompt in load_rendered_eval_set(path, tokenizer)][: config.eval_examples]
    stop = tuple((rendered_meta(path) or {}).get("stop", ()))
    return TrainEvalSet(prompts, stop, {**file_record(path), "role": "eval set"})


def check_overlap(config: SftConfig, data: TrainingData, eval_set: TrainEvalSet) -> dict[str, Any]:
    """Returns the record of training examples that are eval problems. Raises: ProofError when there are, unless allowed."""
    found = overlapping(data.sequences, eval_set.prompts)
    examples = ", ".join(f"{ours} is {theirs}" for ours, theirs in found[:3])
    if found and not config.allow_overlap:
        raise ProofError(
            f"{len(found)} training examples are problems of the eval set ({examples}{' …' if len(found) > 3 else ''}); "
            "take them out, or use --allow-overlap true to train on them, on record"
        )
    if found:
        log.warning("%d training examples are problems of the eval set (%s), as allowed", len(found), examples)
    return {"num_overlapping": len(found), "pairs": found}


@dataclass(frozen=True)
class SftSchedule(Schedule):
    """When to evaluate and save, and the learning rate of a step."""

    learning_rate: Callable[[int], float]


def build_schedule(config: SftConfig, num_examples: int) -> SftSchedule:
    """Returns the schedule of a config. Raises: ConfigError when the warm-up is longer than the training."""
    steps = config.max_steps or num_steps(num_examples, config.batch_size, config.num_epochs)
    if config.warmup_steps > steps:
        raise ConfigError(f"warmup_steps is {config.warmup_steps}, and there are {steps} steps; allowed is 0 to {steps}")
    floor = config.lr * config.lr_floor
    rate = partial(learning_rate, total=steps, warmup=config.warmup_steps, kind=config.lr_schedule, peak=config.lr, floor=floor)
    return SftSchedule(steps, config.eval_every, config.save_every, rate)


def open_learner(config: SftConfig) -> NativeLearner:
    """Returns the learner of a config, its weights loaded."""
    lora = None
    if config.lora_rank is not None:
        lora = LoraOptions(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target)
    options = LearnerOptions(
        dtype=config.learner_dtype,
        adamw=AdamWOptions((config.adam_beta1, config.adam_beta2), config.adam_eps, config.weight_decay),
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        tokens_per_microbatch=config.tokens_per_microbatch,
        lora=lora,
    )
    return NativeLearner.from_pretrained(config.model_id, options, revision=config.model_revision, device=config.learner_device)


def open_evaluator(start: Started[SftConfig], eval_set: TrainEvalSet, tokenizer: Any) -> EvalClient:
    """Starts the evaluation worker; it loads its engine while the learner loads its weights."""
    config = start.resolved.config
    engine, device = choose_evaluator(config)
    arguments: dict[str, Any] = {"model_id": config.model_id, "revision": config.model_revision}
    if engine == "vllm":
        arguments |= {"gpu_mem_util": config.gpu_mem_util, "seed": config.seed}
    else:
        arguments |= {"device": "cpu" if device == "cpu" else "cuda:0"}
    spec = EvalWorkerSpec(
        run_path=str(start.run.path),
        engine=engine,
        engine_arguments=arguments,
        eval_set_path=str(config.eval_set_path),
        eval_examples=config.eval_examples,
        graders=config.graders,
        sampling=Sampling(config.eval_temperature, max_tokens=config.eval_max_new_tokens, stop=eval_set.stop),
        num_samples=config.eval_num_samples,
        seed=config.seed,
        num_threads=1 if device == "cpu" else start.num_threads,
        determinism=start.mode,
        visible_devices=visible_device(device, os.environ),
    )
    return EvalClient.start(
        spec,
        start.run,
        weights_bytes=_weights_bytes(config),
        max_pending=config.eval_queue,
        when_full=config.eval_policy,  # type: ignore[arg-type]
        hang_timeout_s=config.eval_timeout_s,
    )


def choose_evaluator(config: SftConfig) -> tuple[str, str]:
    """Returns the evaluator's engine and device, and says which and why."""
    import torch

    from grpo_gsm8k.engines.loading import resolve_device
    from grpo_gsm8k.engines.select import choose_engine, vllm_is_importable

    count = torch.cuda.device_count()
    device = config.vllm_device
    if device == "auto":
        device = "cpu" if count == 0 else f"cuda:{min(1, count - 1)}"
    resolve_device(device)
    name, why = choose_engine(config.eval_engine, has_cuda=device != "cpu", has_vllm=vllm_is_importable())
    log.info("evaluator: engine %s (%s) on %s; torch sees %d CUDA device(s)", name, why.removeprefix("auto: "), device, count)
    return name, device


def _weights_bytes(config: SftConfig) -> int:
    """The size of one published model: what its files hold now (a hub model's are in the cache once the tokenizer is)."""
    from grpo_gsm8k.engines.loading import resolve_model_id

    folder = Path(resolve_model_id(config.model_id))
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(file.stat().st_size for file in files) or 8 * 2**30


def open_record(
    start: Started[SftConfig], learner: NativeLearner, evaluator: EvalClient, schedule: Schedule, tokenizer: Any
) -> TrainingRecord:
    """Returns the record of a training run, taken up at its checkpoint where the run is resumed."""
    config = start.resolved.config
    weights_bytes = sum(p.numel() * p.element_size() for p in learner.model.parameters())

    def save_extras(path: Path) -> None:
        tokenizer.save_pretrained(path)
        save_rng(path)

    tracker = None
    if config.wandb != "disabled":
        values = start.resolved.record()["values"]
        tracker = WandbTracker(start.run, mode=config.wandb, project=config.wandb_project, name=config.run_name, config=values)
    data = (start.run.path / "data.json").read_bytes()
    record = TrainingRecord(
        start.run,
        learner,
        evaluator,
        Checkpoints(start.run, config.keep_last),
        MetricsWriter(start.run, tracker),
        schedule,
        weights_bytes=weights_bytes,
        save_extras=save_extras,
        identity={"config_sha256": digest(start.resolved.record()["values"]), "data_sha256": digest(data)},
        summarise=headline_metrics,
    )
    if start.resumed:
        checkpoint = find_checkpoint(start.run.path, start.resume_step)
        if checkpoint is not None:
            restore_rng(checkpoint.path)
        record.restore(checkpoint)
    return record
