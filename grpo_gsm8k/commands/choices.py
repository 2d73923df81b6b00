"""What `auto` becomes: each choice is said, and recorded as the option's source."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from grpo_gsm8k.commands.start import Started, write_config
from grpo_gsm8k.config import EvalConfig, RenderEvalConfig, RenderPairsConfig
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import Resolved
from grpo_gsm8k.prompts import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from grpo_gsm8k.config_traces import TracesFormatConfig  # it imports aiohttp

R = TypeVar("R", EvalConfig, RenderEvalConfig, RenderPairsConfig, "TracesFormatConfig")

log = logging.getLogger("grpo_gsm8k")

# Options of one engine or two: given for another, they are named in a warning.
READ_BY = {
    "api": ("openai",),
    "tokenizer": ("openai",),
    "concurrency": ("openai",),
    "requests_per_minute": ("openai",),
    "gpu_mem_util": ("vllm",),
    "tp_size": ("vllm",),
    "dtype": ("transformers", "vllm"),
    "adapter": ("transformers", "vllm"),
}
BIG_MODEL = "Qwen/Qwen2.5-Math-1.5B"


def choose(resolved: Resolved[EvalConfig]) -> Resolved[EvalConfig]:
    """Returns the config with every `auto` of an evaluation replaced by what was chosen, and why."""
    from grpo_gsm8k.engines.select import choose_engine

    config = resolved.config
    if config.engine == "auto" and config.base_url is not None:
        resolved = resolved.filled("engine", "openai", "base_url is given")
    has_cuda = resolved.config.engine != "openai" and _sees_cuda(config.device)
    where = "torch sees a CUDA device" if has_cuda else "torch sees no CUDA device"
    if config.model_id == "auto":
        if resolved.config.engine == "openai":
            raise ConfigError("engine openai needs model_id, the name that the server knows the model by")
        resolved = resolved.filled("model_id", BIG_MODEL if has_cuda else "tiny", where)
    if resolved.config.engine == "auto" and config.device != "auto":
        resolved = resolved.filled(
            "engine", "transformers", f"device {config.device} is named, and only transformers takes one"
        )
    if resolved.config.engine == "auto":
        name, why = choose_engine("auto", has_cuda=has_cuda, has_vllm=importlib.util.find_spec("vllm") is not None)
        resolved = resolved.filled("engine", name, why.removeprefix("auto: "))
    tiny = resolved.config.model_id == "tiny"
    if config.dataset == "auto":
        wanted = next((key for key in ("revision", "source") if getattr(config, key) is not None), None)
        why = f"{wanted} is given" if wanted else f"the model is {resolved.config.model_id}"
        resolved = resolved.filled("dataset", "tiny" if tiny and not wanted else "gsm8k", why)
    if config.split == "auto":
        held_out = resolved.config.dataset != "math500"
        why = "held out from training" if held_out else "math500 has no other split"
        resolved = resolved.filled("split", "val" if held_out else "test", why)
    if config.template == "auto":
        resolved = _filled_template(resolved)
    if config.graders == ("auto",):
        math = resolved.config.dataset in ("math", "math500")
        graders: tuple[str, ...] = ("math", "numeric") if math else ("numeric", "gsm8k_strict", "math")
        if resolved.config.dataset == "gym":
            graders = ("gym",)
        resolved = resolved.filled("graders", graders, f"the data set is {resolved.config.dataset}")
    return resolved


def fill_template(start: Started[Any], resolved: Resolved[R]) -> Resolved[R]:
    """Returns the config with the template that `auto` stands for, on record in the run."""
    if resolved.config.template == "auto":
        resolved = _filled_template(resolved)
        write_config(start.run, resolved)
    return resolved


def _filled_template(resolved: Resolved[R]) -> Resolved[R]:
    if resolved.config.model_id == "tiny":
        return resolved.filled("template", "question", "what the tiny model was trained on")
    return resolved.filled("template", DEFAULT_TEMPLATE, "the data set is solved by chain of thought")


def _sees_cuda(device: str) -> bool:
    if device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def log_choices(resolved: Resolved[EvalConfig]) -> None:
    """Says what was chosen, in one line each, and which options that were given nothing will read."""
    config = resolved.config
    given = {key for key, source in resolved.sources.items() if source in ("flag", "override")}
    for key in sorted(given & READ_BY.keys()):
        if config.engine not in READ_BY[key]:
            log.warning("%s is given, but engine %s does not read it", key, config.engine)
    for key in sorted(given & {"top_p", "top_k"}):
        if config.temperature == 0:
            log.warning("%s is given, but temperature 0 is greedy and does not read it", key)
    unread = {"dataset", "split"} if config.eval_path is not None and config.k_shot == 0 else set()
    for key, source in resolved.sources.items():
        if source.startswith("auto: ") and key not in unread:
            value = getattr(resolved.config, key)
            shown = ",".join(value) if isinstance(value, tuple) else value
            log.info("%s = %s (%s)", key, shown, source.removeprefix("auto: "))
