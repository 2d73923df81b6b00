"""Options of `env verify`, `env rollouts` and `env loss-mask` (see config.py and options.py)."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_gsm8k.config import GRADERS, DataOptions
from grpo_gsm8k.options import option

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class EnvSource(DataOptions):
    """Where an environment's problems come from."""

    env_path: str | None = option(None, "jsonl: file of problems (question and answer a line).")
    out_dir: str | None = option(None, "Folder of the prepared data; none: <artifacts_dir>/<data set>.")
    eval_n: int = option(512, "Training problems held out as validation when the data are prepared.", min=1)
    split_seed: int = option(31415, "Seed of the split, and of generated problems.", min=0, max=2**32 - 1)
    reward: str = option("auto", "Grader whose score is the reward; auto: the environment's own.", choices=("auto", *GRADERS))
    env_timeout_s: float = option(
        10.0,
        "Seconds that scoring one rollout may take where that can hang (math, reasoning-gym); beyond them it is an error.",
        min=1.0,
        max=240.0,
    )
    max_turns: int | None = option(None, "Turns of a rollout; none: the environment's own.", min=1)
    artifacts_dir: str = option("artifacts", "Folder under which runs/ and prepared data lie.")


@dataclass(frozen=True)
class EnvVerifyConfig(EnvSource):
    """Options of `env verify`."""

    split: str = option("all", "Split to verify.", choices=("all", *SPLITS))


@dataclass(frozen=True)
class EnvRolloutsConfig(EnvSource):
    """Options of `env rollouts`: which rollouts of a run are shown, or how an environment's are sampled."""

    num: int = option(4, "Rollouts shown; of an environment, as many problems, sampled once each.", min=1)
    step: int | None = option(None, "Of a run: the step whose rollouts are shown; none: the last that was kept.", min=1)
    split: str = option("train", "Of an environment: split of the problems.", choices=SPLITS)
    model_id: str = option("tiny", "Of an environment: hub id or folder of the model that samples, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    device: str = option("auto", "Torch device of the engine: auto, cpu, cuda or cuda:N.")
    template: str = option("auto", "Prompt template: a shipped name or a path; auto: question for tiny, else qwen_math_cot.")
    temperature: float = option(1.0, "Sampling temperature; 0 is greedy.", min=0.0)
    max_new_tokens: int = option(512, "Tokens sampled at most in one turn.", min=1)
    max_rollout_tokens: int | None = option(
        None, "Tokens of a rollout after its prompt; none: as many as its turns take.", min=1
    )
    seed: int = option(31415, "Seed of the samples.", min=0, max=2**32 - 1)


@dataclass(frozen=True)
class LossMaskConfig(EnvRolloutsConfig):
    """Options of `env loss-mask`."""

    mask_truncated: bool = option(False, "Of an environment: mask as a run does that leaves rollouts out which hit a limit.")
    html: str | None = option(None, "Page to write; none: <run>/loss_mask.html, or loss_mask_<env>.html here.")
