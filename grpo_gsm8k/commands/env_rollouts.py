"""The rollouts that `env rollouts` and `env loss-mask` show: of a run, as it kept them, or of an environment, sampled now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grpo_gsm8k.config_env import EnvRolloutsConfig, EnvSource
from grpo_gsm8k.config_rl import RewardTrainingConfig
from grpo_gsm8k.envs.protocol import Environment
from grpo_gsm8k.envs.registry import ENV_NAMES
from grpo_gsm8k.errors import DataError, InputError, unknown_name
from grpo_gsm8k.runs.directory import open_run
from grpo_gsm8k.runs.loss_mask import MaskedRollout, mask_rollout
from grpo_gsm8k.runs.reading import reading
from grpo_gsm8k.runs.report_rollouts import sample, saved_steps
from grpo_gsm8k.runs.rollout_files import StoredRollout, read_rollouts, rollout_path
from grpo_gsm8k.runs.storage import parse_json, read_plain
from grpo_gsm8k.runs.token_texts import Decode, run_decoder


@dataclass(frozen=True)
class FoundRollouts:
    """All rollouts there are, those that are shown, how their tokens read, and where their page goes."""

    title: str
    all: list[MaskedRollout]
    shown: list[MaskedRollout]
    decode: Decode
    page: Path


def find_rollouts(target: str, config: EnvRolloutsConfig, *, mask_truncated: bool = False) -> FoundRollouts:
    """Returns the rollouts of an environment, by its name, or of a run. Raises: InputError for what is neither."""
    if target in ENV_NAMES:
        return _of_env(target, config, mask_truncated)
    try:
        run = open_run(target, Path(config.artifacts_dir)).path
    except InputError:
        if Path(target).exists() or target == "latest":
            raise
        raise InputError(f"{unknown_name('environment', target, ENV_NAMES)}, and no run is called so") from None
    with reading(run):
        return _of_run(run, config)


def open_source(name: str, config: EnvSource) -> Environment:
    """Returns an environment with all splits it has; a data set is prepared where it is not. Raises: DataError, HubError."""
    from grpo_gsm8k.commands.env_problems import open_env

    if name not in ENV_NAMES:
        raise InputError(unknown_name("environment", name, ENV_NAMES))
    shared = {field.name for field in fields(EnvSource)}
    env, _ = open_env(RewardTrainingConfig(env=name, **{key: getattr(config, key) for key in shared}), ("train", "val", "test"))
    return env


def check_masks(masked: Sequence[MaskedRollout]) -> None:
    """Raises DataError when a rollout has no trained token and should have one, naming the first and its cause."""
    faults = [one for one in masked if one.is_fault]
    if faults:
        first = faults[0]
        raise DataError(
            f"{len(faults)} of {len(masked)} rollouts have no trained token; the first, {first.name}: {first.cause}"
        )


def _of_run(run: Path, config: EnvRolloutsConfig) -> FoundRollouts:
    """The rollouts of all steps that a run kept; those of one step are shown."""
    steps = saved_steps(run)
    if not steps:
        raise InputError(f"{run} kept no rollouts (rollouts/step_<n>.jsonl); grpo and expert-iteration keep some")
    step = steps[-1] if config.step is None else config.step
    if step not in steps:
        raise InputError(f"{run} kept no rollouts of step {step}; there are {', '.join(map(str, steps))}")
    values = _json(run / "config.json").get("values", {})
    engine = _json(run / "sys/engine.json") if (run / "sys/engine.json").exists() else {}
    masks, window = bool(values.get("mask_truncated", False)), engine.get("window_tokens")
    by_step = {
        number: [mask_rollout(one, mask_truncated=masks, window=window) for one in read_rollouts(rollout_path(run, number))]
        for number in steps
    }
    decode = run_decoder(run) or _tokenizer_decoder(str(values.get("model_id")), values.get("model_revision"))
    everything = [one for number in steps for one in by_step[number]]
    faults = [one for one in by_step[step] if one.is_fault][:1]  # that one is seen whatever is drawn
    shown = faults + [one for one in sample(by_step[step], config.num) if one not in faults][: config.num - len(faults)]
    title = f"{run.resolve().name}, {len(steps)} kept steps, shown is step {step}"
    return FoundRollouts(title, everything, shown, decode, run / "loss_mask.html")


def _of_env(name: str, config: EnvRolloutsConfig, mask_truncated: bool) -> FoundRollouts:
    from grpo_gsm8k.commands.env_sampling import sample_rollouts

    env = open_source(name, config)
    try:
        rollouts, decode = sample_rollouts(env, config)
    finally:
        env.close()
    masked = [mask_rollout(StoredRollout(rollout), mask_truncated=mask_truncated) for rollout in rollouts]
    return FoundRollouts(f"{name}, sampled by {config.model_id}", masked, masked, decode, Path(f"loss_mask_{name}.html"))


def _tokenizer_decoder(model_id: str, revision: str | None) -> Decode:
    from grpo_gsm8k.engines.loading import load_tokenizer

    tokenizer = load_tokenizer(model_id, revision)
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_plain(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}
