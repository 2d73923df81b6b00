"""An adapter is merged whole or refused in one line: part of one would be another model."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model

from grpo_gsm8k.engines.adapters import check_adapter_fits
from grpo_gsm8k.engines.loading import load_model
from grpo_gsm8k.errors import ModelError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), tokenizer=False)


def make_adapter(base: Path, folder: Path, config: Any = None, **saving: Any) -> torch.nn.Module:
    """Saves a random adapter of q_proj and v_proj, or of `config`, and returns the model with it merged in."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = config or LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(load_model(str(base), device="cpu"), config)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1 if "modules_to_save" in name else 0.3)
    wrapped.save_pretrained(folder, **saving)
    return wrapped.merge_and_unload()


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    make_adapter(base, tmp_path / "adapter")
    return tmp_path / "adapter"


def refusals(base: Path, adapter: Path) -> list[str]:
    """What both ways say: of the model itself, and of its config alone (for an engine that loads the adapter itself)."""
    from transformers import AutoConfig

    said = []
    for check in (
        lambda: load_model(str(base), device="cpu", adapter=adapter),
        lambda: check_adapter_fits(adapter, AutoConfig.from_pretrained(base)),
    ):
        with pytest.raises(ModelError) as caught:
            check()
        said.append(str(caught.value))
        assert "\n" not in said[-1] and len(said[-1]) < 500
        assert str(adapter) in said[-1]
    return said


def change_weights(adapter: Path, change: Any) -> None:
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS, metadata={"format": "pt"})


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def adapter_kinds() -> dict[str, Any]:
    from peft import IA3Config, LoraConfig

    return {
        "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "dora, ranks by module": LoraConfig(r=2, use_dora=True, target_modules="all-linear", rank_pattern={"q_proj": 3}),
        "a module saved whole": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "embeddings": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
        "some layers, with bias": LoraConfig(
            r=4, target_modules=["o_proj", "q_proj"], layers_to_transform=[1], bias="lora_only"
        ),
        "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    }


@pytest.mark.parametrize("kind", adapter_kinds())
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_a_whole_adapter_of_any_kind_is_merged(base: Path, tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig

    merged = make_adapter(base, tmp_path / "adapter", adapter_kinds()[kind])
    check_adapter_fits(tmp_path / "adapter", AutoConfig.from_pretrained(base))
    loaded = load_model(str(base), device="cpu", adapter=tmp_path / "adapter").state_dict()
    plain = load_model(str(base), device="cpu").state_dict()
    assert loaded.keys() == plain.keys()
    assert all(torch.allclose(tensor, loaded[name], atol=1e-6) for name, tensor in merged.state_dict().items())
    assert any(not torch.equal(plain[name], tensor) for name, tensor in loaded.items())


def test_weights_that_the_config_asks_for_and_the_file_lacks_are_named(base: Path, adapter: Path) -> None:
    change_weights(adapter, lambda tensors: {name: t for name, t in tensors.items() if "v_proj" not in name})
    for said in refusals(base, adapter):
        assert "it lacks base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight" in said
        assert "and 3 more" in said


def test_weights_that_the_config_does_not_ask_for_are_named(base: Path, adapter: Path) -> None:
    change_config(adapter, target_modules=["q_proj"])
    for said in refusals(base, adapter):
        assert "no place for base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight" in said


def test_a_module_saved_whole_that_the_file_lacks_is_named(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    make_adapter(base, tmp_path / "a", LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    change_weights(tmp_path / "a", lambda tensors: {name: t for name, t in tensors.items() if "lm_head" not in name})
    for said in refusals(base, tmp_path / "a"):
        assert "it lacks base_model.model.lm_head.weight" in said


def test_an_adapter_of_another_base_is_one_line_with_the_shapes(base: Path, tmp_path: Path) -> None:
    wide = make_model(tmp_path / "wide", tokenizer=False, hidden_size=48)
    make_adapter(wide, tmp_path / "a")
    for said in refusals(base, tmp_path / "a"):
        assert "layers.0.self_attn.q_proj.lora_A.weight is [4, 48], not [4, 32]" in said
    deep = make_model(tmp_path / "deep", tokenizer=False, num_hidden_layers=4)
    make_adapter(deep, tmp_path / "b")
    for said in refusals(base, tmp_path / "b"):
        assert "no place for base_model.model.model.layers.3." in said
    for said in refusals(deep, adapter_of(base, tmp_path / "c")):
        assert "it lacks base_model.model.model.layers.3." in said


def adapter_of(base: Path, folder: Path) -> Path:
    make_adapter(base, folder)
    return folder


def test_a_folder_without_weights_is_said_before_the_model_is_read(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / WEIGHTS).unlink()
    for said in refusals(base, adapter):
        assert f"{str(adapter)!r} holds no adapter_model.safetensors" in said
    broken = shutil.copytree(base, adapter.parent / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no adapter_model\.safetensors"):
        load_model(str(broken), device="cpu", adapter=adapter)


@pytest.mark.parametrize("content", ["{not json", "[]", "{}", '{"peft_type": 3}', '{"peft_type": "NEWLORA"}', "\ufeff{"])
def test_a_broken_config_is_one_line_that_names_the_file(base: Path, adapter: Path, content: str) -> None:
    (adapter / CONFIG).write_text(content)
    for said in refusals(base, adapter):
        assert str(adapter / CONFIG) in said


def test_broken_weights_are_one_line(base: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes(b"\0" * 100)
    assert all("does not fit the model" in said for said in refusals(base, adapter))


def test_a_prompt_adapter_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    get_peft_model(load_model(str(base), device="cpu"), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(
        tmp_path / "a"
    )
    assert all("PROMPT_TUNING, which cannot be merged" in said for said in refusals(base, tmp_path / "a"))


def test_what_peft_warns_of_is_one_log_line(base: Path, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_config(adapter, of_a_newer_peft=1)
    with caplog.at_level(logging.WARNING, logger="grpo_gsm8k"):
        load_model(str(base), device="cpu", adapter=adapter)
    (record,) = caplog.records
    assert "of_a_newer_peft" in record.getMessage() and "\n" not in record.getMessage()


def test_an_adapter_given_as_the_model_says_what_to_give(adapter: Path) -> None:
    with pytest.raises(ModelError, match="is an adapter, not a model: give its base model"):
        load_model(str(adapter), device="cpu")
