"""Problems, prompts and eval set of a run that learns from rewards, from its config."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.commands.start import Started, write_config
from grpo_gsm8k.commands.training import TrainEvalSet, read_eval_set
from grpo_gsm8k.config_rl import MULTI_TURN, RewardTrainingConfig
from grpo_gsm8k.data.jsonl import encode_jsonl
from grpo_gsm8k.data.prep import PrepRequest, prepare
from grpo_gsm8k.data.prepared import data_record, file_record, load_split
from grpo_gsm8k.data.rendered_eval import write_rendered_eval_set
from grpo_gsm8k.data.rows import load_problems, to_row
from grpo_gsm8k.envs.protocol import Environment
from grpo_gsm8k.envs.registry import make_env
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.prompts import DEFAULT_TEMPLATE, Template, render_batch
from grpo_gsm8k.training_data.overlap import check_leaks
from grpo_gsm8k.types import Problem, Prompt

log = logging.getLogger("grpo_gsm8k")

EVAL_SET = "eval_set.jsonl"


@dataclass(frozen=True)
class Material:
    """What a run samples and is evaluated on; `eval_set` is None where the environment has turns."""

    env: Environment
    train: list[Problem]
    prompts: list[Prompt]
    eval_path: Path
    eval_set: TrainEvalSet | None
    num_eval: int
    graders: tuple[str, ...]
    files: list[dict[str, Any]]
    overlap: dict[str, Any]


def choose(start: Started[Any]) -> RewardTrainingConfig:
    """Returns the config with every `auto` replaced by what was chosen, on record in the run."""
    resolved: Resolved[RewardTrainingConfig] = start.resolved
    tiny = resolved.config.model_id == "tiny"
    if resolved.config.env == "auto":
        resolved = resolved.filled("env", "tiny" if tiny else "gsm8k", f"the model is {resolved.config.model_id}")
    if resolved.config.template == "auto":
        why = "what the tiny model was trained on" if tiny else "problems are solved by chain of thought"
        resolved = resolved.filled("template", "question" if tiny else DEFAULT_TEMPLATE, why)
    if resolved.config.env == "math" and resolved.sources["graders"] == "default":
        resolved = resolved.filled("graders", ("math", "numeric"), "the environment is math")
    start.resolved = resolved
    write_config(start.run, resolved)
    for key, source in resolved.sources.items():
        if source.startswith("auto: "):
            log.info("%s = %s (%s)", key, getattr(resolved.config, key), source.removeprefix("auto: "))
    return resolved.config


def open_env(
    config: RewardTrainingConfig, split_names: tuple[str, ...] = ("train", "val")
) -> tuple[Environment, list[dict[str, Any]]]:
    """Returns the environment of a config, with these splits of a data set, and the record of its data files.

    Raises: DataError, HubError, ConfigError.
    """
    splits: dict[str, list[Problem]] | None = None
    files: list[dict[str, Any]] = []
    if config.env == "jsonl":
        if config.env_path is None:
            raise ConfigError("env jsonl needs env_path, a JSONL of problems (question and answer a line)")
        path = Path(str(config.env_path))
        splits = {"train": load_problems(path)}
        files = [{**file_record(path), "role": "training problems"}]
    elif config.env not in MULTI_TURN:
        folder = Path(config.out_dir) if config.out_dir is not None else Path(config.artifacts_dir) / config.env
        published = config.env in ("gsm8k", "math")
        snapshot = Path(config.snapshot_dir) if config.snapshot_dir else folder.with_name(folder.name + "_hf_snapshot")
        prepared = prepare(
            PrepRequest(
                dataset=config.env,
                out_dir=folder,
                eval_n=config.eval_n,
                seed=config.split_seed,
                revision=config.revision,
                source=None if config.source is None else Path(config.source),
                cache_dir=Path(config.cache_dir) if published and config.cache_dir is not None else None,
                snapshot_dir=snapshot if published else None,
                mixture=None if config.mixture is None else Path(config.mixture),
            )
        )
        log.info("data %s in %s: %s", "prepared" if prepared.changed else "verified", folder, prepared.rows)
        splits = {split: load_split(folder, split) for split in split_names}
        files = data_record(folder, split_names)
    grader = None if config.reward == "auto" else config.reward
    env = make_env(
        config.env,
        splits=splits,
        grader=grader,
        seed=config.split_seed,
        max_turns=config.max_turns,
        timeout_s=config.env_timeout_s,
    )
    return env, files


def read_material(start: Started[Any], config: RewardTrainingConfig, tokenizer: Any, template: Template) -> Material:
    """Returns what a run is made of; what is wrong with data or eval set is said before any weight is loaded.

    Raises: DataError, HubError, PromptError; ProofError for training problems that are in the eval set, unless allowed.
    """
    env, files = open_env(config)
    train = env.problems("train")[: config.num_problems]
    eval_set: TrainEvalSet | None = None
    graders = ("gym",) if config.env == "gym" and start.resolved.sources["graders"] == "default" else config.graders
    if config.eval_set_path is not None:
        eval_set = read_eval_set(config, tokenizer)
        path, evaluated, questions = eval_set.path, eval_set.num_problems, eval_set.questions
        files.append(eval_set.record)
    else:
        held_out = env.problems("val")[: config.eval_examples]
        path, evaluated, questions = (
            start.run.path / EVAL_SET,
            len(held_out),
            [(problem.id, problem.question) for problem in held_out],
        )
        if config.env in MULTI_TURN:
            path.write_bytes(encode_jsonl(to_row(problem) for problem in held_out))
        else:
            prompts = render_batch(tokenizer, held_out, template=template)
            how = {
                "template": {"name": template.name, "kind": template.kind, "sha256": template.sha256},
                "stop": list(template.stop),
            }
            write_rendered_eval_set(path, list(zip(held_out, prompts, strict=True)), tokenizer, config.model_id, how)
            eval_set = read_eval_set(config, tokenizer, path)
        files.append({**file_record(path), "role": "eval set", "source": EVAL_SET})
    prompts = render_batch(tokenizer, train, template=template)
    rendered = eval_set.prompts if eval_set is not None else ()
    overlap = check_leaks(prompts, questions, rendered, is_allowed=config.allow_overlap)
    return Material(env, train, prompts, path, eval_set, evaluated, graders, files, overlap)
