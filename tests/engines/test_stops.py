"""Stop strings, with a tokenizer of one token a byte, so that every string spans many tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import EOS_ID, make_tokenizer

from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.engines.stops import StopStrings


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return load_tokenizer(str(folder))


def first_stop(tokenizer: Any, ids: list[int], stops: tuple[str, ...]) -> int | None:
    """Returns how many tokens there were when a stop string was first seen."""
    scan = StopStrings(tokenizer, stops)
    return next((count for count in range(1, len(ids) + 1) if scan.completed_by(ids[:count])), None)


def test_a_stop_string_is_found_at_the_token_that_completes_it(tokenizer: Any) -> None:
    ids = tokenizer.encode("so <answer>18</answer> and", add_special_tokens=False)
    assert first_stop(tokenizer, ids, ("</answer>",)) == len("so <answer>18</answer>")
    assert first_stop(tokenizer, ids, ("nowhere", "> a", "and")) == len("so <answer>18</answer> a")
    assert first_stop(tokenizer, ids, ("</answers>",)) is None


def test_a_stop_string_of_many_bytes_a_character_is_found(tokenizer: Any) -> None:
    ids = tokenizer.encode("número 18 → 答案。done", add_special_tokens=False)
    assert first_stop(tokenizer, ids, ("答案。",)) == len("número 18 → 答案。".encode())


def test_a_stop_string_of_spaces_is_found(tokenizer: Any) -> None:
    ids = tokenizer.encode("a\n\nb", add_special_tokens=False)
    assert first_stop(tokenizer, ids, ("\n\n",)) == 3


def test_special_tokens_are_no_text(tokenizer: Any) -> None:
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in ("x EN", "D"))
    ids = [*before, *[EOS_ID + 1] * 40, *after]
    assert first_stop(tokenizer, ids, ("END",)) == len(ids)
    assert first_stop(tokenizer, ids, ("<|start|>",)) is None


def test_a_merged_token_may_hold_more_than_the_end_of_the_stop_string() -> None:
    """With tokens of several characters the completing token is kept whole."""
    tokenizer = load_tokenizer("tiny")
    ids = tokenizer.encode("12 + 5 = 17. So #### 17\nQuestion: more", add_special_tokens=False)
    at = first_stop(tokenizer, ids, ("\nQ",))
    assert at is not None
    assert "\nQ" in tokenizer.decode(ids[:at])
    assert "\nQ" not in tokenizer.decode(ids[: at - 1])


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab→ \n", max_size=40), stop=st.text(alphabet="ab→ \n", min_size=1, max_size=4))
def test_it_agrees_with_a_search_of_the_whole_text(tokenizer: Any, text: str, stop: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    wanted = next((n for n in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:n])), None)
    assert first_stop(tokenizer, ids, (stop,)) == wanted
