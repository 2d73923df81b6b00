"""`numeric`: what it reads, what it holds equal, and how often it agrees with a human reader."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_gsm8k.rewards.numbers import gold_number, parse_gold
from grpo_gsm8k.rewards.numeric import NumericGrader

GRADER = NumericGrader()
LABELLED = Path(__file__).with_name("labelled_completions.jsonl")
OUTPUTS = Path(__file__).with_name("labelled_outputs.jsonl")


def labelled() -> list[dict[str, Any]]:
    """Returns completions written and labelled by hand, harder than usual ones.

    Rules were tuned on `split` "tune"; "heldout" was first read with the rules fixed, and its misreadings mended afterwards.
    """
    return [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").split("\n") if line]


def outputs() -> list[dict[str, Any]]:
    """Returns completions written by the team in the styles of many models, and labelled before the rules were tried on them.

    Version 1 agreed on 652 of the 665; the misreadings were mended afterwards, so this is no longer an unseen set.
    """
    return [json.loads(line) for line in OUTPUTS.read_text(encoding="utf-8").split("\n") if line]


def problems(folder: Path, name: str) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]
    return [(row["answer"], gold_number(row["answer"])) for row in rows]


def is_correct(completion: str, gold: str) -> bool:
    return GRADER.grade(completion, gold).status == "correct"


@pytest.mark.parametrize(
    "written",
    ["18", "$18", "\\$18", "18.00", "**18**", "18.", "18 dollars", "\\boxed{18\\text{ dollars}}", "\\boxed{\\$18}", "= 18",
     "€18", "£18", "18 m^2", "18 m²", "18 m2", "\\boxed{18 \\text{ m}^2}", "x = 18", "\\boxed{x = 18}", "\\(18\\)", "\\[18\\]",
     "$$18$$", "１８", "\\boxed{18", "\\boxed{{18}}", "\\boxed 18", "\\fbox{18}", "eighteen", "1.8e1", "1.8 \\times 10^1",
     "36/2", "\\frac{36}{2}", "\\boxed{\\dfrac{36}{2}}", "18%", "18 percent", "USD 18", "US$18", "<answer>18</answer>",
     "#### 18", "#### $18.00", "#### The answer is **$18**.", "Final Answer: $#### 18", "The answer is \\boxed{} so: 18",
     "18:00"],
)  # fmt: skip
def test_one_number_is_read_in_every_way_of_writing_it(written: str) -> None:
    assert is_correct(written, "18")
    assert not is_correct(written, "8")
    assert not is_correct(written, "1")
    assert not is_correct(written, "2")


@pytest.mark.parametrize(
    "written", ["1,080", "1\\,080", "1{,}080", "1\u202f080", "1\u2009080", "\\boxed{1,\\!080}", "$1,080.00", "1 080"]
)
def test_every_grouping_of_digits_is_read(written: str) -> None:
    assert is_correct(f"The total is {written}", "1080")
    assert not is_correct(f"The total is {written}", "80")


@pytest.mark.parametrize(
    ("written", "gold"),
    [("-3", "-3"), ("−3", "-3"), ("$-3", "-3"), ("-$3", "-3"), ("negative 3", "-3"), ("\\boxed{-3}", "-3"), ("3/4", "0.75"),
     ("1 1/2", "1.5"), ("\\boxed{1\\frac12}", "1.5"), ("½", "0.5"), ("1.5 million", "1500000"), ("2.125,50", "2125.5"),
     ("12,5", "12.5"), ("twenty-five", "25"), ("one hundred and five", "105"), ("none", "0")],
)  # fmt: skip
def test_other_forms_of_number_are_read(written: str, gold: str) -> None:
    assert is_correct(f"<answer>{written}</answer>", gold)


def test_percent_is_read_by_the_stated_rule() -> None:
    assert is_correct("20%", "20")
    assert is_correct("20", "20%")
    assert not is_correct("0.2", "20")
    assert is_correct("20%", "0.2")
    assert not is_correct("2000%", "20")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("33.333", "33.33"), ("33.33333", "33.33"), ("\\boxed{\\frac{100}{3}}", "33.33"), ("16.667", "16.67"), ("66.666", "66.67"),
     ("14.285714", "14.29"), ("-33.333", "-33.33"), ("1.0309278", "1.03")],
)  # fmt: skip
def test_a_gold_that_is_a_rounded_fraction_is_matched_by_more_of_its_decimals(answer: str, gold: str) -> None:
    assert is_correct(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("33.3", "33.33"), ("33.34", "33.33"), ("33.326", "33.33"), ("0.46", "0.5"), ("0.4545", "0.5"), ("1.54", "1.5"),
     ("1.254", "1.25"), ("\\boxed{1249/1000}", "1.25"), ("17.9999", "18"), ("18.4", "18"), ("33.333", "-33.33"),
     ("33.33", "33.333")],
)  # fmt: skip
def test_no_other_answer_is_rounded_to_the_gold(answer: str, gold: str) -> None:
    assert not is_correct(answer, gold)


def test_dollars_are_cents_only_where_the_text_says_cents() -> None:
    assert not is_correct("<answer>$0.50</answer>", "50")
    assert not is_correct("Each costs $0.50.", "50")
    assert is_correct("Each costs 50 cents. #### $0.50", "50")
    assert is_correct("Each costs $0.50 (50¢).", "50")
    assert not is_correct("Each costs 150 cents less, so $0.50.", "50")


def test_a_count_of_millions_matches_only_where_the_text_calculates_in_millions() -> None:
    for template in ("{}", "\\boxed{{{}}}", "#### {}", "So he has {}.", "The answer is {}."):
        assert not is_correct(template.format("18 million"), "18")
        assert is_correct(template.format("18 million"), "18000000")
        assert is_correct(template.format("1.5 million"), "1.5")
    assert is_correct("It cost 25 million and made 380 million, so it earned 405 million.", "405")
    assert not is_correct("It cost 25 thousand and made 380 thousand, so it earned 405 million.", "405")


@pytest.mark.parametrize(
    ("written", "answer"),
    [("$18", "18"), ("\\$18.00", "18"), ("18", "18"), ("1,080", "1080"), ("−3", "-3"), ("18 dollars", "18"), ("eighteen", "18"),
     ("36/2", "18"), ("3/4", "3/4"), ("0.75", "3/4"), ("\\frac{6}{8}", "3/4"), ("20%", "20%"), ("20 percent", "20%"),
     ("1.5 million", "1500000"), ("x = 18", "18"), ("18:00", "18")],
)  # fmt: skip
def test_equal_answers_are_equal_votes(written: str, answer: str) -> None:
    for template in ("\\boxed{{{}}}", "<answer>{}</answer>", "Answer: {}"):
        assert GRADER.grade(template.format(written), "5").answer == answer


def test_an_answer_without_a_value_votes_as_its_whole_text() -> None:
    text = "all of " + "x y  " * 60
    assert GRADER.grade(f"<answer>{text}</answer>", "5").answer == " ".join(text.split())


@pytest.mark.parametrize(
    "written", ["18", "8.5", "8 or 9", "80", "0.8", "-8", "8/3", "\\boxed{8, 9}", "8-9", "8^2", "2 and 8", "8:30"]
)
def test_a_gold_inside_another_number_or_a_pair_is_no_match(written: str) -> None:
    assert not is_correct(f"<answer>{written}</answer>", "8")


@pytest.mark.parametrize(
    "written", ["\\boxed{2+3\\sqrt{4}}", "\\boxed{9^9^9}", "9^9^9", "1e999999", "9" * 5000, "\\boxed{18 \\text{ or } 20}"]
)
def test_what_is_no_single_number_is_wrong(written: str) -> None:
    assert GRADER.grade(written, "4").status == "wrong"


def test_marks_are_read_in_the_stated_order() -> None:
    everything = "The answer is 4. #### 3 \\boxed{2} <answer>1</answer> and so 5"
    assert GRADER.grade(everything, "1").explanation == "<answer>"
    assert is_correct(everything.replace("<answer>1</answer>", ""), "2")
    assert is_correct("The answer is 4.\n#### 3\nand so 5", "3")
    assert is_correct("\\boxed{1} then \\boxed{2}", "2")
    assert not is_correct("\\boxed{1} and \\boxed{2}", "2")


def test_a_markdown_heading_is_no_mark() -> None:
    assert is_correct("#### Step 3: Add 4 and 5\nThe sum is 9.", "9")
    assert is_correct("#### 3. Add them\nThe sum is 9.", "9")
    assert is_correct("#### Final Answer\n9", "9")


def test_inside_thinking_only_an_explicit_answer_counts() -> None:
    assert GRADER.grade("<think>9 * 2 = 18", "18").status == "unparsed"
    assert is_correct("<think>so \\boxed{18}", "18")
    assert is_correct("<think>9</think>It is 18.", "18")
    assert GRADER.grade("<think>9 * 2 = 18</think>", "18").status == "unparsed"


def test_an_invented_next_question_is_left_out() -> None:
    assert is_correct("So 18.\n#### 18\n\nQuestion: What is 2 + 3?\nAnswer: 5\n#### 5", "18")
    assert is_correct("The answer is 18.<|im_end|>\n<|im_start|>user\nAnd 5?", "18")


def test_a_check_or_a_note_after_the_answer_is_left_out() -> None:
    assert is_correct("She makes $18.\n\nLet me verify: 16 - 7 = 9 ✓", "18")
    assert is_correct("She makes $18.\n\nNote: this leaves out the 3 eggs she ate.", "18")
    assert is_correct("She makes $18.\n\nLet me check: 9 * 3 = 27, not 18.\nSo she makes $27.", "27")


@pytest.mark.parametrize("completion", ["", "no idea", "3 + 4 =", "I cannot determine the answer without the 2 prices."])
def test_no_answer_is_unparsed_which_is_not_wrong(completion: str) -> None:
    assert GRADER.grade(completion, "3").status == "unparsed"


def test_a_gold_that_is_no_number_is_the_graders_error() -> None:
    score = GRADER.grade("#### 3", "three apples")
    assert score.status == "error"
    assert "three apples" in score.explanation


def test_agreement_with_a_human_reader_is_above_98_5_percent_on_hard_completions() -> None:
    """Each completion is paired with its true answer and with other numbers that stand in it."""
    rows = labelled()
    assert len({row["completion"] for row in rows}) >= 300
    missed = [row["id"] for row in rows if is_correct(row["completion"], row["gold"]) != row["correct"]]
    assert len(missed) / len(rows) < 0.015, missed


def test_agreement_on_outputs_in_the_styles_of_models_is_above_99_percent() -> None:
    rows = outputs()
    assert len(rows) >= 300
    read = [is_correct(row["completion"], row["gold"]) for row in rows]
    false_positives = sum(said and not row["correct"] for said, row in zip(read, rows, strict=True))
    missed = sum(row["correct"] and not said for said, row in zip(read, rows, strict=True))
    assert (false_positives + missed) / len(rows) < 0.01
    assert false_positives <= 2


def test_a_wrong_output_cut_off_anywhere_is_rarely_correct() -> None:
    cuts = [
        (row["completion"][: space.start()], row["gold"])
        for row in outputs()
        if not row["correct"]
        for space in re.finditer(r"\s", row["completion"])
    ]
    assert len(cuts) > 5000
    assert sum(is_correct(completion, gold) for completion, gold in cuts) / len(cuts) < 0.012


def test_the_last_number_alone_agrees_far_less_often() -> None:
    """lm-evaluation-harness's flexible-extract, the usual reading, on the same completions."""
    flexible = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")

    def last_number_is(completion: str, gold: str) -> bool:
        found = flexible.findall(completion)
        return bool(found) and re.sub(r"[,$]|\.$", "", found[-1][0] or found[-1][1]) == gold

    rows = labelled()
    theirs = sum(last_number_is(row["completion"], row["gold"]) == row["correct"] for row in rows) / len(rows)
    ours = sum(is_correct(row["completion"], row["gold"]) == row["correct"] for row in rows) / len(rows)
    assert ours > theirs + 0.1


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_every_published_solution_is_correct_and_wrong_for_the_next_problem(gsm8k_dir: Path, name: str) -> None:
    rows = problems(gsm8k_dir, name)
    for (answer, gold), (_, other) in zip(rows, rows[1:] + rows[:1], strict=True):
        assert is_correct(answer, gold)
        assert is_correct(answer, other) == (gold == other)


