"""Prompts: what each template renders to, how shots are drawn, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k import prompts
from grpo_gsm8k.errors import PromptError
from grpo_gsm8k.types import Problem

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALL = ["baseline", "concise", "none", "question", "qwen_math_cot", "r1_zero", "step_by_step"]
TRAIN = [
    Problem("train-0", "How many legs have 3 cats?", "Each cat has 4, so 3*4=<<3*4=12>>12 legs.\n#### 12", "12"),
    Problem("train-1", "What is 2 plus {examples}?", "2+2=<<2+2=4>>4\n#### 4", "4"),
    Problem("train-2", "Ann has 5 figs and eats 1. How many are left?", "5-1=<<5-1=4>>4 figs.\n#### 4", "4"),
    Problem("train-3", "A dozen eggs and 2 more?", "12+2=<<12+2=14>>14\n#### 14", "14"),
]


def byte_tokenizer(chat_template: str | None = CHATML, bos: bool = False) -> Any:
    """A real fast tokenizer over bytes; with `bos` it puts <s> before plain text, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|im_start|>", "<|im_end|>", "<s>"]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(specials + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", bos_token="<s>" if bos else None)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = chat_template
    return fast


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def own_template(folder: Path, front: str, body: str) -> Path:
    path = folder / "mine.txt"
    path.write_text(f"+++\n{front}\n+++\n{body}\n", encoding="utf-8")
    return path


def test_the_shipped_templates_are_listed_with_a_description_each() -> None:
    listed = prompts.list_templates()
    assert list(listed) == ALL
    assert all(listed.values())


def test_qwen_math_cot_is_the_system_message_then_the_question(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["What is 1 + 1?"], template="qwen_math_cot")
    system = r"Please reason step by step, and put your final answer within \boxed{}."
    assert prompt.text == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.messages == ({"role": "system", "content": system}, {"role": "user", "content": "What is 1 + 1?"})
    assert prompt.problem_id == "question-0"


def test_question_is_exactly_one_user_message(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["What is 1 + 1?"], template="question")
    assert prompt.messages == ({"role": "user", "content": "What is 1 + 1?"},)
    assert prompt.text == "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"


def test_none_is_the_question_alone(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["What is 1 + 1?"], template="none")
    assert (prompt.text, prompt.messages) == ("What is 1 + 1?", ())


def test_r1_zero_opens_the_think_tag_and_stops_at_the_answer_tag(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["What is 1 + 1?"], template="r1_zero")
    assert prompt.text.endswith("\n\nUser: What is 1 + 1?\nAssistant: <think>")
    assert prompts.load_template("r1_zero").stop == ("</answer>",)


@pytest.mark.parametrize("name", ["baseline", "step_by_step", "concise"])
def test_the_few_shot_styles_solve_their_own_examples_rightly(name: str, tokenizer: Any, gsm8k_dir: Path) -> None:
    """Every `a = b` in the examples holds, the last one is the #### answer, and no question is GSM8K's."""
    body = prompts.load_template(name).body
    solved = body.split("Question: ")[1:-1]
    assert len(solved) == 4
    published = (gsm8k_dir / "train.jsonl").read_text("utf-8") + (gsm8k_dir / "test.jsonl").read_text("utf-8")
    for example in solved:
        question, _, answer = example.partition("\nAnswer:")
        sums = re.findall(r"(\d[\d */+-]*) = (\d+)", answer)
        assert sums
        assert all(eval(left) == int(right) for left, right in sums)
        assert re.findall(r"#### (\d+)", answer) == [sums[-1][1]]
        assert question not in published
    [prompt] = prompts.render_batch(tokenizer, ["Q?"], template=name)
    assert "{" not in prompt.text
    assert prompt.text.splitlines()[-2] == "Question: Q?"


@pytest.mark.parametrize("name", ALL)
def test_the_token_ids_decode_to_the_text_for_all_of_gsm8k_test(name: str, tokenizer: Any, gsm8k_dir: Path) -> None:
    rows = (gsm8k_dir / "test.jsonl").read_text("utf-8").split("\n")
    parsed = [json.loads(row) for row in rows if row]
    problems = [Problem(f"test-{i}", row["question"], row["answer"], "0") for i, row in enumerate(parsed)]
    rendered = prompts.render_batch(tokenizer, problems, template=name)
    assert [prompt.problem_id for prompt in rendered] == [problem.id for problem in problems]
    assert len(rendered) == 1319
    for prompt, problem in zip(rendered, problems, strict=True):
        assert problem.question in prompt.text
    for prompt in rendered[::10]:
        assert tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False) == prompt.text


