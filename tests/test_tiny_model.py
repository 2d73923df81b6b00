"""The shipped tiny model: loads as any Hugging Face model does, covers all text, and is as good as its card says."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_gsm8k.data import word_problems
from grpo_gsm8k.models import tiny_path
from grpo_gsm8k.prompts import render_batch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "build_tiny_model.py"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_path()).eval()


def card_facts(folder: Path) -> dict[str, Any]:
    block = re.search(r"```json\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert block is not None
    facts: dict[str, Any] = json.loads(block[1])
    return facts


def chat_ids(tokenizer: Any, question: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    return ids


def gsm8k_texts(folder: Path) -> list[str]:
    lines = [line for name in ("train", "test") for line in (folder / f"{name}.jsonl").read_text().split("\n") if line]
    rows = [json.loads(line) for line in lines]
    return [row[key] for row in rows for key in ("question", "answer")]


def test_folder_is_small_and_holds_what_loaders_need() -> None:
    files = {file.name: file.stat().st_size for file in tiny_path().iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= set(files)
    assert sum(files.values()) < 1_000_000


def test_model_is_a_qwen2_of_under_a_million_parameters_that_vllm_takes(model: Any) -> None:
    config = model.config
    assert config.architectures == ["Qwen2ForCausalLM"]
    assert sum(p.numel() for p in model.parameters()) == card_facts(tiny_path())["num_parameters"] < 1_000_000
    assert config.hidden_size // config.num_attention_heads == 32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32


def test_end_and_padding_tokens_agree_between_tokenizer_config_and_generation_config(model: Any, tokenizer: Any) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(tokenizer) == model.config.vocab_size


def test_chat_is_rendered_as_chatml_with_no_system_message_of_its_own(tokenizer: Any) -> None:
    text = tokenizer.decode(chat_ids(tokenizer, "How many?"))
    assert text == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"


def test_question_template_renders_the_very_ids_that_the_chat_template_gives(tokenizer: Any) -> None:
    problems = word_problems.generate("test", 20, seed=0)
    rendered = [list(prompt.token_ids) for prompt in render_batch(tokenizer, problems, template="question")]
    assert rendered == [chat_ids(tokenizer, problem.question) for problem in problems]


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    tokens = tokenizer.tokenize("1234 + 56 = 1290, $7,890.12")
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("1234561290789012")


def test_any_text_survives_tokenizing_and_decoding(tokenizer: Any) -> None:
    every_char = "".join(chr(code) for code in [*range(0x250), 0x2028, 0x20AC, 0x4E2D, 0x1F600])
    for text in (every_char, "\u2028", " leading", "trailing \n\n ", "a\r\nb\tc", "do n't , he 's . !"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_all_of_gsm8k_survives_tokenizing_and_fits_the_window_fourfold(tokenizer: Any, model: Any, gsm8k_dir: Path) -> None:
    texts = gsm8k_texts(gsm8k_dir)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert len(texts) == 2 * (7473 + 1319)
    assert tokenizer.batch_decode(encoded) == texts
    assert 4 * max(len(ids) for ids in encoded) < model.config.max_position_embeddings


@torch.inference_mode()
def test_greedy_accuracy_on_held_out_problems_is_what_the_card_says(tokenizer: Any, model: Any) -> None:
    torch.set_num_threads(1)
    problems = word_problems.generate("test", 200, seed=0)
    prompts = tokenizer.pad(
        {"input_ids": [chat_ids(tokenizer, p.question) for p in problems]}, padding_side="left", return_tensors="pt"
    )
    output = model.generate(**prompts, do_sample=False, max_new_tokens=48)
    texts = tokenizer.decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(text.endswith(f"\n#### {p.gold}") for text, p in zip(texts, problems, strict=True)) / len(problems)
    card = card_facts(tiny_path())["accuracy"]["test_greedy"]
    assert 0.30 <= card["accuracy"] <= 0.40
    assert right == pytest.approx(card["accuracy"], abs=0.08)  # 200 of the card's 1,000: within 2.5 standard errors
    assert all(re.fullmatch(r"(\d+ [+-] \d+ = \d+\.[ \n])+#### \d+", text) for text in texts)


def test_card_was_written_with_the_files_beside_it() -> None:
    for name, digest in card_facts(tiny_path())["sha256"].items():
        assert hashlib.sha256((tiny_path() / name).read_bytes()).hexdigest() == digest


def test_path_of_the_model_is_found_without_torch() -> None:
    code = "import sys; from grpo_gsm8k.models import tiny_path; print(tiny_path().is_dir(), 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True False\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rebuild_reaches_the_same_accuracy_and_on_the_same_machine_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "tiny")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "12345"})
    shipped, rebuilt = card_facts(tiny_path()), card_facts(tmp_path / "tiny")
    for name, result in shipped["accuracy"].items():
        assert rebuilt["accuracy"][name]["accuracy"] == pytest.approx(result["accuracy"], abs=0.05)
    assert rebuilt["recipe"] == shipped["recipe"]
    assert rebuilt["versions"]["python"] == platform.python_version()
    assert rebuilt["versions"]["torch"] == version("torch")
    if (rebuilt["versions"], rebuilt["machine"]) != (shipped["versions"], shipped["machine"]):
        pytest.skip("same accuracy; hashes are only comparable on the card's own machine and versions")
    for file in tiny_path().iterdir():
        assert (tmp_path / "tiny" / file.name).read_bytes() == file.read_bytes(), file.name
