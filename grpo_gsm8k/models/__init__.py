"""Models shipped with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def tiny_path() -> Path:
    """Returns the folder of the shipped tiny model (a Hugging Face folder; see its README.md for the recipe)."""
    return Path(str(files("grpo_gsm8k.models"))) / "tiny"
