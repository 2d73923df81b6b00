"""The scripted engine, which other tests lean on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conformance import CHECKS, Subject
from tiny_models import EOS_ID, make_tokenizer

from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.engines.scripted import ScriptedEngine
from grpo_gsm8k.errors import EngineError
from grpo_gsm8k.types import Completion, Prompt, Sampling

PROMPTS = [Prompt(f"p{i}", (i + 1,)) for i in range(8)]
# A script is sure of itself and says what it likes: it has no randomness of its own to ignore, nor probabilities below 1.
NOT_FOR_A_SCRIPT = ("greedy_ignores_the_seed", "logprobs_are_there_and_are_log_probabilities")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ not in NOT_FOR_A_SCRIPT], ids=lambda check: check.__name__)
def test_engine_conforms(check, tokenizer: Any) -> None:
    texts = {prompt.problem_id: [f"{prompt.problem_id} said in way {way}, at length" for way in range(5)] for prompt in PROMPTS}
    check(Subject(ScriptedEngine(texts, tokenizer), PROMPTS, lambda ids: tokenizer.decode(ids, skip_special_tokens=True)))


def test_texts_are_encoded_ended_and_cut_as_a_models_would_be(tokenizer: Any) -> None:
    engine = ScriptedEngine({"p0": ["1 + 1 = 2. #### 2", "no"]}, tokenizer)
    whole = tuple(tokenizer.encode("1 + 1 = 2. #### 2"))
    (full,) = engine.generate(PROMPTS[:1], Sampling(), [2])
    assert full == Completion((*whole, EOS_ID), (0.0,) * (len(whole) + 1), "eos")
    (cut,) = engine.generate(PROMPTS[:1], Sampling(max_tokens=5), [2])
    assert cut == Completion(whole[:5], (0.0,) * 5, "length")
    (stopped,) = engine.generate(PROMPTS[:1], Sampling(stop=("= 2",)), [0])
    assert stopped == Completion(whole[:9], (0.0,) * 9, "stop")
    (other,) = engine.generate(PROMPTS[:1], Sampling(), [3])
    assert tokenizer.decode(other.token_ids[:-1]) == "no"


def test_a_function_decides_by_prompt_and_seed() -> None:
    engine = ScriptedEngine(lambda prompt, seed: Completion((*prompt.token_ids, seed), (-1.0, -2.0), "eos"))
    assert [c.token_ids for c in engine.generate(PROMPTS[:2], Sampling(), [8, 9])] == [(1, 8), (2, 9)]


def test_without_a_tokenizer_it_gives_text_alone() -> None:
    engine = ScriptedEngine({"p0": "up to here and on"})
    assert engine.generate(PROMPTS[:1], Sampling(stop=("here",)), [0]) == [Completion((), None, "stop", "up to here")]
    assert not engine.capabilities.token_ids


def test_a_problem_that_is_not_in_the_script_is_named() -> None:
    with pytest.raises(EngineError, match="'p1'"):
        ScriptedEngine({"p0": "x"}).generate(PROMPTS[:2], Sampling(), [0, 0])


def test_weights_are_noted_by_version(tmp_path: Path) -> None:
    engine = ScriptedEngine({"p0": "x"})
    engine.load_weights(tmp_path, 4)
    assert engine.describe()["weights_version"] == 4
    with pytest.raises(EngineError, match="no weights folder"):
        engine.load_weights(tmp_path / "absent", 5)
