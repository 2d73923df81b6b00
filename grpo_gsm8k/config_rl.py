"""Options of the commands that learn from rewards: `grpo` and `expert-iteration` (see config.py and options.py)."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_gsm8k.config import GRADERS, DataOptions, LearnerConfig, RunOptions, TrackerOptions, TrainEvalConfig
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import option

ENVS = ("tiny", "gsm8k", "math", "gym", "jsonl", "wordle", "alphabet_sort", "calculator", "calculator_inline")
MULTI_TURN = ("wordle", "alphabet_sort", "calculator", "calculator_inline")
ALGORITHM_NAMES = ("reinforce", "reinforce_baseline", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")
OWN = "none: as the algorithm has it."


@dataclass(frozen=True)
class EnvOptions:
    """Which environment gives the problems, and how a prompt is written."""

    env: str = option("auto", "Environment; auto: tiny for the tiny model, else gsm8k.", choices=("auto", *ENVS))
    env_path: str | None = option(None, "jsonl: file of training problems (question and answer a line).")
    out_dir: str | None = option(None, "Folder of the prepared data; none: <artifacts_dir>/<data set>.")
    eval_n: int = option(512, "Training problems held out as validation when the data are prepared.", min=1)
    split_seed: int = option(31415, "Seed of the split, and of generated problems.", min=0, max=2**32 - 1)
    num_problems: int | None = option(None, "Training problems to use, the first N; none: all.", min=1)
    reward: str = option("auto", "Grader whose score is the reward; auto: the environment's own.", choices=("auto", *GRADERS))
    env_timeout_s: float = option(
        10.0,
        "Seconds that scoring one rollout may take where that can hang (math, reasoning-gym); beyond them it is an error.",
        min=1.0,
        max=240.0,
    )
    template: str = option("auto", "Prompt template: a shipped name or a path; auto: question for tiny, else qwen_math_cot.")


@dataclass(frozen=True)
class SamplingOptions:
    """How rollouts are sampled, and by which engine."""

    group_size: int = option(8, "Rollouts of each problem.", min=1)
    temperature: float = option(1.0, "Sampling temperature; what is trained is the policy at this temperature.", min=0.01)
    top_p: float = option(1.0, "Nucleus sampling; 1 is off.", min=1e-6, max=1.0)
    top_k: int = option(0, "Sample from the k likeliest tokens; 0 is off.", min=0)
    max_new_tokens: int = option(512, "Tokens sampled at most in one turn.", min=1)
    max_turns: int | None = option(None, "Turns of a rollout; none: the environment's own.", min=1)
    max_rollout_tokens: int | None = option(None, "Tokens of a rollout after its prompt; none: what its turns take.", min=1)
    engine: str = option("auto", "Engine that samples; auto as in eval.", choices=("auto", "transformers", "vllm"))
    engine_device: str = option("auto", "Device of the transformers engine; vLLM takes the first it sees.")
    engine_dtype: str = option(
        "auto", "Precision of the engine; auto: float32 on CPU.", choices=("auto", "float32", "bfloat16", "float16")
    )
    engine_mem_util: float = option(0.45, "vLLM: share of the GPU's memory it may take.", min=0.01, max=1.0)
    batch_size: int | None = option(None, "Rollouts sampled at once by the transformers engine; none: its own choice.", min=1)
    save_rollouts_every: int = option(10, "Steps between those whose rollouts are kept; the first and last always are.", min=1)
    max_error_rate: float = option(
        0.05, "Share of a step's rollouts whose grader or environment may fail before the run stops.", min=0.0, max=1.0
    )


@dataclass(frozen=True)
class RewardTrainingConfig(
    EnvOptions, SamplingOptions, LearnerConfig, TrainEvalConfig, DataOptions, RunOptions, TrackerOptions
):
    """Which model is trained, and what of it is kept."""

    model_id: str = option("tiny", "Hub id or folder of the model, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    allow_overlap: bool = option(False, "Train although training problems are problems of the eval set, on record.")
    save_every: int | None = option(None, "Steps between checkpoints; none: at the end only.", min=1)
    keep_last: int | None = option(None, "Complete checkpoints to keep; none: all.", min=1)

    def validate(self) -> None:
        """Checks what no single option can."""
        if not self.graders:
            raise ConfigError(f"graders is empty: allowed is any of {', '.join(GRADERS)}")
        if self.eval_num_samples > 1 and self.eval_temperature == 0:
            raise ConfigError("eval_num_samples above 1 needs eval_temperature above 0: greedy samples are all the same")
        if self.env == "jsonl" and (self.env_path is None or self.eval_set_path is None):
            raise ConfigError("env jsonl needs env_path (training problems) and eval_set_path (made by data render-eval)")
        if self.env_path is not None and self.env != "jsonl":
            raise ConfigError(f"env_path is read by env jsonl only, and env is {self.env}")
        if self.env == "gym" and self.mixture is None:
            raise ConfigError("env gym needs mixture, a .toml file with reasoning-gym tasks and weights")
        if self.env in MULTI_TURN and self.eval_set_path is not None:
            raise ConfigError(f"env {self.env} has turns, and is evaluated on problems of its own; leave eval_set_path out")


@dataclass(frozen=True)
class AlgorithmOptions:
    """The algorithm, and what of it is changed."""

    algorithm: str = option("grpo", "Algorithm, a preset of the parts below.", choices=ALGORITHM_NAMES)
    baseline: str | None = option(None, f"What is taken off a reward; {OWN}", choices=("zero", "group_mean", "leave_one_out"))
    scale: str | None = option(None, f"What an advantage is divided by; {OWN}", choices=("one", "group_std", "batch_std"))
    ratio: str | None = option(None, f"Importance ratio per token or per sequence; {OWN}", choices=("token", "sequence"))
    clip_low: float | None = option(None, f"The ratio is clipped at 1 - clip_low; {OWN}", min=0.0, max=1.0)
    clip_high: float | None = option(None, f"The ratio is clipped at 1 + clip_high; {OWN}", min=0.0)
    denominator: str | None = option(
        None, f"What the loss of a step is divided by; {OWN}", choices=("tokens", "sequences", "sequence_sum", "constant")
    )
    kl_beta: float | None = option(None, f"Weight of the KL to the reference (the model as it came); {OWN}", min=0.0)
    kl_estimator: str | None = option(None, f"Estimator of that KL; {OWN}", choices=("k1", "k2", "k3"))
    entropy_coef: float = option(0.0, "Weight of the entropy bonus.", min=0.0)
    advantage_eps: float | None = option(None, f"Added to the standard deviation; {OWN}", min=0.0)
    overlong_buffer: int | None = option(None, f"Tokens before the limit over which a penalty grows; {OWN}", min=0)
    overlong_penalty: float | None = option(None, f"The penalty at the limit; {OWN}", min=0.0)
    zero_variance: str | None = option(None, f"Groups whose rewards are all equal; {OWN}", choices=("keep", "drop", "resample"))
    max_resamples: int = option(3, "Rounds of further problems a step may sample to replace such groups.", min=1)
    zero_variance_patience: int = option(20, "Steps in a row without any distinct reward after which the run stops.", min=1)
    mask_truncated: bool = option(False, "Leave rollouts that hit a limit out of the loss (their reward counts in the group).")


@dataclass(frozen=True)
class GrpoConfig(AlgorithmOptions, RewardTrainingConfig):
    """The steps of `grpo`: what each samples, updates and checks."""

    prompts_per_step: int = option(32, "Problems a step samples; rollouts of a step are this times group_size.", min=1)
    max_steps: int = option(200, "Steps: each samples once and updates num_updates_per_rollout * num_minibatches times.", min=1)
    num_updates_per_rollout: int = option(1, "Passes over a step's rollouts.", min=1)
    num_minibatches: int = option(1, "Updates of one pass, each on a share of the groups.", min=1)
    correction: str = option(
        "none", "Truncated importance sampling of trainer against engine.", choices=("none", "token", "sequence")
    )
    correction_cap: float = option(2.0, "Where that weight is cut.", min=1.0)
    ratio_tolerance: float | None = option(
        None,
        "Mean |log ratio| of learner against engine allowed at the first step; none: 1e-3 in float32, 0.05 in half precision.",
        min=0.0,
    )
    curriculum: str = option(
        "none",
        "pass_rate: problems are drawn by how far their pass rate is from 0 and 1.",
        choices=("none", "pass_rate"),
    )
    overlap: str = option(
        "none",
        "one_step_off: the next rollouts are sampled, with the weights before it, while an update runs.",
        choices=("none", "one_step_off"),
    )

    def validate(self) -> None:
        """Checks what no single option can."""
        super().validate()
        if self.warmup_steps > self.max_steps:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}; allowed is 0 to max_steps, {self.max_steps}")
        if self.group_size == 1 and self.algorithm != "reinforce" and self.baseline != "zero":
            raise ConfigError(
                f"group_size is 1, and {self.algorithm} compares a group's rollouts: allowed is 2 or more, or baseline zero"
            )
        if self.num_minibatches > self.prompts_per_step:
            raise ConfigError(
                f"num_minibatches is {self.num_minibatches}; allowed is 1 to prompts_per_step, {self.prompts_per_step}"
            )
        if self.lora_dropout > 0:
            raise ConfigError(
                f"lora_dropout is {self.lora_dropout}: grpo compares the learner with the engine token by token, which dropout "
                "would blur; allowed is 0"
            )
        if self.overlap != "none" and self.correction != "none":
            raise ConfigError(
                "correction compares learner and engine at equal weights, which overlap one_step_off does not have (there the "
                "ratio is to the engine itself); set one of them to none"
            )
        if self.top_p < 1 or self.top_k > 0:
            raise ConfigError(
                "grpo trains the policy that samples, which top_p and top_k would change: allowed is top_p 1 and top_k 0"
            )


@dataclass(frozen=True)
class ExpertIterationConfig(RewardTrainingConfig):
    """The rounds of `expert-iteration`: what each samples, keeps and learns from."""

    num_rounds: int = option(5, "Rounds of sampling, keeping and fine-tuning.", min=1)
    prompts_per_round: int = option(256, "Problems sampled in a round.", min=1)
    max_kept_per_problem: int | None = option(
        None, "Correct rollouts kept of a problem in a round; none: all different ones.", min=1
    )
    min_kept_tokens: int = option(1, "Shortest rollout that is kept, in sampled tokens.", min=1)
    max_kept_tokens: int | None = option(None, "Longest rollout that is kept, in sampled tokens; none: no limit.", min=1)
    num_epochs: int = option(2, "Passes over the rollouts kept in a round.", min=1)
    sft_batch_size: int = option(64, "Rollouts of one optimiser step.", min=1)
    start_from: str = option(
        "current", "Weights that a round fine-tunes: the last round's or the first.", choices=("current", "base")
    )

    def validate(self) -> None:
        """Checks what no single option can."""
        super().validate()
        if self.max_kept_tokens is not None and self.max_kept_tokens < self.min_kept_tokens:
            raise ConfigError(
                f"max_kept_tokens is {self.max_kept_tokens}; allowed is min_kept_tokens ({self.min_kept_tokens}) or more"
            )
        num_rollouts = self.prompts_per_round * self.group_size
        most = -(-num_rollouts * self.num_epochs // min(self.sft_batch_size, num_rollouts))
        if self.warmup_steps > most:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}, and each round warms up anew and has at most {most} updates (all its "
                f"rollouts kept); allowed is 0 to {most}"
            )
