"""Lines to token sequences: the tokens that an engine samples from and would have sampled, and which of them are trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.prompts import render_batch
from grpo_gsm8k.tokenize import TokenSequence
from grpo_gsm8k.training_data.examples import ExampleReader

REASONING = (  # as Qwen3: earlier turns lose what they thought
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHOUTING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | upper }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(tokenizer: Any, *rows: dict[str, Any], special_tokens: str = "auto") -> list[TokenSequence]:
    reader = ExampleReader(tokenizer, special_tokens)
    return reader.encode([reader.parse(row, number, "d.jsonl", "d") for number, row in enumerate(rows, start=1)])


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def trained_text(tokenizer: Any, sequence: TokenSequence) -> str:
    chosen = [token for token, trained in zip(sequence.token_ids, sequence.trained, strict=True) if trained]
    return str(tokenizer.decode(chosen))


@pytest.mark.parametrize("template", ["question", "qwen_math_cot", "r1_zero", "none"])
@pytest.mark.parametrize("which", ["tokenizer", "bos_tokenizer"])
def test_prompt_tokens_are_those_that_are_sampled_from(which: str, template: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(which)
    (prompt,) = render_batch(tokenizer, ["Ada has 3 pens. How many?"], template=template)
    (sequence,) = read(tokenizer, {"prompt": prompt.text, "response": "3.\n#### 3"})
    num = len(prompt.token_ids)
    assert sequence.token_ids[:num] == prompt.token_ids
    assert list(sequence.token_ids[num:]) == [*ids(tokenizer, "3.\n#### 3"), tokenizer.eos_token_id]
    assert sequence.trained == (False,) * num + (True,) * (len(sequence.token_ids) - num)


def test_the_bos_is_added_to_plain_text_only_unless_it_is_asked_for(bos_tokenizer: Any) -> None:
    bos = bos_tokenizer.bos_token_id
    pair = {"prompt": "Ada", "response": "7"}
    marked = {"prompt": "<s>Ada", "response": "7"}
    assert [s.token_ids.count(bos) for s in read(bos_tokenizer, pair, marked)] == [1, 1]
    assert [s.token_ids.count(bos) for s in read(bos_tokenizer, pair, marked, special_tokens="none")] == [0, 1]
    assert [s.token_ids.count(bos) for s in read(bos_tokenizer, pair, marked, special_tokens="add")] == [1, 2]


def test_an_end_token_that_the_response_has_already_is_not_put_twice(tokenizer: Any) -> None:
    without, with_end = read(tokenizer, {"prompt": "a", "response": "7"}, {"prompt": "a", "response": "7<|im_end|>"})
    assert without.token_ids == with_end.token_ids and without.trained == with_end.trained


def test_a_chat_is_the_prompt_that_is_sampled_from_then_the_turn_with_its_end_token(tokenizer: Any) -> None:
    (prompt,) = render_batch(tokenizer, ["How many?"], template="question")
    chat = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "7 cups."}]
    from_chat, from_pair = read(tokenizer, {"messages": chat}, {"prompt": prompt.text, "response": "7 cups."})
    assert from_chat.token_ids == from_pair.token_ids and from_chat.trained == from_pair.trained


@pytest.mark.parametrize("which", ["tokenizer", "bos_tokenizer"])
def test_every_assistant_turn_is_trained_with_its_end_token_and_nothing_else(
    which: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(which)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "7."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    (sequence,) = read(tokenizer, {"messages": chat})
    assert trained_text(tokenizer, sequence) == "7.<|im_end|>Yes.<|im_end|>"
    whole = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
    assert tokenizer.decode(list(sequence.token_ids)) == whole
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert list(sequence.token_ids[: len(ids(tokenizer, prompt))]) == ids(tokenizer, prompt)
    assert not any(sequence.trained[: len(ids(tokenizer, prompt))])


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (REASONING, r"d.jsonl:1: the chat template rewrites what came before it"),
        (NO_END, r"d.jsonl:1: the chat template ends an assistant's turn with no special token"),
        (SHOUTING, r"d.jsonl:1: the chat template does not write the assistant's content as it is given \(message 2\)"),
        (
            "{{ raise_exception('no systems here') }}",
            r"d.jsonl:1: the tokenizer's chat template refuses the messages: no systems",
        ),
        (None, r"d.jsonl:1: has 'messages', but the tokenizer has no chat template"),
    ],
)
def test_a_chat_template_whose_turns_cannot_be_told_apart_is_refused(template: str | None, says: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    chat = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "<think>3 + 4</think>seven"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    with pytest.raises(DataError, match=says):
        read(tokenizer, {"messages": chat})


def test_a_reasoning_template_is_taken_where_the_chat_has_one_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = REASONING
    chat = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "<think>3 + 4</think>seven"}]
    (sequence,) = read(tokenizer, {"messages": chat})
    assert trained_text(tokenizer, sequence) == "<think>3 + 4</think>seven<|im_end|>"


USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p"}, "no 'response'"),
        ({"prompt": "p", "response": ""}, "'response' is empty; nothing of it could be trained"),
        ({"prompt": " ", "response": "r"}, "'prompt' is empty"),
        ({"prompt": "p", "response": 7}, "'response' is 7; text is needed"),
        ({"prompt": "p", "response": "a<|im_end|>b"}, "holds the end token '<|im_end|>' before its end"),
        ({"prompt": "p", "response": "r", "messages": [USER]}, "a pair or a chat, not both"),
        ({"prompt": "p", "response": "r", "id": ""}, "'id' is ''"),
        ({"question": "p"}, "there is: question"),
        ({"messages": []}, "a list of objects"),
        ({"messages": [USER]}, "the last message is of 'user', so its tokens train nothing"),
        ({"messages": [ASSISTANT]}, "the first message is the assistant's"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2: no 'content'"),
        ({"messages": [USER, "a"]}, "message 2 is str"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(row: dict[str, Any], says: str, tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        ExampleReader(tokenizer).parse(row, 17, "d.jsonl", "d")
    assert str(caught.value).startswith("d.jsonl:17: ") and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_are_given_or_made_of_place_and_text(tokenizer: Any, jsonl: Callable[..., Path]) -> None:
    first, second, third = read(
        tokenizer,
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "response": "s"},
        {"prompt": "p", "response": "r", "id": "mine"},
    )
    assert first.id.startswith("d/00000-") and second.id.startswith("d/00001-") and third.id == "mine"
    assert first.id[-8:] != second.id[-8:]
    assert json.dumps(first.id)
