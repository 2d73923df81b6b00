"""The parts of an evaluation, built from its config: eval set, prompts, graders, engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.config import DataPrepConfig, EvalConfig
from grpo_gsm8k.data.prep import PrepRequest, prepare
from grpo_gsm8k.data.prepared import data_record, file_record, load_split
from grpo_gsm8k.data.rows import load_problems
from grpo_gsm8k.data.sources import Published, find_dataset
from grpo_gsm8k.engines.model_files import model_record
from grpo_gsm8k.engines.protocol import Engine
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.loops.grading import open_graders as open_graders
from grpo_gsm8k.prompts import Template, render_batch
from grpo_gsm8k.types import Problem, Prompt

log = logging.getLogger("grpo_gsm8k")


@dataclass(frozen=True)
class EvalSet:
    """The problems to evaluate, the training problems that shots are drawn from, and the record of their files."""

    problems: list[Problem]
    shots: list[Problem]
    files: dict[str, Any]


def data_folder(config: EvalConfig | DataPrepConfig) -> Path:
    """Returns where the prepared data of a config lie."""
    return Path(config.out_dir) if config.out_dir is not None else Path(config.artifacts_dir) / config.dataset


def prep_request(config: EvalConfig | DataPrepConfig) -> PrepRequest:
    """Returns the data preparation that a config asks for."""
    folder = data_folder(config)
    published = isinstance(find_dataset(config.dataset), Published)
    snapshot = Path(config.snapshot_dir) if config.snapshot_dir is not None else folder.with_name(folder.name + "_hf_snapshot")
    return PrepRequest(
        dataset=config.dataset,
        out_dir=folder,
        eval_n=config.eval_n,
        seed=config.split_seed if isinstance(config, EvalConfig) else config.seed,
        revision=config.revision,
        source=None if config.source is None else Path(config.source),
        cache_dir=Path(config.cache_dir) if published and config.cache_dir is not None else None,
        snapshot_dir=snapshot if published else None,
        mixture=None if config.mixture is None else Path(config.mixture),
    )


def load_eval_set(config: EvalConfig, prepare_data: bool, template: Template) -> EvalSet:
    """Returns the eval set of a config; data are prepared where a split, or a file of the prepared folder, is evaluated.

    Raises: DataError, HubError; ConfigError when there is nothing to evaluate.
    """
    folder = data_folder(config)
    path = None if config.eval_path is None else Path(config.eval_path)
    from_folder = path is None or path.absolute().parent == folder.absolute()
    files: list[dict[str, Any]] = []
    if prepare_data and (from_folder or config.k_shot > 0):
        prepared = prepare(prep_request(config))
        log.info("data %s in %s: %s", "prepared" if prepared.changed else "verified", folder, prepared.rows)
    elif from_folder and path is None:
        raise DataError("nothing to evaluate: give eval_path, or use `eval`, which prepares the data")
    if path is None:
        problems = load_split(folder, config.split)
        files += data_record(folder, (config.split,))
    else:
        problems = load_problems(path)
        files.append(file_record(path))
    shots: list[Problem] = []
    if config.k_shot > 0:
        shots = load_split(folder, "train")
        files += data_record(folder, ("train",))
    if config.limit is not None:
        problems = problems[: config.limit]
    if config.engine != "openai":
        files += model_record(config.model_id, config.model_revision, config.adapter)
    files.append({"role": "template", "source": config.template, "sha256": template.sha256, "rows": None, "commit": None})
    return EvalSet(problems, shots, {"files": files, "num_problems": len(problems)})


def open_tokenizer(config: EvalConfig) -> Any:
    """Returns the tokenizer of a config; None where a chat server renders and decodes."""
    from grpo_gsm8k.engines.loading import load_tokenizer

    if config.engine == "openai" and config.api == "chat":
        return None
    if config.engine == "openai" and config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    return load_tokenizer(config.model_id, config.model_revision)


def render(config: EvalConfig, eval_set: EvalSet, tokenizer: Any, window: int | None) -> list[Prompt]:
    """Returns the prompt of every problem."""
    return render_batch(
        tokenizer,
        eval_set.problems,
        template=config.template,
        k_shot=config.k_shot,
        shots=eval_set.shots,
        seed=config.seed,
        window=window,
        max_tokens=config.max_new_tokens,
    )


@contextmanager
def open_engine(config: EvalConfig) -> Iterator[Engine]:
    """Opens the engine of a config, and closes it."""
    from grpo_gsm8k.engines.select import make_engine

    engine, _ = make_engine(
        config.engine,
        model_id=config.model_id,
        revision=config.model_revision,
        device=config.device,
        dtype=config.dtype,
        adapter=config.adapter,
        batch_size=config.batch_size if config.engine == "transformers" else None,
        tp_size=config.tp_size,
        gpu_mem_util=config.gpu_mem_util,
        seed=config.seed,
        base_url=config.base_url,
        api=config.api,  # type: ignore[arg-type]
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
    )
    try:
        yield engine
    finally:
        engine.close()
