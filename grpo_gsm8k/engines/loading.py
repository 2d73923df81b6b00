"""Models and tokenizers from a folder, the hub or the package, with one line said when that cannot be done.

Torch and transformers are imported inside the functions, so that naming this module costs nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_gsm8k.engines.weight_names import some_names
from grpo_gsm8k.errors import EngineError, HubError, ModelError, unknown_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"
DTYPES = ("auto", "bfloat16", "float16", "float32")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def resolve_model_id(model_id: str) -> str:
    """Returns the folder or hub id that `model_id` stands for (`tiny` is the packaged folder).

    Raises: ModelError when it can only be a folder and there is none, or the folder holds no model.
    """
    if model_id == TINY:
        from grpo_gsm8k.models import tiny_path

        return str(tiny_path())
    path = Path(model_id).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise ModelError(f"{model_id!r} is an adapter, not a model: give its base model, and this as the adapter")
            raise ModelError(f"{model_id!r} is not a model folder: it holds no config.json")
        return str(path)
    if path.is_file():
        raise ModelError(f"{model_id!r} is a file; give a model folder or a hub id (owner/name)")
    if model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1:
        raise ModelError(f"no model folder {model_id!r}; give an existing folder, a hub id (owner/name) or {TINY!r}")
    if "/" not in model_id and difflib.get_close_matches(model_id.lower(), [TINY], cutoff=0.6):
        raise ModelError(f"unknown model {model_id!r}; did you mean {TINY!r}? (or a folder, or a hub id, owner/name)")
    return model_id


def load_tokenizer(model_id: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model folder, a hub id or `tiny`.

    Raises: ModelError when the folder has none or it cannot be read; HubError when the hub fails.
    """
    from transformers import AutoTokenizer

    quieten_transformers()
    source = resolve_model_id(model_id)
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"model folder {model_id!r} holds no tokenizer (looked for {', '.join(TOKENIZER_FILES)})")
    try:
        return AutoTokenizer.from_pretrained(source, revision=_revision(source, revision))
    except Exception as error:
        raise load_failure("tokenizer", model_id, revision, error) from error


def load_model(
    model_id: str,
    revision: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Returns the causal language model, in evaluation mode on its device, with `adapter` (PEFT folder) merged in.

    `dtype` "auto" is what the checkpoint was saved in, but float32 on a CPU. `attention` is an attention implementation of
    transformers ("sdpa", "eager" …); None is transformers' own choice.
    Raises: ModelError, HubError; EngineError when the device is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from grpo_gsm8k.engines.adapters import merge_adapter, read_adapter_config

    quieten_transformers()
    place = resolve_device(device)
    source = resolve_model_id(model_id)
    if adapter is not None:
        read_adapter_config(Path(adapter))  # what is wrong with it is said before a large model is read
    kwargs: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=_revision(source, revision),
            dtype=resolve_dtype(dtype, place),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are listed, for us to refuse
            **kwargs,
        )
    except Exception as error:
        raise load_failure("model", model_id, revision, error) from error
    model, report = loaded
    _refuse_misfit(model_id, report)
    if adapter is not None:
        model = merge_adapter(model, Path(adapter))
    placed: PreTrainedModel = torch.nn.Module.to(model, place)
    placed.train(False)
    return placed


def resolve_device(device: str) -> torch.device:
    """Returns the torch device: "auto" is the first CUDA device where there is one, else the CPU.

    Raises: EngineError when CUDA is asked for and absent; ModelError for a name that is no device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise EngineError(f"{device} asked for, but torch sees no CUDA device; give cpu in its place")
        count = torch.cuda.device_count()
        if place.index is not None and place.index >= count:
            raise EngineError(f"{device} asked for, but torch sees {count} CUDA device(s); use cuda:0 to cuda:{count - 1}")
    return place


def resolve_dtype(dtype: str, device: torch.device) -> Any:
    """Returns the torch dtype (or "auto", the checkpoint's own): on a CPU, "auto" is float32. Raises: ModelError."""
    import torch

    if dtype not in DTYPES:
        raise ModelError(unknown_name("dtype", dtype, DTYPES))
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Returns every token id that ends a completion: those of the generation config and the tokenizer's own."""
    found: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        value = getattr(source, "eos_token_id", None)
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(token) for token in value)
    return frozenset(found)


def context_window(model: PreTrainedModel) -> int | None:
    """Returns how many tokens (prompt and completion together) the model takes, or None where its config does not say."""
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def _revision(source: str, revision: str | None) -> str:
    """A folder has no revisions; transformers wants some string."""
    return "main" if revision is None or Path(source).is_dir() else revision


def quieten_transformers() -> None:
    """Keeps transformers' warnings (reports of many lines) and bars off stderr: what matters of them is checked and said by us.

    The environment variable TRANSFORMERS_VERBOSITY still decides where it is set.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not os.environ.get("TRANSFORMERS_VERBOSITY"):
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _refuse_misfit(model_id: str, report: Mapping[str, Any]) -> None:
    """transformers fills what a checkpoint lacks with random numbers, drops what it has no place for, and only warns."""
    says = f"the weights of {model_id!r} do not fit its config"
    if report["missing_keys"]:
        raise ModelError(f"{says}: {some_names(sorted(report['missing_keys']))} missing")
    if report["mismatched_keys"]:
        wrong = [f"{name} is {tuple(there)}, not {tuple(needed)}" for name, there, needed in sorted(report["mismatched_keys"])]
        raise ModelError(f"{says}: {some_names(wrong)}")
    if report["unexpected_keys"]:
        raise ModelError(f"{says}: the model has no {some_names(sorted(report['unexpected_keys']))}")


def load_failure(what: str, model_id: str, revision: str | None, error: Exception) -> ModelError | HubError:
    """Returns in one line why transformers could not load the tokenizer, model or config: its own messages run over many."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{model_id!r}" if revision is None else f"{model_id!r} at revision {revision!r}"
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(link, GatedRepoError) for link in chain):
        return ModelError(f"{at} is gated on the hub: accept its terms there and set HF_TOKEN")
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return ModelError(f"the hub has no such revision: {at}")
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return ModelError(f"the hub has no model {at}; give an existing folder, a hub id (owner/name) or {TINY!r}")
    if any(isinstance(link, HfHubHTTPError) and not isinstance(link, EntryNotFoundError) for link in chain):
        return HubError(f"the hub failed while loading the {what} of {at}: {one_line(error)}")
    if any(isinstance(link, _no_connection()) for link in chain):
        return HubError(
            f"cannot load the {what} of {at}: it is no folder, not in the local cache, and the hub cannot be reached"
        )
    if "above report" in str(error):
        return ModelError(f"cannot load the {what} of {at}: its tensors cannot be converted to this architecture")
    return ModelError(f"cannot load the {what} of {at}: {one_line(error)}")


def _no_connection() -> tuple[type[Exception], ...]:
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, ConnectionError


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Returns an error's message as one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
