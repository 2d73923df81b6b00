"""The parts of a training run, built from its config: examples, eval set, learner, evaluator, record."""

from __future__ import annotations

import json
import logging
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from grpo_gsm8k.algorithms.data_order import num_steps
from grpo_gsm8k.commands.eval import headline_metrics
from grpo_gsm8k.commands.start import Started
from grpo_gsm8k.commands.unread import warn_unread
from grpo_gsm8k.config import LearnerConfig, SftConfig, TrainEvalConfig
from grpo_gsm8k.data.prepared import file_record
from grpo_gsm8k.data.rendered_eval import load_rendered_eval_set, rendered_meta
from grpo_gsm8k.errors import ConfigError, ModelError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import AdamWOptions, LearnerOptions, LoraOptions
from grpo_gsm8k.learners.rng import restore_rng, save_rng
from grpo_gsm8k.learners.schedules import learning_rate
from grpo_gsm8k.loops.eval_client import EvalClient
from grpo_gsm8k.loops.eval_spec import EnvEvalSpec, EvalWorkerSpec, visible_device
from grpo_gsm8k.loops.training import Schedule, TrainingRecord
from grpo_gsm8k.runs.checkpoints import Checkpoints, find_checkpoint
from grpo_gsm8k.runs.metrics import MetricsWriter, open_trackers
from grpo_gsm8k.runs.storage import digest
from grpo_gsm8k.training_data.jsonl_examples import Limits
from grpo_gsm8k.training_data.overlap import check_leaks, sequence_prompts, trained_texts
from grpo_gsm8k.training_data.reading import TrainingData, read_training_data
from grpo_gsm8k.types import Prompt, Sampling

log = logging.getLogger("grpo_gsm8k")

ITEM_BYTES = {"float32": 4, "bfloat16": 2}  # by learner_dtype, which weights are published in


@dataclass(frozen=True)
class TrainEvalSet:
    """The eval set of a training run: the prompts that are used, the strings that end a completion, its file's record.

    `questions` are (problem id, text).
    """

    path: Path
    prompts: list[Prompt]
    stop: tuple[str, ...]
    record: dict[str, Any]
    questions: list[tuple[str, str]]

    @property
    def num_problems(self) -> int:
        """How many problems are evaluated."""
        return len(self.prompts)


def read_examples(config: SftConfig, tokenizer: Any) -> TrainingData:
    """Returns the training data of a config. Raises: DataError."""
    return read_training_data(Path(str(config.data_path)), tokenizer, Limits(config.max_total_tokens, config.overlong))


def read_eval_set(config: TrainEvalConfig, tokenizer: Any, path: Path | None = None) -> TrainEvalSet:
    """Returns the eval set of a config (or of `path`), checked line by line. Raises: DataError."""
    path = Path(str(config.eval_set_path)) if path is None else path
    items = load_rendered_eval_set(path, tokenizer)[: config.eval_examples]
    stop = tuple((rendered_meta(path) or {}).get("stop", ()))
    record = {**file_record(path), "role": "eval set"}
    questions = [(problem.id, problem.question) for problem, _ in items]
    return TrainEvalSet(path, [prompt for _, prompt in items], stop, record, questions)


def check_overlap(config: SftConfig, data: TrainingData, eval_set: TrainEvalSet, tokenizer: Any) -> dict[str, Any]:
    """Returns the record of the leak gate. Raises: ProofError for training examples that are eval problems, unless allowed."""
    training = sequence_prompts(data.sequences, tokenizer)
    trained = trained_texts(data.sequences, tokenizer)
    return check_leaks(training, eval_set.questions, eval_set.prompts, trained, is_allowed=config.allow_overlap)


@dataclass(frozen=True)
class RatedSchedule(Schedule):
    """When to evaluate and save, and the learning rate of a step."""

    learning_rate: Callable[[int], float]


def build_schedule(config: SftConfig, num_examples: int) -> RatedSchedule:
    """Returns the schedule of a config. Raises: ConfigError when the warm-up is longer than the training."""
    steps = config.max_steps or num_steps(num_examples, config.batch_size, config.num_epochs)
    return RatedSchedule(steps, config.eval_every, config.save_every, rate_of(config, steps))


def rate_of(config: LearnerConfig, steps: int) -> Callable[[int], float]:
    """Returns the learning rate by step. Raises: ConfigError when the warm-up is longer than the training."""
    if config.warmup_steps > steps:
        raise ConfigError(f"warmup_steps is {config.warmup_steps}, and there are {steps} steps; allowed is 0 to {steps}")
    floor = config.lr * config.lr_floor
    return partial(learning_rate, total=steps, warmup=config.warmup_steps, kind=config.lr_schedule, peak=config.lr, floor=floor)


