"""How much room the published weights of a training run take, and that its leak gate reads all that it trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from grpo_gsm8k.commands.training import TrainEvalSet, check_overlap, published_bytes, read_examples, weights_bytes_of
from grpo_gsm8k.config import SftConfig
from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.errors import ModelError, ProofError
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions


def test_the_size_is_of_the_dtype_that_is_published_and_not_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"weight": torch.zeros(30, 7, dtype=torch.bfloat16), "places": torch.zeros(5, dtype=torch.int64)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert published_bytes(file, 4) == 30 * 7 * 4 + 5 * 8
    assert published_bytes(file, 2) == 30 * 7 * 2 + 5 * 8


def test_what_is_foretold_is_what_is_published(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        learner = NativeLearner.from_pretrained("tiny", LearnerOptions(dtype), device="cpu")
        learner.publish_weights(tmp_path / dtype)
        (file,) = (tmp_path / dtype).glob("*.safetensors")
        foretold = weights_bytes_of("tiny", dtype)
        assert foretold <= file.stat().st_size < 1.05 * foretold  # the header comes on top


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\x00" * 7 + b"[]", b"\x08" + b"\x00" * 7 + b'{"a": 1}'])
def test_a_broken_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        published_bytes(file, 4)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "t", "prompt": "Go on.", "response": "You ask: {question} It is 6."},
        {"id": "t", "messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "{question} 6"}]},
    ],
    ids=["response", "assistant's turn"],
)
def test_an_eval_question_in_a_response_stops_the_run(row: dict[str, Any], tmp_path: Path) -> None:
    question = "Tom has 12 apples. He eats 3 of them every day. How many apples are left after 2 days?"
    (tmp_path / "data.jsonl").write_text(json.dumps(row).replace("{question}", question) + "\n")
    tokenizer = load_tokenizer("tiny", None)
    config = SftConfig(data_path=str(tmp_path / "data.jsonl"))
    eval_set = TrainEvalSet(tmp_path, [], (), {}, [("val/0", question)])
    with pytest.raises(ProofError, match=r"1 trained responses hold questions of the eval set \(t quotes val/0\)"):
        check_overlap(config, read_examples(config, tokenizer), eval_set, tokenizer)
