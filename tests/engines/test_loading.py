"""Models and tokenizers that cannot be had: one line that says why."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from grpo_gsm8k.engines.loading import eos_token_ids, load_model, load_tokenizer, resolve_device
from grpo_gsm8k.engines.transformers import default_batch_size
from grpo_gsm8k.errors import EngineError, HubError, ModelError

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
    assert "model.layers.0.self_attn.q_proj.weight missing" in refusal(load_model, str(tmp_path), device="cpu")


def test_weights_of_another_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    said = refusal(load_model, str(tmp_path), device="cpu")
    assert "model.layers.0.mlp.down_proj.weight is (32, 64), not (32, 48)" in said
    assert "report" not in said


def test_weights_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": config["layer_types"][:2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "the model has no model.layers.2." in refusal(load_model, str(tmp_path), device="cpu")


SAYS_NOTHING = """
import sys
from grpo_gsm8k.engines.loading import load_model, load_tokenizer
from grpo_gsm8k.errors import ModelError
tokenizer = load_tokenizer(sys.argv[1])
tokenizer.model_max_length = 3
assert len(tokenizer.encode("longer than that")) > 3
try:
    load_model(sys.argv[2], device="cpu")
except ModelError as error:
    print(error)
"""


def test_transformers_says_nothing_beside_our_line(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    good, bad = make_model(tmp_path / "good"), make_model(tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    save_file({**tensors, "extra": torch.zeros(2)}, bad / "model.safetensors", metadata={"format": "pt"})

    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    command = [sys.executable, "-c", SAYS_NOTHING, str(good), str(bad)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == f"the weights of {str(bad)!r} do not fit its config: the model has no extra\n"


def test_transformers_may_be_asked_to_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
        load_tokenizer("tiny")
        assert logging.get_verbosity() == logging.INFO
        monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
        load_tokenizer("tiny")
        assert logging.get_verbosity() == logging.ERROR
    finally:
        logging.set_verbosity(before)


def test_a_hub_that_cannot_be_reached_is_the_worlds_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants
    from huggingface_hub.utils import close_session

    from grpo_gsm8k.engines.vllm_setup import read_config

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    for offline in (True, False):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        close_session()
        for load in (load_tokenizer, load_model, lambda name: read_config(name, None)):
            with pytest.raises(HubError, match=r"'nobody/nothing': .*the hub cannot be reached") as caught:
                load("nobody/nothing")
            assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    close_session()


@without_cuda
def test_cuda_asked_for_and_absent_says_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cuda:0 asked for, but torch sees no CUDA device; give cpu in its place"):
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
