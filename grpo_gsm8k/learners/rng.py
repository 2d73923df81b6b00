"""The random-number generators of every library, to and from a checkpoint (training itself draws addressed seeds only)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import torch

FILE = "rng.pt"


def save_rng(path: Path) -> None:
    """Writes the states of Python's, NumPy's, torch's and each CUDA device's generators to `path`/rng.pt."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(numpy.array(keys)),
            "rest": [int(position), int(has_gauss), float(cached)],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, path / FILE)


def restore_rng(path: Path) -> None:
    """Takes up what `save_rng` wrote; on fewer CUDA devices than there were, those that are here."""
    state = torch.load(path / FILE, weights_only=True)
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
    position, has_gauss, cached = state["numpy"]["rest"]
    numpy.random.set_state((state["numpy"]["kind"], state["numpy"]["keys"].numpy(), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, index)
