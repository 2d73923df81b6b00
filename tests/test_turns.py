"""What is written between turns: chat templates that can be extended, those that cannot, and text that goes on in its place."""

from __future__ import annotations

import importlib.util
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from grpo_gsm8k.envs.registry import make_env
from grpo_gsm8k.errors import ConfigError, ProofError
from grpo_gsm8k.models import tiny_path
from grpo_gsm8k.prompts import Template, load_template
from grpo_gsm8k.turns import InlineRenderer, TurnRenderer, observation_renderer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
STRIPS_THINKING = (
    "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
COUNTS_MESSAGES = "{{ messages | length }} messages\n" + CHATML
MARKS_THE_LAST = CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ ' (now)' if loop.last else '' }}")
UPPER_CASE = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper if m['role'] == 'assistant' else m['content'] }}")
NUMBERS_TURNS = CHATML.replace(
    "<|im_start|>{{ m['role'] }}\n", "<|im_start|>{{ m['role'] }}{{ loop.index if m['role'] == 'user' }}\n"
)
NO_END_TOKEN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
SPECIAL_TOKEN = re.compile(r"<\|?[a-z_]+\|>|<(?:bos|start_of_turn|end_of_turn)>")


def tokenizer_of(chat_template: str | None) -> Any:
    """The tiny model's tokenizer under a chat template and the special tokens that it names."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    named = sorted(set(SPECIAL_TOKEN.findall(chat_template or "")))
    tokenizer.add_special_tokens({"additional_special_tokens": named})
    tokenizer.chat_template = chat_template
    return tokenizer


def published(name: str) -> str:
    """A chat template as a model was published with it; TRL carries them."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def template_of(system: str | None = None) -> Template:
    return Template("mine", "chat", "", system, (), None, "{question}", "")


