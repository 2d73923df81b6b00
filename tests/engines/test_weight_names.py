"""Whether a folder's weights fit a model, by names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from grpo_gsm8k.engines.weight_names import check_weights_fit, weight_shapes
from grpo_gsm8k.errors import ModelError


def change(folder: Path, **tensors: Any) -> None:
    """Rewrites the folder's tensors; None takes one away."""
    found = load_file(folder / "model.safetensors") | tensors
    save_file({k: v for k, v in found.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_a_model_saved_fits_it(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder = make_model(tmp_path, architecture, tokenizer=False, tie_word_embeddings=tied)
    assert ("lm_head.weight" in weight_shapes(folder)) == (not tied)
    check_weights_fit(folder, AutoConfig.from_pretrained(folder))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole", tokenizer=False)
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weight_shapes(tmp_path / "shards") == weight_shapes(whole)
    check_weights_fit(tmp_path / "shards", AutoConfig.from_pretrained(whole))


def test_each_way_not_to_fit_is_said_in_one_line(tmp_path: Path) -> None:
    import torch

    folder = make_model(tmp_path / "a", tokenizer=False)
    config = AutoConfig.from_pretrained(folder)
    norm = "model.norm.weight"
    for tensors, said in (
        ({"model.extra": torch.zeros(1)}, r"it has no model\.extra$"),
        ({norm: None}, r"model\.norm\.weight missing$"),
        ({norm: torch.zeros(31)}, r"model\.norm\.weight is \(31,\), not \(32,\)$"),
    ):
        other = make_model(tmp_path / "b", tokenizer=False)
        change(other, **tensors)
        with pytest.raises(ModelError, match=said) as caught:
            check_weights_fit(other, config)
        assert "\n" not in str(caught.value)


def test_a_folder_without_weights_or_with_half_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor an index"):
        weight_shapes(tmp_path)
    folder = make_model(tmp_path / "a", tokenizer=False)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        weight_shapes(folder)
