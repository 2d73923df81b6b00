"""Options that were given and that nothing will read: each is named in a warning, with what would have read it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from grpo_gsm8k.config import DataOptions
from grpo_gsm8k.config_rl import MULTI_TURN, GrpoConfig, RewardTrainingConfig
from grpo_gsm8k.options import Resolved, options

log = logging.getLogger("grpo_gsm8k")

COMMAND_LINE = ("flag", "override")
LORA = ("lora_alpha", "lora_dropout", "lora_target")


def warn_unread(resolved: Resolved[Any], unread: Iterator[tuple[str, str]]) -> None:
    """Names, of (option, what does not read it), those that were given on the command line."""
    for key, reader in unread:
        if resolved.sources[key] in COMMAND_LINE:
            log.warning("%s is given, but %s does not read it", key, reader)


def unread_by_run(config: RewardTrainingConfig, engine: str) -> Iterator[tuple[str, str]]:
    """Yields what a run that learns from rewards will not read, its `auto` values chosen and its engine known."""
    if engine == "vllm":
        yield "batch_size", "engine vllm"
    else:
        yield "engine_mem_util", f"engine {engine}"
    if config.env in MULTI_TURN:
        yield "graders", f"env {config.env}, which scores its own evaluation,"
    if config.env in MULTI_TURN or config.env == "jsonl":
        unread = (opt.key for opt in options(DataOptions))
        yield from ((key, f"env {config.env}, which prepares no data,") for key in ("out_dir", "eval_n", *unread))
    if config.reward != "math" and (config.reward != "auto" or config.env not in ("math", "gym")):
        yield "env_timeout_s", f"env {config.env}, whose scoring cannot hang,"
    if config.lora_rank is None:
        yield from ((key, "training without lora_rank") for key in LORA)
    if config.lr_schedule == "constant":
        yield "lr_floor", "lr_schedule constant"


def unread_by_update(config: GrpoConfig, zero_variance: str) -> Iterator[tuple[str, str]]:
    """Yields what `grpo` will not read with an algorithm whose equal groups are treated by `zero_variance`."""
    if config.correction == "none":
        yield "correction_cap", "correction none"
    if zero_variance != "resample":
        yield "max_resamples", f"zero_variance {zero_variance}"