def render(tokenizer: Any, *texts: str) -> list[int]:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("chat_template", "between", "end"),
    [
        (CHATML, "<|im_end|>\n<|im_start|>user\n17<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        (
            LLAMA_3,
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n17<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
        (GEMMA, "<end_of_turn>\n<start_of_turn>user\n17<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
    ],
    ids=["chatml", "llama-3", "gemma"],
)
def test_what_stands_between_two_turns_is_what_the_chat_template_writes(chat_template: str, between: str, end: str) -> None:
    tokenizer = tokenizer_of(chat_template)
    renderer = TurnRenderer(tokenizer, template_of())
    token_ids = renderer.extend("17", eos_token_id=None)
    assert tokenizer.decode(list(token_ids)) == between
    assert tokenizer.convert_ids_to_tokens(renderer.end_token_id) == end
    assert renderer.extend("17", eos_token_id=renderer.end_token_id) == token_ids[1:]
    assert token_ids[0] == renderer.end_token_id
    another = renderer.end_token_id + 1
    assert renderer.extend("17", eos_token_id=another) == token_ids, "another end token does not stand in for the template's"


@pytest.mark.parametrize("chat_template", [CHATML, LLAMA_3, GEMMA], ids=["chatml", "llama-3", "gemma"])
def test_prompt_turns_and_observations_joined_are_the_tokens_of_the_whole_conversation(chat_template: str) -> None:
    tokenizer = tokenizer_of(chat_template)
    renderer = TurnRenderer(tokenizer, template_of())
    texts = ["Mia has 12 cups.", "12 + 5 =", "17", "17 - 8 =", "error: no\nresult", "<think>hm</think>\n\n#### 9", "next"]
    joined = render(tokenizer, texts[0])
    for turn, observation in zip(texts[1::2], texts[2::2], strict=True):
        joined += tokenizer(turn, add_special_tokens=False)["input_ids"]
        joined += renderer.extend(observation, eos_token_id=None)
    assert joined == render(tokenizer, *texts)


def test_the_observation_is_written_as_the_chat_template_writes_it() -> None:
    trims = tokenizer_of(LLAMA_3)
    renderer = TurnRenderer(trims, template_of())
    assert renderer.extend("  17 \n", eos_token_id=None) == renderer.extend("17", eos_token_id=None)
    keeps = TurnRenderer(tokenizer_of(CHATML), template_of())
    assert keeps.extend(" 17", eos_token_id=None) != keeps.extend("17", eos_token_id=None)


def test_a_system_message_of_the_template_goes_along() -> None:
    tokenizer = tokenizer_of(CHATML)
    with_system = TurnRenderer(tokenizer, template_of("Be brief."))
    assert with_system.extend("17", eos_token_id=None) == TurnRenderer(tokenizer, template_of()).extend("17", eos_token_id=None)
    with pytest.raises(ConfigError, match="chat template refuses template 'mine': System role not supported"):
        TurnRenderer(tokenizer_of(GEMMA), template_of("Be brief."))


@pytest.mark.parametrize(
    ("chat_template", "reason"),
    [
        (STRIPS_THINKING, "takes the thinking out of earlier turns"),
        (OPENS_THINKING, "writes the conversation differently when another turn follows"),
        (COUNTS_MESSAGES, "writes the conversation differently when another turn follows"),
        (MARKS_THE_LAST, "writes the conversation differently when another turn follows"),
        (UPPER_CASE, "alters the text of earlier turns"),
        (NUMBERS_TURNS, "writes a later turn differently from the first"),
        (NO_END_TOKEN, "does not end an assistant's turn with a token of its own"),
    ],
)
def test_a_chat_template_that_cannot_be_extended_is_refused_with_the_reason(chat_template: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        TurnRenderer(tokenizer_of(chat_template), template_of())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3_1", "gemma", "gemma3", "phi3"])
def test_published_chat_templates_that_only_add_are_taken(name: str) -> None:
    tokenizer = tokenizer_of(published(name))
    ends = {"llama3_1": "<|eot_id|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "phi3": "<|end|>"}
    renderer = TurnRenderer(tokenizer, template_of())
    assert tokenizer.convert_ids_to_tokens(renderer.end_token_id) == ends.get(name, "<|im_end|>")


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "qwen3_5_think", "gemma4", "gptoss", "lfm2_2_5"])
def test_published_chat_templates_that_rewrite_earlier_turns_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer's chat template (takes|alters|writes)"):
        TurnRenderer(tokenizer_of(published(name)), template_of())


def test_a_text_template_and_a_tokenizer_without_a_chat_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="template 'none' is plain text, which has no user's message"):
        TurnRenderer(tokenizer_of(CHATML), load_template("none"))
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        TurnRenderer(tokenizer_of(None), template_of())


def test_inline_text_is_tokenised_as_it_stands_in_the_published_answer() -> None:
    tokenizer = tokenizer_of(CHATML)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    renderer = InlineRenderer(tokenizer)
    joined = [*encode("12 + 5 ="), *renderer.extend(" 17", eos_token_id=None), *encode(". 17 - 8 =")]
    assert joined == encode("12 + 5 = 17. 17 - 8 =")


def test_inline_text_after_a_turn_that_the_model_ended_is_refused() -> None:
    with pytest.raises(ProofError, match="cannot follow a turn that the model ended itself"):
        InlineRenderer(tokenizer_of(CHATML)).extend(" 17", eos_token_id=2)


def test_an_environment_gets_the_renderer_that_it_needs() -> None:
    tokenizer, template = tokenizer_of(CHATML), load_template("question")
    sizes = {"num_train": 1, "num_val": 0, "num_test": 0}
    assert isinstance(observation_renderer(make_env("calculator", **sizes), tokenizer, template), TurnRenderer)
    inline = make_env("calculator_inline", **sizes)
    assert isinstance(observation_renderer(inline, tokenizer, template), InlineRenderer)
    assert isinstance(observation_renderer(inline, tokenizer, load_template("none")), InlineRenderer)
    single = make_env("tiny", splits={"train": []} | {"test": make_env("calculator", **sizes).problems("train")})
    assert observation_renderer(single, tokenizer, template) is None
