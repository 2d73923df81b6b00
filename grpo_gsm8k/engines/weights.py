"""New weights for a live model, from a folder of safetensors, with every name and shape checked before any is changed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from grpo_gsm8k.engines.weight_names import some_names
from grpo_gsm8k.errors import ModelError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a Hugging Face folder (one file, or shards with an index). Raises: ModelError."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (path / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ModelError(f"no weights in {str(path)!r}: it holds neither model.safetensors nor an index of shards")
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            with safe_open(path / name, framework="pt") as shard:
                tensors.update({key: shard.get_tensor(key) for key in shard.keys()})  # noqa: SIM118 (it is no mapping)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"weights file {str(path / name)!r} cannot be read: {error}") from error
    return tensors


def copy_weights(model: torch.nn.Module, path: Path) -> None:
    """Copies the weights of the folder `path` into `model`, in the model's own dtype and place.

    Parameters that share memory (tied embeddings) may be saved under one name or, when equal, under each.
    Raises: ModelError, with the model unchanged, when a name or a shape differs.
    """
    new = read_weights(path)
    live = model.state_dict()
    unexpected = sorted(new.keys() - live.keys())
    if unexpected:
        raise ModelError(f"weights in {str(path)!r} do not fit the model: it has no {some_names(unexpected)}")
    by_memory: dict[int, list[str]] = {}
    for name, tensor in live.items():
        by_memory.setdefault(tensor.data_ptr(), []).append(name)
    missing = sorted(names[0] for names in by_memory.values() if not any(name in new for name in names))
    if missing:
        raise ModelError(f"weights in {str(path)!r} do not fit the model: {some_names(missing)} missing")
    misshapen = sorted(name for name, tensor in new.items() if tensor.shape != live[name].shape)
    if misshapen:
        name = misshapen[0]
        raise ModelError(
            f"weights in {str(path)!r} do not fit the model: {name} is {tuple(new[name].shape)}, not {tuple(live[name].shape)}"
        )
    for names in by_memory.values():
        saved = [name for name in names if name in new]
        if any(not torch.equal(new[saved[0]], new[name]) for name in saved[1:]):
            raise ModelError(f"weights in {str(path)!r} differ for {some_names(saved)}, which the model ties together")
    with torch.no_grad():
        for name, tensor in new.items():
            live[name].copy_(tensor)