def test_the_packaged_tiny_tokenizer_takes_every_template_and_all_of_gsm8k_test(gsm8k_dir: Path) -> None:
    from transformers import AutoTokenizer

    tiny = AutoTokenizer.from_pretrained(Path(prompts.__file__).with_name("models") / "tiny")
    rows = (gsm8k_dir / "test.jsonl").read_text("utf-8").split("\n")
    questions = [json.loads(row)["question"] for row in rows if row]
    for prompt, question in zip(prompts.render_batch(tiny, questions, template="question"), questions, strict=True):
        assert prompt.text == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert tiny.decode(list(prompt.token_ids)) == prompt.text
    for name in ALL:
        [prompt] = prompts.render_batch(tiny, questions[:1], template=name)
        assert tiny.decode(list(prompt.token_ids)) == prompt.text


def test_chat_markers_become_single_special_tokens_and_are_not_doubled(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["Hi?"], template="question")
    ids = prompt.token_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    with_bos = byte_tokenizer(chat_template="<s>" + CHATML, bos=True)
    [prompt] = prompts.render_batch(with_bos, ["Hi?"], template="question")
    assert prompt.token_ids.count(2) == 1
    assert prompt.token_ids[0] == 2


def test_plain_text_gets_the_tokenizers_bos_exactly_once(tmp_path: Path) -> None:
    with_bos = byte_tokenizer(bos=True)
    [prompt] = prompts.render_batch(with_bos, ["Hi?"], template="none")
    assert prompt.token_ids[0] == 2
    assert prompt.token_ids.count(2) == 1
    mine = own_template(tmp_path, 'kind = "text"', "<s>{question}")
    [same] = prompts.render_batch(with_bos, ["Hi?"], template=mine)
    assert same.token_ids == prompt.token_ids


def test_braces_in_the_body_and_slots_in_the_question_are_left_alone(tokenizer: Any, tmp_path: Path) -> None:
    front = "kind = \"text\"\nshot = 'S:{question}={gold};'"
    mine = own_template(tmp_path, front, r"\frac{1}{2} {x} {{question}} {examples}")
    hostile = "solve {examples} and {question} \\boxed{}"
    [prompt] = prompts.render_batch(tokenizer, [hostile], template=mine, k_shot=1, shots=[TRAIN[1]])
    assert prompt.text == r"\frac{1}{2} {x} {" + hostile + "} S:What is 2 plus {examples}?=4;"


def test_shots_of_a_chat_are_earlier_turns_without_annotations(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["Q?"], template="qwen_math_cot", k_shot=1, shots=[TRAIN[0]])
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[2]["content"] == "Each cat has 4, so 3*4=12 legs.\nThe final answer is $\\boxed{12}$."
    [plain] = prompts.render_batch(tokenizer, ["Q?"], template="question", k_shot=1, shots=[TRAIN[0]])
    assert plain.messages[1]["content"] == "Each cat has 4, so 3*4=12 legs.\n#### 12"


def test_shots_stand_where_the_text_template_says(tokenizer: Any) -> None:
    [prompt] = prompts.render_batch(tokenizer, ["Q?"], template="r1_zero", k_shot=1, shots=[TRAIN[0]])
    assert prompt.text.endswith(
        "\n\nUser: How many legs have 3 cats?\nAssistant: <think> Each cat has 4, so 3*4=12 legs. </think>"
        " <answer> 12 </answer>\n\nUser: Q?\nAssistant: <think>"
    )


def shot_order(tokenizer: Any, question: str, **options: Any) -> list[str]:
    [prompt] = prompts.render_batch(tokenizer, [question], template="question", **options)
    return [message["content"] for message in prompt.messages if message["role"] == "user"][:-1]


def test_the_draw_depends_on_the_seed_alone(tokenizer: Any) -> None:
    first = shot_order(tokenizer, "Q?", k_shot=3, shots=TRAIN, seed=1)
    assert shot_order(tokenizer, "Another?", k_shot=3, shots=TRAIN[::-1], seed=1) == first
    assert shot_order(tokenizer, "Q?", k_shot=2, shots=TRAIN, seed=1) == first[:2]
    assert len({tuple(shot_order(tokenizer, "Q?", k_shot=3, shots=TRAIN, seed=seed)) for seed in range(8)}) > 1