def test_published_solutions_are_read_without_their_mark(gsm8k_dir: Path) -> None:
    """Unmarked prose by people; about 20 of the 8,792 solutions end in something else than their gold."""
    rows = problems(gsm8k_dir, "train.jsonl") + problems(gsm8k_dir, "test.jsonl")
    prose = [(re.sub(r"<<[^>]*>>", "", answer.rpartition("####")[0]).strip(), gold) for answer, gold in rows]
    assert sum(is_correct(text, gold) for text, gold in prose) / len(prose) > 0.995


FORMATS = (
    "{g}", "**{g}**", "#### {g}", "#### ${g}", "\\boxed{{{g}}}", "$\\boxed{{{g}}}$", "\\[\n\\boxed{{{g}}}\n\\]",
    "\\boxed{{\\${g}}}",
    "\\boxed{{{g}\\text{{ apples}}}}", "<answer>{g}</answer>", "<answer>\n{g} apples\n</answer>",
    "</think>\n<answer> {g} </answer>",
    "The answer is {g}.", "The final answer is ${g}$.", "**Answer:** {g}", "**Final Answer: {g}**", "### Answer\n\n{g} apples",
    "Answer: {g} apples in 3 weeks", "Therefore, Tom has {g} apples left out of the original 7000001.",
    "So he sells {g} apples in 4 weeks.", "In 4 weeks he sells {g} apples.", "Thus, the total is **${g}** for the 12 months.",
    "x = {g}", "Total = 7 * 9 = {g} apples, which is 2 more than 5.", "The answer is {g}.\n\nLet me verify: 3 + 4 = 7 ✓",
    "The answer is {g}.\n\nThis is because 3 + 4 = 7.", "So there are {g} of them.\n\nNote: 3 were lost.", "It costs ${g}.00",
    "\\boxed{{{g}}}<|im_end|>", "#### {g}\n\nQuestion: What is 3 + 4?\nAnswer: 7\n#### 7", "≈ {g}", "The answer is {g}, not 5.",
)  # fmt: skip


