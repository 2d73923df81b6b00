"""Whether a folder's weights fit a model, told from names and shapes alone: no tensor is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_gsm8k.errors import ModelError


def check_weights_fit(path: Path, config: Any) -> None:
    """Raises ModelError unless the safetensors in `path` hold exactly the parameters of the model that `config` describes.

    A parameter that the model ties to another one may be left out. (vLLM itself keeps the old values of what is missing.)
    """
    import torch
    from transformers import AutoModelForCausalLM

    found = weight_shapes(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        raise ModelError(f"weights in {str(path)!r} do not fit the model: it has no {some_names(unexpected)}")
    missing = sorted(expected.keys() - found.keys() - model.all_tied_weights_keys.keys())
    if missing:
        raise ModelError(f"weights in {str(path)!r} do not fit the model: {some_names(missing)} missing")
    for name, shape in sorted(found.items()):
        if shape != expected[name]:
            raise ModelError(f"weights in {str(path)!r} do not fit the model: {name} is {shape}, not {expected[name]}")


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor in a Hugging Face folder (one safetensors file, or shards with an index).

    Raises: ModelError when there is none or a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (path / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ModelError(f"no weights in {str(path)!r}: it holds neither model.safetensors nor an index of shards")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        try:
            with safe_open(path / name, framework="pt") as shard:
                shapes.update({key: tuple(shard.get_slice(key).get_shape()) for key in shard.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"weights file {str(path / name)!r} cannot be read: {error}") from error
    return shapes


def some_names(names: list[str], limit: int = 3) -> str:
    """Returns the first `limit` names and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
