"""Models and tokenizers that cannot be had: one line that says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from grpo_gsm8k.engines.loading import eos_token_ids, load_model, load_tokenizer, resolve_device
from grpo_gsm8k.engines.transformers import default_batch_size
from grpo_gsm8k.errors import EngineError, ModelError

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


def refusal(load, *args, **kwargs) -> str:
    with pytest.raises(ModelError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    make_model(tmp_path, tokenizer=False)
    assert f"{str(tmp_path)!r} holds no tokenizer" in refusal(load_tokenizer, str(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    for load in (load_tokenizer, load_model):
        assert f"no model folder {missing!r}" in refusal(load, missing)
    assert "no model folder './nowhere'" in refusal(load_model, "./nowhere")


def test_a_folder_or_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    assert "holds no config.json" in refusal(load_model, str(tmp_path))
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(load_model, str(tmp_path / "file"))


@pytest.mark.parametrize("config", ["{not json", "{}", '{"model_type": "unheard_of"}'])
def test_a_broken_config_is_one_line(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert str(tmp_path) in refusal(load_model, str(tmp_path), device="cpu")


def test_broken_weights_are_one_line(tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    assert "cannot load the model" in refusal(load_model, str(tmp_path), device="cpu")


def test_weights_with_a_name_missing_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.self_attn.q_proj.weight" in refusal(load_model, str(tmp_path), device="cpu")


def test_an_unknown_hub_id_offline_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for load in (load_tokenizer, load_model):
        assert "'nobody/nothing'" in (said := refusal(load, "nobody/nothing"))
        assert "the hub cannot be reached" in said


@without_cuda
def test_cuda_asked_for_and_absent_says_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cuda:0 asked for, but torch sees no CUDA device; use --device cpu"):
        load_model(str(make_model(tmp_path)), device="cuda:0")


def test_a_device_or_dtype_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "'gpu' is not a device" in refusal(resolve_device, "gpu")
    make_model(tmp_path)
    assert "did you mean 'bfloat16'" in refusal(load_model, str(tmp_path), device="cpu", dtype="bfloat")


def test_dtype_auto_is_float32_on_a_cpu_and_what_is_asked_is_got(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    load_model(str(tmp_path / "m"), device="cpu", dtype="bfloat16").save_pretrained(tmp_path / "half")
    shutil.copy(tmp_path / "m" / "tokenizer.json", tmp_path / "half")
    assert load_model(str(tmp_path / "half"), device="cpu").dtype == torch.float32
    assert load_model(str(tmp_path / "half"), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_a_tokenizer_reads_back_what_it_wrote_and_names_its_end(tmp_path: Path) -> None:
    make_model(tmp_path)
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    text = "Ada has 12 pens\u2028and £3 — naïve."
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.eos_token_id in eos_token_ids(load_model(str(tmp_path), device="cpu"), tokenizer)


def test_tiny_is_the_packaged_model() -> None:
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny", device="cpu")
    assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]
    assert default_batch_size(model) == 256
