"""The engine over vLLM: the fast one on CUDA; its CPU build runs the same code, for tests.

vLLM runs in this process (workers of tensor parallelism aside), so that which requests share a batch follows from the calls
alone and not from timing. EOS tokens are named in every request, and the model's own sampling defaults (repetition penalty,
top-k …) are never applied. Log-probs are vLLM's "processed" ones: of the distribution that was sampled from.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo_gsm8k.engines.loading import DTYPES, load_tokenizer, resolve_model_id
from grpo_gsm8k.engines.protocol import Capabilities, OnCompletion
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.engines.weight_names import check_weights_fit
from grpo_gsm8k.errors import EngineError, InputError, ModelError, unknown_name
from grpo_gsm8k.types import Completion, Prompt, Sampling, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 256
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # vLLM silently raises what is lower, and refuses what is higher
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM takes for its largest rank

ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
# Without TORCHDYNAMO_DISABLE the first CPU request waits for a C++ compiler; the KV cache is in GiB.
CPU_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


class VllmEngine:
    """Samples with a vLLM engine that lives in this process."""

    def __init__(
        self,
        model_id: str,
        *,
        tp_size: int = 1,
        gpu_mem_util: float = 0.9,
        dtype: str = "auto",
        max_model_len: int | None = None,
        revision: str | None = None,
        adapter: str | Path | None = None,
        seed: int = 0,
        enforce_eager: bool | None = None,
    ) -> None:
        """`dtype` "auto" is what the checkpoint was saved in (float32 on a CPU), never vLLM's own narrowing of float32.

        `gpu_mem_util` is the fraction of each GPU that vLLM takes (a CPU build takes VLLM_CPU_KVCACHE_SPACE GiB instead);
        `max_model_len` None is the model's window; `adapter` is a PEFT LoRA folder; `enforce_eager` None is True on a CPU only.
        Raises: InputError, ModelError, HubError; EngineError when vLLM or its device is not there or it cannot start.
        """
        on_cpu = _check_choices(tp_size, gpu_mem_util, dtype)
        source = resolve_model_id(model_id)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model_id, revision)
        self._config = _read_config(source, revision)
        self._lora_path = None if adapter is None else str(adapter)
        lora_rank = None if adapter is None else _lora_rank(Path(adapter))
        self._environment = _set_environment(on_cpu)
        self._asked: dict[str, Any] = {
            "model_id": model_id,
            "revision": revision,
            "adapter": self._lora_path,
            "gpu_mem_util": None if on_cpu else gpu_mem_util,
            "seed": seed,
        }
        self._owns_process_group = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        arguments = {
            "model": source,
            "revision": None if Path(source).is_dir() else revision,
            "tokenizer_revision": None if Path(source).is_dir() else revision,
            "dtype": _resolve_dtype(dtype, on_cpu, self._config),
            "seed": seed,
            "max_model_len": max_model_len,
            "max_num_seqs": BATCH_SIZE,
            "tensor_parallel_size": tp_size,
            "gpu_memory_utilization": gpu_mem_util,
            "enforce_eager": on_cpu if enforce_eager is None else enforce_eager,
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "enable_chunked_prefill": not on_cpu,  # a chunk of a seeded request rewinds its generator: no CPU one can
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        if self._lora_path is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank}
        self._engine: Any = _start(model_id, arguments)
        self._eos = self._eos_token_ids()
        self._window = int(self._engine.model_config.max_model_len)
        self._num_calls = 0
        self._weights_version: int | None = None

    @property
    def name(self) -> str:
        """The engine's registered name."""
        return "vllm"

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            logprobs=True,
            weight_updates=True,
            per_request_seeds=True,
            token_ids=True,
            repeats=True,
            batch_size=BATCH_SIZE,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Returns one completion a prompt, in order. Prefixes are shared within a call and forgotten before the next.

        Raises: InputError before anything is sampled; EngineError when vLLM fails.
        """
        engine = self._live_engine()
        self._check(prompts, sampling, seeds)
        self._forget_prefixes()
        self._num_calls += 1
        call = f"{self._num_calls}-"
        done: dict[int, Completion] = {}
        try:
            self._add_requests(call, prompts, sampling, seeds)
            while engine.has_unfinished_requests():
                for output in self._step():
                    index = int(output.request_id.removeprefix(call))
                    done[index] = _completion(prompts[index].problem_id, output.outputs[0])
                    if on_completion is not None:
                        on_completion(index, done[index])
        except BaseException:
            # The engine outlives an interrupted call: what is still running must not leak into the next one.
            engine.abort_request([f"{call}{index}" for index in range(len(prompts)) if index not in done])
            raise
        return [done[index] for index in range(len(prompts))]

    def load_weights(self, path: Path, version: int) -> None:
        """Takes the weights in `path` (a Hugging Face folder), calls them `version` and drops every cached prefix.

        Raises: ModelError, nothing changed, when a name or a shape differs; EngineError, and the engine is closed, when vLLM
        fails half-way.
        """
        engine = self._live_engine()
        check_weights_fit(path, self._config)
        try:
            engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        except Exception as error:
            self.close()
            raise EngineError(f"vLLM could not load the weights in {str(path)!r}, and is closed: {_one_line(error)}") from error
        self._weights_version = version
        self._forget_prefixes()

    def describe(self) -> Mapping[str, Any]:
        """Returns what was really got."""
        vllm_config = self._live_engine().vllm_config
        model, cache, scheduler = vllm_config.model_config, vllm_config.cache_config, vllm_config.scheduler_config
        on_cpu = vllm_config.device_config.device_type == "cpu"
        return {
            "engine": self.name,
            **self._asked,
            "vllm": _vllm_version(),
            "torch": torch.__version__,
            "architecture": model.architecture,
            "device": vllm_config.device_config.device_type,
            "device_name": "cpu" if on_cpu else torch.cuda.get_device_name(0),
            "dtype": str(model.dtype).removeprefix("torch."),
            "tp_size": vllm_config.parallel_config.tensor_parallel_size,
            "enforce_eager": model.enforce_eager,
            "model_runner": 2 if vllm_config.use_v2_model_runner else 1,
            "batch_size": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "kv_cache_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
            "prefix_caching": cache.enable_prefix_caching,
            "logprobs_mode": model.logprobs_mode,
            "window_tokens": self._window,
            "eos_token_ids": self._eos,
            "environment": self._environment,
            "weights_version": self._weights_version,
            "num_threads": torch.get_num_threads(),
        }

    def close(self) -> None:
        """Frees the model, its cache and any worker process; safe to call twice."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        engine.engine_core.shutdown()
        del engine
        if self._owns_process_group:
            cleanup_dist_env_and_memory()

    def _live_engine(self) -> Any:
        if self._engine is None:
            raise EngineError("the vllm engine is closed; make a new one")
        return self._engine

    def _check(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> None:
        check_request(prompts, sampling, seeds, window=self._window)
        if sampling.temperature != 0 and not MIN_TEMPERATURE <= sampling.temperature <= MAX_TEMPERATURE:
            raise InputError(
                f"temperature is {sampling.temperature}; vllm takes 0 (greedy) or {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
            )
        size = self._engine.model_config.get_vocab_size()
        for prompt in prompts:
            if max(prompt.token_ids) >= size or min(prompt.token_ids) < 0:
                raise InputError(
                    f"problem {prompt.problem_id!r}: its prompt has token ids outside the model's vocabulary of {size}; "
                    "render it with the model's own tokenizer"
                )

    def _add_requests(self, call: str, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        lora = None if self._lora_path is None else LoRARequest("adapter", 1, self._lora_path)
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=None if sampling.temperature == 0 else seed,
                max_tokens=sampling.max_tokens,
                logprobs=0,  # the sampled token's alone
                stop=list(sampling.stop) or None,
                include_stop_str_in_output=True,
                detokenize=bool(sampling.stop),
                ignore_eos=True,  # vLLM's own notion of it: ours is the list
                stop_token_ids=self._eos,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            try:
                self._engine.add_request(f"{call}{index}", tokens_input(list(prompt.token_ids)), params, lora_request=lora)
            except ValueError as error:
                raise InputError(f"problem {prompt.problem_id!r}: vLLM refuses it: {_one_line(error)}") from error

    def _step(self) -> list[Any]:
        try:
            return [output for output in self._engine.step() if output.finished]
        except Exception as error:
            raise EngineError(f"vLLM failed while sampling: {_one_line(error)}") from error

    def _forget_prefixes(self) -> None:
        """Cached prefixes would make a call's result depend on earlier calls, which a resumed run has not made."""
        if not self._engine.reset_prefix_cache():
            raise EngineError("vLLM did not drop its prefix cache: requests of an earlier call are still running")

    def _eos_token_ids(self) -> list[int]:
        """Every id that ends a completion: of the generation config, the model's config and the tokenizer."""
        found: set[int] = set()
        generation = self._engine.model_config.try_get_generation_config()
        for value in (generation.get("eos_token_id"), self._config.get_text_config().eos_token_id, self.tokenizer.eos_token_id):
            found.update([value] if isinstance(value, int) else value or [])
        return sorted(found)


def _check_choices(tp_size: int, gpu_mem_util: float, dtype: str) -> bool:
    """Returns whether this is a CPU build, having checked what can be said before vLLM is imported."""
    if tp_size < 1:
        raise InputError(f"tp_size is {tp_size}; it must be 1 or more")
    if not 0 < gpu_mem_util <= 1:
        raise InputError(f"gpu_mem_util is {gpu_mem_util}; it must be above 0 and at most 1")
    if dtype not in DTYPES:
        raise ModelError(unknown_name("dtype", dtype, DTYPES))
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "vllm is not installed; on a CUDA host: pip install 'grpo-gsm8k[vllm]', else use --engine transformers"
        )
    on_cpu = torch.version.cuda is None and torch.version.hip is None
    if not on_cpu and not torch.cuda.is_available():
        raise EngineError("this vllm is a CUDA build, but torch sees no CUDA device; use --engine transformers")
    num_devices = 1 if on_cpu else torch.cuda.device_count()
    if tp_size > num_devices:
        raise EngineError(f"tp_size is {tp_size}, but torch sees {num_devices} device(s); use --tp-size {num_devices} or less")
    return on_cpu


def _set_environment(on_cpu: bool) -> dict[str, str]:
    """Sets what vLLM reads from the environment, where the user has not, and returns what holds."""
    wanted = ENVIRONMENT | CPU_ENVIRONMENT if on_cpu else ENVIRONMENT
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    dynamo = sys.modules.get("torch._dynamo")
    if on_cpu and dynamo is not None and os.environ["TORCHDYNAMO_DISABLE"] == "1":
        dynamo.config.disable = True  # it has read the variable already
    return {name: os.environ[name] for name in sorted(wanted)}


def _read_config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, revision=None if Path(source).is_dir() else revision)
    except Exception as error:
        raise ModelError(f"cannot read the config of {source!r}: {_one_line(error)}") from error