def open_learner(config: Any, **also: Any) -> NativeLearner:
    """Returns the learner of a training config, its weights loaded; `also` are further learner options."""
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
        **also,
    )
    return NativeLearner.from_pretrained(config.model_id, options, revision=config.model_revision, device=config.learner_device)


def open_evaluator(
    start: Started[Any],
    eval_set_path: Path,
    stop: tuple[str, ...],
    graders: tuple[str, ...],
    env: EnvEvalSpec | None = None,
) -> EvalClient:
    """Starts the evaluation worker; it loads its engine while the learner loads its weights.

    `stop` strings end a completion. `env` is given where the eval set is of an environment with turns, which scores it.
    """
    config = start.resolved.config
    engine, device = choose_evaluator(config)
    arguments: dict[str, Any] = {"model_id": config.model_id, "revision": config.model_revision}
    if engine == "vllm":
        arguments |= {"gpu_mem_util": config.gpu_mem_util, "seed": config.seed}
    else:
        warn_unread(start.resolved, iter([("gpu_mem_util", f"evaluator's engine {engine}")]))
        arguments |= {"device": "cpu" if device == "cpu" else "cuda:0"}
    spec = EvalWorkerSpec(
        run_path=str(start.run.path),
        engine=engine,
        engine_arguments=arguments,
        eval_set_path=str(eval_set_path),
        eval_examples=config.eval_examples,
        sampling=Sampling(config.eval_temperature, max_tokens=config.eval_max_new_tokens, stop=stop),
        num_samples=config.eval_num_samples,
        seed=config.seed,
        num_threads=1 if device == "cpu" else start.num_threads,
        determinism=start.mode,
        visible_devices=visible_device(device, os.environ),
        graders=graders if env is None else (),
        env=env,
    )
    return EvalClient.start(
        spec,
        start.run,
        weights_bytes=weights_bytes_of(config.model_id, config.learner_dtype),
        max_pending=config.eval_queue,
        when_full=config.eval_policy,
        hang_timeout_s=config.eval_timeout_s,
    )


def choose_evaluator(config: TrainEvalConfig) -> tuple[str, str]:
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


def weights_bytes_of(model_id: str, dtype: str) -> int:
    """Returns the size of one published model: its tensors in the learner's dtype; 8 GiB where it is not on this disk yet.

    Raises: ModelError for a file that is no safetensors file.
    """
    from grpo_gsm8k.engines.loading import resolve_model_id

    folder = Path(resolve_model_id(model_id))
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(published_bytes(file, ITEM_BYTES[dtype]) for file in files) or 8 * 2**30


def published_bytes(file: Path, item_bytes: int) -> int:
    """Returns what the tensors of a safetensors file take when its floats have so many bytes; other tensors stay as they are.

    Source: the format's header, a length (8 bytes, little-endian) and JSON. Raises: ModelError.
    """
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return sum(
            math.prod(tensor["shape"]) * item_bytes
            if "F" in tensor["dtype"]
            else tensor["data_offsets"][1] - tensor["data_offsets"][0]
            for tensor in tensors
        )
    except (OSError, ValueError, MemoryError, OverflowError, AttributeError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({type(error).__name__}); fetch the model again") from None


class RunState(Protocol):
    """What else than the learner belongs into a checkpoint of a loop."""

    def save(self, path: Path) -> None:
        """Writes it into a checkpoint's folder."""
        ...

    def restore(self, path: Path) -> None:
        """Takes it up from a checkpoint's folder."""
        ...


def open_record(
    start: Started[Any],
    learner: NativeLearner,
    evaluator: EvalClient,
    schedule: Schedule,
    tokenizer: Any,
    state: RunState | None = None,
) -> TrainingRecord:
    """Returns the record of a training run, taken up at its checkpoint where the run is resumed."""
    config = start.resolved.config
    weights_bytes = sum(p.numel() * p.element_size() for p in learner.model.parameters())

    def save_extras(path: Path) -> None:
        tokenizer.save_pretrained(path)
        save_rng(path)
        if state is not None:
            state.save(path)

    values = start.resolved.record()["values"]
    data = (start.run.path / "data.json").read_bytes()
    record = TrainingRecord(
        start.run,
        learner,
        evaluator,
        Checkpoints(start.run, config.keep_last),
        MetricsWriter(start.run, open_trackers(start.run, config, name=config.run_name, config=values)),
        schedule,
        weights_bytes=weights_bytes,
        save_extras=save_extras,
        identity={"config_sha256": digest(values), "data_sha256": digest(data)},
        summarise=headline_metrics,
    )
    if start.resumed:
        checkpoint = find_checkpoint(start.run.path, start.resume_step)
        if checkpoint is not None:
            restore_rng(checkpoint.path)
            if state is not None:
                state.restore(checkpoint.path)
        record.restore(checkpoint)
    return record
