"""One frozen dataclass per command: the only place where its options are written (see options.py)."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import option

DATASETS = ("gsm8k", "math", "math500", "tiny", "gym")
GRADERS = ("numeric", "gsm8k_strict", "math", "format", "format_boxed")
ENGINES = ("transformers", "vllm", "openai")


@dataclass(frozen=True)
class RunOptions:
    """What every command that leaves a run directory takes."""

    run_name: str | None = option(None, "Name of the run, for people; the directory is named by time and commit.")
    artifacts_dir: str = option("artifacts", "Folder under which runs/ and baselines/ are written.")
    determinism: str = option(
        "auto", "strict: bit-identical repeats. auto is strict on CPU, fast on a GPU.", choices=("auto", "strict", "fast")
    )
    num_threads: int | None = option(None, "CPU threads, pinned and recorded; none: 1 for tiny, else the cores at hand.", min=1)
    seed: int = option(31415, "Seed of the run; every sample's own seed is derived from it.", min=0, max=2**32 - 1)


@dataclass(frozen=True)
class TrackerOptions:
    """Where metrics go besides metrics.jsonl."""

    wandb: str = option("offline", "Weights & Biases mode.", choices=("offline", "online", "disabled"))
    wandb_project: str = option("grpo-gsm8k", "Weights & Biases project.")
    tensorboard: bool = option(False, "Write TensorBoard event files into the run directory too (extra: tensorboard).")


@dataclass(frozen=True)
class DataOptions:
    """Where problems come from, and how they are pinned and split."""

    revision: str | None = option(
        None, "Commit, branch or tag on the hub, resolved once and pinned; none: the folder's own, else the shipped commit."
    )
    source: str | None = option(None, "Local file or folder (.jsonl or .parquet) to take the data from, in place of the hub.")
    cache_dir: str | None = option(None, "Cache folder for hub downloads; none: Hugging Face's own default.")
    snapshot_dir: str | None = option(None, "Folder for the raw files as published; none: <out_dir>_hf_snapshot.")
    mixture: str | None = option(
        None, "For gym: a .toml file with reasoning-gym tasks, weights and settings, or basic, which ships."
    )


@dataclass(frozen=True)
class DataPrepConfig(RunOptions, DataOptions):
    """Options of `data prep`."""

    dataset: str = option("gsm8k", "Data set to prepare.", choices=DATASETS)
    out_dir: str | None = option(None, "Folder for {train,val,test}.jsonl and the manifest; none: <artifacts_dir>/<dataset>.")
    eval_n: int = option(512, "Training problems held out as validation.", min=1)


@dataclass(frozen=True)
class EvalConfig(RunOptions, TrackerOptions, DataOptions):
    """Options of `eval`."""

    model_id: str = option(
        "auto", "Hub id or folder of the model, or tiny; auto: Qwen/Qwen2.5-Math-1.5B with a GPU, else tiny."
    )
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    adapter: str | None = option(None, "Folder of a PEFT adapter to put on the model.")
    dataset: str = option(
        "auto",
        "Data set; auto: tiny for the tiny model unless revision or source is given, else gsm8k.",
        choices=("auto", *DATASETS),
    )
    out_dir: str | None = option(None, "Folder of the prepared data; none: <artifacts_dir>/<dataset>.")
    eval_n: int = option(512, "Training problems held out as validation when the data are prepared.", min=1)
    split_seed: int = option(31415, "Seed of the split into training and validation.", min=0, max=2**32 - 1)
    split: str = option(
        "auto",
        "Split to evaluate; auto: val, or test of a data set that has no training split.",
        choices=("auto", "val", "test", "train"),
    )
    eval_path: str | None = option(None, "JSONL to evaluate in place of a prepared split (question and answer a line).")
    limit: int | None = option(None, "Evaluate the first N problems only.", min=1)
    template: str = option("auto", "Prompt template: a shipped name or a path; auto: question for tiny, else qwen_math_cot.")
    k_shot: int = option(0, "Solved examples before the question, drawn from the training split.", min=0)
    engine: str = option("auto", "Engine; auto: vllm where CUDA and vllm are, else transformers.", choices=("auto", *ENGINES))
    device: str = option("auto", "Torch device for the transformers engine: auto, cpu, cuda or cuda:N.")
    dtype: str = option(
        "auto", "Precision; auto: the model's own on a GPU, float32 on CPU.", choices=("auto", "float32", "bfloat16", "float16")
    )
    batch_size: int | None = option(None, "Requests a call to the engine; none: the engine's own choice.", min=1)
    gpu_mem_util: float = option(0.9, "vLLM: share of the GPU's memory it may take.", min=0.01, max=1.0)
    tp_size: int = option(1, "vLLM: tensor-parallel GPUs.", min=1)
    base_url: str | None = option(None, "openai: the server's address, up to and including /v1.")
    api: str = option(
        "completions", "openai: completions sends token ids, chat sends messages.", choices=("completions", "chat")
    )
    tokenizer: str | None = option(None, "openai: hub id or folder of the tokenizer; none: that of model_id.")
    requests_per_minute: float | None = option(None, "openai: rate limit of our own; none: no limit.", min=0.001)
    concurrency: int = option(32, "openai: requests in flight.", min=1)
    temperature: float = option(0.0, "Sampling temperature; 0 is greedy.", min=0.0)
    top_p: float = option(1.0, "Nucleus sampling; 1 is off.", min=1e-6, max=1.0)
    top_k: int = option(0, "Sample from the k likeliest tokens; 0 is off.", min=0)
    max_new_tokens: int = option(1024, "Tokens sampled at most for one completion.", min=1)
    num_samples: int = option(1, "Completions a problem (pass@k and maj@k are reported above 1).", min=1)
    graders: tuple[str, ...] = option(
        ("auto",),
        "Graders, the first is the headline; auto: numeric,gsm8k_strict,math (math,numeric for MATH).",
        choices=("auto", *GRADERS),
    )

    def validate(self) -> None:
        """Checks what no single option can."""
        if 0 < self.temperature < 0.01:
            raise ConfigError(f"temperature = {self.temperature}: allowed is 0 (greedy) or at least 0.01")
        if len(set(self.graders)) < len(self.graders):
            raise ConfigError(f"graders names one twice: {', '.join(self.graders)}")
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError("num_samples above 1 needs temperature above 0: greedy samples are all the same")
        if self.engine == "openai" and self.base_url is None:
            raise ConfigError("engine openai needs base_url (the server's address, up to and including /v1)")
        if self.base_url is not None and self.engine not in ("openai", "auto"):
            raise ConfigError(f"base_url is read by the openai engine only, and engine is {self.engine}")
        if not self.graders:
            raise ConfigError(f"graders is empty: allowed is any of {', '.join(GRADERS)}")
        if "auto" in self.graders and len(self.graders) > 1:
            raise ConfigError("graders: auto stands alone")
        if self.dataset == "gym" and self.mixture is None and self.eval_path is None:
            raise ConfigError("dataset gym needs mixture, a .toml file with reasoning-gym tasks and weights")


@dataclass(frozen=True)
class LearnerConfig:
    """How weights are updated."""

    learner_device: str = option("auto", "Torch device of the learner: auto, cpu, cuda or cuda:N.")
    learner_dtype: str = option(
        "float32", "Precision of the weights' arithmetic; bfloat16 keeps fp32 master weights.", choices=("float32", "bfloat16")
    )
    lr: float = option(1e-5, "Peak learning rate.", min=0.0)
    lr_schedule: str = option("cosine", "Schedule after warm-up.", choices=("constant", "linear", "cosine"))
    lr_floor: float = option(0.1, "What a linear or cosine schedule ends at, as a share of the peak.", min=0.0, max=1.0)
    warmup_steps: int = option(0, "Steps of linear warm-up.", min=0)
    weight_decay: float = option(0.0, "Decoupled weight decay, on matrices only.", min=0.0)
    adam_beta1: float = option(0.9, "AdamW beta1.", min=0.0, max=0.999999)
    adam_beta2: float = option(0.95, "AdamW beta2.", min=0.0, max=0.999999)
    adam_eps: float = option(1e-8, "AdamW epsilon.", min=0.0)
    max_grad_norm: float | None = option(1.0, "Gradients are clipped to this global norm; none: never.", min=0.0)
    tokens_per_microbatch: int = option(16384, "Tokens of one forward and backward pass; gradients add up over a step.", min=1)
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, more time.")
    lora_rank: int | None = option(None, "Train a LoRA adapter of this rank; none: all weights.", min=1)
    lora_alpha: float = option(32.0, "LoRA alpha.", min=0.0)
    lora_dropout: float = option(0.0, "LoRA dropout.", min=0.0, max=0.9)
    lora_target: tuple[str, ...] = option(("all-linear",), "Modules that get an adapter: names, or all-linear.")


@dataclass(frozen=True)
class TrainEvalConfig:
    """Evaluation while training: always on, in a process of its own."""

    eval_set_path: str | None = option(None, "Pre-rendered eval set (made by data render-eval); there is no training without.")
    eval_every: int = option(100, "Steps between evaluations; step 0 and the last step are always evaluated.", min=1)
    eval_examples: int | None = option(None, "Problems of the eval set to use; none: all.", min=1)
    eval_engine: str = option("auto", "Engine of the evaluator; auto as in eval.", choices=("auto", "transformers", "vllm"))
    vllm_device: str = option("auto", "Device of the evaluator: auto (cuda:1, or cuda:0 shared, or cpu), cpu or cuda:N.")
    gpu_mem_util: float = option(0.3, "Share of the evaluator's GPU memory for vLLM.", min=0.01, max=1.0)
    eval_max_new_tokens: int = option(512, "Tokens sampled at most for one completion.", min=1)
    eval_temperature: float = option(0.0, "Sampling temperature of the evaluation; 0 is greedy.", min=0.0)
    eval_num_samples: int = option(1, "Completions a problem.", min=1)
    eval_queue: int = option(2, "Evaluations that may wait; beyond it eval_policy says what happens.", min=1)
    eval_policy: str = option(
        "wait", "wait: training waits for a place; skip: the evaluation is left out, on record.", choices=("wait", "skip")
    )
    eval_timeout_s: float = option(60.0, "Seconds without a sign of life after which the evaluator counts as hung.", min=1.0)
    graders: tuple[str, ...] = option(("numeric", "gsm8k_strict"), "Graders, the first is the headline.", choices=GRADERS)


@dataclass(frozen=True)
class SftConfig(RunOptions, TrackerOptions, LearnerConfig, TrainEvalConfig):
    """Options of `sft`."""

    model_id: str = option("tiny", "Hub id or folder of the model, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    data_path: str | None = option(
        None, "Training data: JSONL of prompt and response or of messages, or a pretokenised folder."
    )
    max_total_tokens: int = option(2048, "Tokens of the longest example that is trained on.", min=2)
    overlong: str = option("refuse", "What is done with longer examples; never cut.", choices=("refuse", "drop"))
    allow_overlap: bool = option(False, "Train although training examples are problems of the eval set, on record.")
    batch_size: int = option(64, "Examples of one optimiser step.", min=1)
    max_steps: int | None = option(None, "Optimiser steps; none: as num_epochs says.", min=1)
    num_epochs: int = option(1, "Passes over the data where max_steps is none.", min=1)
    save_every: int | None = option(None, "Steps between checkpoints; none: at the end only.", min=1)
    keep_last: int | None = option(None, "Complete checkpoints to keep; none: all.", min=1)

    def validate(self) -> None:
        """Checks what no single option can."""
        for key in ("data_path", "eval_set_path"):
            if getattr(self, key) is None:
                raise ConfigError(
                    f"{key} is not given: sft needs data_path and eval_set_path (data render-eval makes the latter)"
                )
        if not self.graders:
            raise ConfigError(f"graders is empty: allowed is any of {', '.join(GRADERS)}")
        if self.eval_num_samples > 1 and self.eval_temperature == 0:
            raise ConfigError("eval_num_samples above 1 needs eval_temperature above 0: greedy samples are all the same")


@dataclass(frozen=True)
class PretokenizeConfig(RunOptions):
    """Options of `data pretokenize`."""

    model_id: str = option("tiny", "Hub id or folder of the model whose tokenizer is used, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    infile: str | None = option(None, "JSONL of prompt and response, or of chat messages, one example a line.")
    out_dir: str | None = option(None, "Folder for the shards; none: <artifacts_dir>/pretokenized/<name of infile>.")
    max_total_tokens: int = option(2048, "Tokens of the longest example that is kept.", min=2)
    overlong: str = option("drop", "What is done with longer examples; never cut.", choices=("drop", "refuse"))
    special_tokens: str = option(
        "auto",
        "The tokenizer's own special tokens (a BOS) before prompts of pairs; auto: unless one is there already.",
        choices=("auto", "add", "none"),
    )
    shard_size: int = option(1024, "Examples of one shard; one shard is held in memory.", min=1)

    def validate(self) -> None:
        """Checks what no single option can."""
        if self.infile is None:
            raise ConfigError("infile is not given: data pretokenize needs a JSONL of prompt and response, or of messages")


@dataclass(frozen=True)
class RenderEvalConfig(RunOptions):
    """Options of `data render-eval`."""

    model_id: str = option("tiny", "Hub id or folder of the model whose tokenizer is used, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    infile: str | None = option(None, "JSONL (or .parquet) of problems: question and answer (or gold) a line.")
    outfile: str | None = option(None, "JSONL to write; none: <artifacts_dir>/eval_sets/<name of infile>_<model>.jsonl.")
    template: str = option("auto", "Prompt template: a shipped name or a path; auto: question for tiny, else qwen_math_cot.")
    k_shot: int = option(0, "Solved examples before the question, drawn from shots_path.", min=0)
    shots_path: str | None = option(None, "JSONL of training problems to draw solved examples from.")
    limit: int | None = option(None, "Render the first N problems only.", min=1)

    def validate(self) -> None:
        """Checks what no single option can."""
        if self.infile is None:
            raise ConfigError("infile is not given: data render-eval needs a JSONL of problems, one a line")
        if (self.k_shot > 0) != (self.shots_path is not None):
            raise ConfigError("k_shot and shots_path go together: give both, or neither")


@dataclass(frozen=True)
class RenderPairsConfig(RunOptions):
    """Options of `data render-pairs`."""

    model_id: str = option("tiny", "Hub id or folder of the model whose tokenizer is used, or tiny.")
    model_revision: str | None = option(None, "Commit, branch or tag of a hub model.")
    infile: str | None = option(None, "JSONL (or .parquet) of problems: question and answer a line.")
    outfile: str | None = option(None, "JSONL to write; none: <artifacts_dir>/pairs/<name of infile>_<model>.jsonl.")
    template: str = option("auto", "Prompt template: a shipped name or a path; auto: question for tiny, else qwen_math_cot.")
    limit: int | None = option(None, "Render the first N problems only.", min=1)

    def validate(self) -> None:
        """Checks what no single option can."""
        if self.infile is None:
            raise ConfigError("infile is not given: data render-pairs needs a JSONL of problems, one a line")
