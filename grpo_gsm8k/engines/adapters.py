"""PEFT adapters: read from a folder, checked against the model name by name, and merged into it.

PEFT itself only warns of weights that its config asks for and the file lacks, and says nothing of weights that it has no place
for: either would be an evaluation of another model than the one asked for.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from grpo_gsm8k.engines.loading import one_line
from grpo_gsm8k.engines.weight_names import some_names
from grpo_gsm8k.errors import ModelError

log = logging.getLogger("grpo_gsm8k")

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MISSHAPEN = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\) from checkpoint, .*? torch\.Size\((.*?)\)")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Returns the adapter_config.json of a PEFT adapter folder that holds weights too. Raises: ModelError."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelError(f"{str(folder)!r} is not a PEFT adapter folder: it holds no {CONFIG_FILE}")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} is not JSON that can be read: {one_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelError(f"{str(path)!r} is no adapter's config: it names no peft_type")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ModelError(f"adapter {str(folder)!r} holds no {WEIGHT_FILES[0]} (and no {WEIGHT_FILES[1]})")
    return config


def merge_adapter(model: Any, folder: Path) -> Any:
    """Returns `model` with the adapter of `folder` merged into its weights.

    Raises: ModelError when the folder is no adapter, or its weights are not exactly those that its config asks of this model.
    """
    wrapped = _attach(model, folder)
    try:
        return wrapped.merge_and_unload()
    except Exception as error:
        raise ModelError(f"adapter {str(folder)!r} cannot be merged into the model: {one_line(error)}") from error


def check_adapter_fits(folder: Path, config: Any) -> None:
    """Raises ModelError unless the adapter of `folder` fits the model that `config` describes, of which no weight is needed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    _attach(model, folder)


def _attach(model: Any, folder: Path) -> Any:
    from peft import PeftConfig, PeftModel

    read_adapter_config(folder)
    name = str(folder)
    on_meta = model.device.type == "meta"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            config = PeftConfig.from_pretrained(name)
        except Exception as error:
            raise ModelError(f"{str(folder / CONFIG_FILE)!r} cannot be used: {one_line(error)}") from error
        if config.is_prompt_learning or config.is_adaption_prompt:
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise ModelError(f"adapter {name!r} is {kind}, which cannot be merged into weights; use LoRA or the like")
        try:
            wrapped: Any = PeftModel(model, config, low_cpu_mem_usage=on_meta)
            found = wrapped.load_adapter(
                name,
                "default",
                torch_device="cpu",
                low_cpu_mem_usage=on_meta,
                key_mapping=getattr(model, "_checkpoint_conversion_mapping", {}),
            )
        except Exception as error:
            raise _misfit(name, error) from error
    for warning in said:
        log.warning("adapter %s: %s", name, one_line(warning.message))
    if found.missing_keys:
        raise ModelError(f"adapter {name!r} is not whole: it lacks {_saved_names(found.missing_keys)}, asked for by its config")
    if found.unexpected_keys:
        raise ModelError(
            f"adapter {name!r} does not fit the model: its config and the model have no place for "
            f"{_saved_names(found.unexpected_keys)}"
        )
    return wrapped


def _misfit(name: str, error: Exception) -> ModelError:
    if isinstance(error, KeyError):  # a module saved whole (modules_to_save) is looked up by name
        return ModelError(f"adapter {name!r} is not whole: it lacks {error.args[0]}, asked for by its config")
    shapes = _MISSHAPEN.findall(str(error))
    if shapes:
        wrong = [f"{_saved_name(key)} is {there}, not {needed}" for key, there, needed in sorted(shapes)]
        return ModelError(f"adapter {name!r} does not fit the model: {some_names(wrong, 2)}")
    return ModelError(f"adapter {name!r} does not fit the model: {one_line(error)}")


def _saved_names(keys: list[str]) -> str:
    return some_names(sorted(map(_saved_name, keys)))


def _saved_name(key: str) -> str:
    """The name in the file, which says nothing of the name that PEFT gives an adapter on loading."""
    return key.replace(".default", "", 1)
