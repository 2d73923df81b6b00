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


@dataclass(frozen=True)
class DataOptions:
    """Where problems come from, and how they are pinned and split."""

    revision: str | None = option(
        None, "Commit, branch or tag on the hub, resolved once and pinned; none: the folder's own, else the shipped commit."
    )
    source: str | None = option(None, "Local file or folder (.jsonl or .parquet) to take the data from, in place of the hub.")
    cache_dir: str | None = option(None, "Cache folder for hub downloads; none: Hugging Face's own default.")
    snapshot_dir: str | None = option(None, "Folder for the raw files as published; none: <out_dir>_hf_snapshot.")
    mixture: str | None = option(None, "For the gym data set: a .toml file with reasoning-gym tasks, weights and settings.")


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

    def __post_init__(self) -> None:
        """Checks what no single option can."""
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
