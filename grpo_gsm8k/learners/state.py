"""A learner's state on disk, in files that can be read without running code.

model.safetensors, config.json …    the weights as a Hugging Face folder (or the adapter as a peft folder), as engines take them
trainer/optimizer.safetensors       step.*, exp_avg.*, exp_avg_sq.* of each weight; master.* where weights are in half precision
trainer/learner.json                steps taken, and what kind of state it is
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpo_gsm8k.errors import ModelError, StorageError
from grpo_gsm8k.learners.optimizer import MasterAdamW
from grpo_gsm8k.runs.storage import storage_error

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FORMAT = 1
TRAINER = "trainer"  # a folder: vLLM takes every .safetensors beside a model for the model's
OPTIMIZER, LEARNER = f"{TRAINER}/optimizer.safetensors", f"{TRAINER}/learner.json"


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Creates the folder `path` and turns what goes wrong in writing to it into a StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise storage_error(path, error) from error
    except SafetensorError as error:
        what = " ".join(str(error).split())
        if f"(os error {errno.ENOSPC})" in what:  # safetensors' writer says the number only in words
            raise storage_error(path, OSError(errno.ENOSPC, what)) from error
        raise StorageError(f"cannot write {path}: {what}; free some space or give another folder") from error


def write_state(path: Path, model: PreTrainedModel, adapted: PeftModel | None, optimizer: MasterAdamW, num_steps: int) -> None:
    """Writes the state into the folder `path`. Raises: StorageError."""
    masters = {f"master.{name}": weight for name, weight in optimizer.masters.items()}
    facts = {"format": FORMAT, "kind": _kind(adapted), "dtype": str(model.dtype).removeprefix("torch."), "num_steps": num_steps}
    with written_to(path):
        if adapted is None:
            model.save_pretrained(path)
        else:
            adapted.save_pretrained(path)
        (path / TRAINER).mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in (optimizer.moments() | masters).items()}, path / OPTIMIZER)
        (path / LEARNER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_state(path: Path, model: PreTrainedModel, adapted: PeftModel | None, optimizer: MasterAdamW) -> int:
    """Takes up the state in the folder `path`; returns the steps taken. Raises: ModelError when it is none of this model."""
    facts = _facts(path)
    own = {"kind": _kind(adapted), "dtype": str(model.dtype).removeprefix("torch.")}
    for key, value in own.items():
        if facts[key] != value:
            raise ModelError(f"the state at {path} has {key} {facts[key]}, this learner {value}; use the options of that run")
    saved = load_file(path / OPTIMIZER, device="cpu")
    masters = {name.removeprefix("master."): tensor for name, tensor in saved.items() if name.startswith("master.")}
    if masters.keys() != optimizer.masters.keys():
        raise ModelError(f"{path / OPTIMIZER} has other master weights; load it into the model that it was saved from")
    if adapted is None:
        _load_weights(model, path)
    else:
        from grpo_gsm8k.learners.lora import load_adapter

        load_adapter(adapted, path)
    optimizer.set_masters(masters)
    optimizer.set_moments({name: tensor for name, tensor in saved.items() if not name.startswith("master.")})
    return int(facts["num_steps"])


def _kind(adapted: PeftModel | None) -> str:
    return "full" if adapted is None else "lora"


def _facts(path: Path) -> Mapping[str, Any]:
    file = path / LEARNER
    if not file.is_file():
        raise ModelError(f"no learner state at {file}; give a folder that save_state wrote")
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if facts.get("format") != FORMAT:
        raise ModelError(f"{file} is of format {facts.get('format')}; this version reads format {FORMAT}")
    return facts


def _load_weights(model: PreTrainedModel, folder: Path) -> None:
    loaded: Any = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    saved, report = loaded
    own, given = model.state_dict(), saved.state_dict()
    same = {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in given.items()}
    if not same or report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise ModelError(f"{folder} is of a model with other weights; load it into the model that it was saved from")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