def test_every_gold_is_read_from_every_format_and_no_other_gold_is(gsm8k_dir: Path) -> None:
    golds = [gold for _, gold in problems(gsm8k_dir, "test.jsonl")]
    for i, gold in enumerate(golds):
        other = next(g for g in golds[i:] + golds if g != gold)
        for template in FORMATS:
            if gold.startswith("-") and ("$" in template or "apples" in template):
                continue
            completion = "Reasoning: 3 + 4 = 7.\n\n" + template.format(g=f"{int(gold):,}" if i % 2 else gold)
            assert is_correct(completion, gold), completion
            assert not is_correct(completion, other), completion


ALPHABET = "0123456789 .,-$%/{}()\\*#=^:\n_<>xX×½−１and or boxedfrac answer is thinkQ\ud800\u202f"
NOISE = st.text(alphabet=st.sampled_from(list(ALPHABET)), max_size=200)


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=200) | NOISE, st.text(max_size=20))
def test_no_text_makes_it_raise(completion: str, gold: str) -> None:
    assert GRADER.grade(completion, gold).status in ("correct", "wrong", "unparsed", "error")
    assert GRADER.grade("\\boxed{" + completion, "5").status in ("correct", "wrong", "unparsed")
    assert GRADER.grade("The answer is " + completion, "5").status in ("correct", "wrong", "unparsed")


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_integers_match_only_if_equal(answer: int, gold: int) -> None:
    assert is_correct(f"\\boxed{{{answer:,}}}", str(gold)) == (answer == gold)
    assert is_correct(f"#### {answer}", f"{answer:,}")


