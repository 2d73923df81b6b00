"""Traces become pairs that the packaged tokenizer, graders and templates agree on; what is dropped adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.engines.loading import load_tokenizer
from grpo_gsm8k.errors import DataError, PromptError
from grpo_gsm8k.prompts import list_templates, load_template, render_batch
from grpo_gsm8k.rewards.registry import make_grader
from grpo_gsm8k.traces.pairs import REASONS, FormatRequest, Formatted, format_traces, read_traces, response_shape


def trace(**changes: Any) -> dict[str, Any]:
    made = {"id": "p/0", "sample_index": 0, "question": "What is 2 + 3?", "gold": "5", "model": "r1", "prompt_sha256": "ab"}
    made |= {"reasoning": "2 + 3 = 5.", "answer": "The answer is \\boxed{5}.", "finish_reason": "stop", "request_id": "x"}
    return made | changes


def formatted(rows: list[dict[str, Any]], template: str = "question", **how: Any) -> Formatted:
    request = FormatRequest(load_template(template), **how)
    return format_traces(list(enumerate(rows, start=1)), load_tokenizer("tiny"), make_grader("numeric"), request)


def test_a_pair_is_the_template_s_prompt_and_the_solution_as_the_template_writes_one() -> None:
    (pair,) = formatted([trace(reasoning="The user wants a final answer. 2 + 3 = 5.")]).pairs
    assert pair["prompt"] == render_batch(load_tokenizer("tiny"), ["What is 2 + 3?"], template="question")[0].text
    assert pair["response"] == "2 + 3 = 5.\n#### 5"
    assert pair["id"].startswith("p/0/0-")
    assert pair["provenance"]["request_id"] == "x" and pair["provenance"]["sentences_cleaned"] == 1


@pytest.mark.parametrize(
    ("template", "response"),
    [
        ("r1_zero", " 2 + 3 = 5. </think> <answer> 5 </answer>"),
        ("qwen_math_cot", "2 + 3 = 5.\nThe final answer is $\\boxed{5}$."),
        ("baseline", " 2 + 3 = 5.\n#### 5"),
        ("step_by_step", "\n2 + 3 = 5.\n#### 5"),
    ],
)
def test_every_template_with_a_shot_says_how_a_response_goes_on_from_its_prompt(template: str, response: str) -> None:
    (pair,) = formatted([trace()], template).pairs
    assert pair["response"] == response
    if template == "r1_zero":
        assert make_grader("format").grade("<think>" + response, "5").status == "correct"


def test_each_shipped_template_gives_a_shape_or_says_why_not() -> None:
    for name in list_templates():
        template = load_template(name)
        if template.shot is None:
            with pytest.raises(PromptError, match="how a solution is written"):
                response_shape(template)
        else:
            assert "{reasoning}" in response_shape(template) and "{question}" not in response_shape(template)


def test_the_final_answer_is_normalised_to_the_gold() -> None:
    (pair,) = formatted([trace(gold="1080", answer="It costs **$1,080.00** in all.")]).pairs
    assert pair["response"].endswith("\n#### 1080")


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("not_ended", {"finish_reason": "length"}),
        ("no_reasoning", {"reasoning": " "}),
        ("no_reasoning", {"reasoning": "I must put the final answer within \\boxed{}."}),
        ("no_answer", {"reasoning": "Hm.", "answer": "I cannot say."}),
        ("grader_error", {"gold": "five"}),
        ("wrong", {"answer": "\\boxed{6}"}),
        ("holds_a_mark", {"reasoning": "2 + 3 = 5.</think> Wait."}),
        ("holds_a_mark", {"reasoning": "2 + 3 = 5.<|im_end|>"}),
        ("duplicate", {"sample_index": 1, "reasoning": "2 +  3 = 5."}),
        ("repeated", {}),
        ("too_long", {"sample_index": 1, "reasoning": "2 + 3 = 5. " * 200}),
        ("too_short", {"sample_index": 1, "reasoning": "5"}),
    ],
)
def test_each_reason_to_drop_a_trace_is_counted_and_the_counts_add_up(reason: str, changes: dict[str, Any]) -> None:
    repeats = "sample_index" in changes or not changes
    other = trace(**changes) if repeats else trace(sample_index=1, **changes)
    done = formatted([trace(), other], max_total_tokens=200, min_response_tokens=10)
    report = done.report()
    assert [row["reason"] for row in done.dropped] == [reason]
    assert report["dropped"] == {name: int(name == reason) for name in REASONS}
    assert report["num_read"] == 2 == report["num_kept"] + report["num_dropped"]
    assert done.dropped[0]["line"] == 2


def test_wrong_traces_are_kept_with_their_own_answer_where_all_are_asked_for() -> None:
    (pair,) = formatted([trace(answer="\\boxed{6}")], keep="all").pairs
    assert pair["response"] == "2 + 3 = 5.\n#### 6" and pair["provenance"]["status"] == "wrong"


def test_the_pairs_do_not_depend_on_the_order_in_which_answers_came(tmp_path: Path) -> None:
    rows = [trace(id=f"p/{n}", question=f"What is {n} + 3?", gold=str(n + 3), answer=f"{n + 3}") for n in range(5)]
    made = []
    for order in (rows, rows[::-1]):
        path = tmp_path / "traces.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in order))
        request = FormatRequest(load_template("question"))
        pairs = format_traces(read_traces(path), load_tokenizer("tiny"), make_grader("numeric"), request).pairs
        made.append([(pair["id"], pair["prompt"], pair["response"]) for pair in pairs])
    assert made[0] == made[1] and len(made[0]) == 5


def test_a_line_that_is_no_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(trace()) + "\n" + json.dumps(trace(reasoning=None)) + "\n")
    with pytest.raises(DataError, match=r"traces.jsonl:2: 'reasoning' is None"):
        read_traces(path)