def test_a_problem_is_never_its_own_shot(tokenizer: Any) -> None:
    others = shot_order(tokenizer, "Q?", k_shot=3, shots=TRAIN, seed=1)
    asked = "  " + others[0].upper() + " "
    own = shot_order(tokenizer, asked, k_shot=3, shots=TRAIN, seed=1)
    assert own[:2] == others[1:]
    assert others[0] not in own
    assert len(set(own)) == 3
    with pytest.raises(PromptError, match="no other is left to be shot 4"):
        shot_order(tokenizer, asked, k_shot=4, shots=TRAIN, seed=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k_shot": 2}, "needs training problems"),
        ({"k_shot": 2, "shots": []}, "needs training problems"),
        ({"k_shot": 5, "shots": TRAIN}, "more than the 4"),
        ({"k_shot": 2, "shots": [TRAIN[0], TRAIN[0]]}, "more than the 1"),
        ({"k_shot": -1}, "0 or more"),
        ({"k_shot": 1, "shots": TRAIN, "template": "none"}, "no place for examples"),
    ],
)
def test_shots_that_cannot_be_had_are_refused(options: dict[str, Any], says: str, tokenizer: Any) -> None:
    with pytest.raises(PromptError, match=says):
        prompts.render_batch(tokenizer, ["Q?"], **options)


def test_an_unknown_template_names_the_nearest(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match=r"unknown template 'r1-zero'; did you mean 'r1_zero'\?"):
        prompts.render_batch(tokenizer, ["Q?"], template="r1-zero")
    with pytest.raises(PromptError, match="cannot be read"):
        prompts.load_template("no/such/template.txt")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{question}\n", "must start with"),
        (b"+++\nkind = chat\n+++\n{question}\n", "not TOML"),
        (b'+++\nkind = "chats"\n+++\n{question}\n', "kind must be"),
        (b'+++\nkind = "text"\nstops = []\n+++\n{question}\n', "did you mean 'stop'"),
        (b'+++\nkind = "text"\nstop = "x"\n+++\n{question}\n', "stop must be a list"),
        (b'+++\nkind = "text"\nstop = [""]\n+++\n{question}\n', "non-empty"),
        (b'+++\nkind = "text"\nsystem = "x"\n+++\n{question}\n', "no system message"),
        (b'+++\nkind = "text"\n+++\nno slot\n', "must hold {question}"),
        (b'+++\nkind = "text"\n+++\n{examples}{question}\n', "how a shot is written"),
        (b'+++\nkind = "text"\n+++\n\xff{question}\n', "not UTF-8"),
    ],
)
def test_a_file_that_is_no_template_says_why_in_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=says) as raised:
        prompts.load_template(path)
    assert "\n" not in str(raised.value)


def test_the_hash_is_of_the_files_bytes_and_line_ends_do_not_reach_the_prompt(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b'+++\r\nkind = "text"\r\n+++\r\nA\r\n{question}\r\n')
    assert prompts.template_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert prompts.render_batch(tokenizer, ["Q?"], template=path)[0].text == "A\nQ?"


def test_a_chat_needs_a_chat_template() -> None:
    bare = byte_tokenizer(chat_template=None)
    with pytest.raises(PromptError, match="has no chat template"):
        prompts.render_batch(bare, ["Q?"], template="question")
    assert prompts.render_batch(bare, ["Q?"], template="none")[0].text == "Q?"


def test_without_a_tokenizer_a_chat_is_messages_alone_and_plain_text_is_refused() -> None:
    [prompt] = prompts.render_batch(None, ["Q?"], template="qwen_math_cot", window=1)
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert prompt.token_ids == ()
    assert prompt.text.endswith("\n\nuser: Q?")
    with pytest.raises(PromptError, match="needs a tokenizer"):
        prompts.render_batch(None, ["Q?"], template="none")


def test_a_chat_template_that_refuses_a_system_message_is_an_error_not_a_crash() -> None:
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    strict = byte_tokenizer(refusal + CHATML)
    with pytest.raises(PromptError, match=r"question-0: .*no system role"):
        prompts.render_batch(strict, ["Q?"], template="qwen_math_cot")
    assert prompts.render_batch(strict, ["Q?"], template="question")


def test_a_prompt_over_the_window_names_the_problem_and_the_lengths(tokenizer: Any) -> None:
    problems = [Problem("p-1", "ab", "", ""), Problem("p-2", "abcdef", "", "")]
    assert len(prompts.render_batch(tokenizer, problems, template="none", window=10, max_tokens=4)) == 2
    with pytest.raises(PromptError, match=r"problem p-2: the prompt's 6 tokens and max_tokens 5 .* window of 10"):
        prompts.render_batch(tokenizer, problems, template="none", window=10, max_tokens=5)


def test_an_empty_question_names_the_problem(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="problem p-7: the question is empty"):
        prompts.render_batch(tokenizer, [Problem("p-7", " \n", "", "")])


def test_one_string_instead_of_a_list_is_refused_and_no_problems_give_no_prompts(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="put it in a list"):
        prompts.render_batch(tokenizer, "What is 1 + 1?")
    assert prompts.render_batch(tokenizer, []) == []