def _resolve_dtype(dtype: str, on_cpu: bool, config: Any) -> str:
    """vLLM's own "auto" narrows a float32 checkpoint to 16 bits without a word; this never does."""
    if dtype != "auto":
        return dtype
    if on_cpu:
        return "float32"
    saved = config.get_text_config().dtype
    return "auto" if saved is None else str(saved).removeprefix("torch.")


def _lora_rank(path: Path) -> int:
    """Returns the smallest of vLLM's rank limits that takes the LoRA adapter in `path`. Raises: ModelError."""
    try:
        config = json.loads((path / "adapter_config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{str(path)!r} is not a PEFT adapter folder: no adapter_config.json that can be read") from error
    kind, rank = config.get("peft_type"), config.get("r")
    if kind != "LORA" or not isinstance(rank, int) or config.get("modules_to_save"):
        raise ModelError(f"vllm takes LoRA adapters without modules_to_save only; {str(path)!r} is {kind}: merge it first")
    ranks = [rank, *(config.get("rank_pattern") or {}).values()]
    fitting = [limit for limit in LORA_RANKS if limit >= max(ranks)]
    if not fitting:
        raise ModelError(f"adapter {str(path)!r} has rank {max(ranks)}; vllm takes up to {LORA_RANKS[-1]}: merge it first")
    return fitting[0]


def _start(model_id: str, arguments: Mapping[str, Any]) -> Any:
    set_num_threads = torch.set_num_threads
    try:
        from vllm import EngineArgs, LLMEngine

        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:
        raise EngineError(f"vLLM cannot start with {model_id!r}: {_one_line(error)}") from error
    finally:
        torch.set_num_threads = set_num_threads  # the CPU worker replaces it by a no-op for the whole process


def _completion(problem_id: str, output: Any) -> Completion:
    """Returns the record of one finished request. `stop_reason` of vLLM is the stop string or the stop token that ended it."""
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended the completion of problem {problem_id!r} with {output.finish_reason!r}")
    tokens = tuple(output.token_ids)
    logprobs = tuple(float(entry[token].logprob) for token, entry in zip(tokens, output.logprobs, strict=True))
    reason: StopReason = "length"
    if output.finish_reason == "stop":
        reason = "stop" if isinstance(output.stop_reason, str) else "eos"
    return Completion(token_ids=tokens, logprobs=logprobs, stop_reason=reason)


def _vllm_version() -> str:
    """The distribution is `vllm` or, for the CPU build, `vllm-cpu`: so it is named by what provides the module."""
    names = importlib.metadata.packages_distributions()["vllm"]
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def _one_line(error: BaseException, limit: int = 400) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