@pytest.mark.parametrize(
    "unit",
    ["9", "{", "\\boxed{", "\\frac", "#### ", "answer is ", "\n", " ", "**1", "1,", "1=1", "\nCheck 1. So 1", "\ud800",
     "(", "(1) ", "2 hours and 3 minutes ", "times 5 is ", "5, which is ", "\n- 1", "\n| 1 |", "|", "here is 1 ",
     "# ", "Step 1 ", "in total 1"],
)  # fmt: skip
def test_a_completion_of_100_kilobytes_is_graded(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    began = time.process_time()
    for completion in (
        text,
        "\\boxed{" + text,
        "The answer is " + text,
        text + " 5",
        text + " 5:\n- 5\n- 5",
        "5. (" + text + ")",
    ):
        assert GRADER.grade(completion, "5").status in ("correct", "wrong", "unparsed")
    assert time.process_time() - began < 3


def test_gold_number_reads_what_gsm8k_publishes() -> None:
    assert gold_number("9 * 120 = 1,080\n#### 1,080") == "1080"
    assert gold_number("#### -10") == "-10"
    with pytest.raises(ValueError, match="no '####'"):
        gold_number("18")
    with pytest.raises(ValueError, match="no number after"):
        gold_number("#### many")


def test_a_gold_is_parsed_exactly() -> None:
    assert parse_gold("1,080") == (1080, 0)
    assert parse_gold("18.00") == (18, 0)
    gold = parse_gold("33.33")
    assert gold is not None
    assert gold.decimals == 2
    assert parse_gold("9" * 5000) is None
    assert parse_gold("") is None
