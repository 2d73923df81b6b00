"""Which training texts hold eval questions: what is the same problem, what is near, and what only looks like it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from grpo_gsm8k.data.overlap import EvalQuestions, Overlap
from grpo_gsm8k.data.overlap_words import plain_text
from grpo_gsm8k.data.rows import load_problems
from grpo_gsm8k.data.word_problems import generate

ASKED = "Tom has 1,200 apples. He eats 3 of them every day. How many apples are left after 7 days?"


def overlaps(training: str | list[str], asked: str | list[str], ngram: int = 13) -> list[Overlap]:
    trained = [training] if isinstance(training, str) else training
    questions = [asked] if isinstance(asked, str) else asked
    index = EvalQuestions([(f"e{n}", text) for n, text in enumerate(questions)], ngram=ngram)
    return index.overlaps((f"t{n}", text) for n, text in enumerate(trained))


def kinds(training: str | list[str], asked: str | list[str] = ASKED, ngram: int = 13) -> list[str]:
    return [pair.kind for pair in overlaps(training, asked, ngram)]


def test_a_question_is_found_as_it_stands_wherever_it_stands() -> None:
    assert kinds(ASKED) == ["exact"]
    assert kinds(f"<|im_start|>user\nQuestion: Ann has 2?\n#### 2\n\nQuestion: {ASKED}<|im_end|>\n") == ["exact"]


@pytest.mark.parametrize(
    "written",
    [
        ASKED.upper(),
        ASKED.replace(" ", "\n  "),
        ASKED.replace(",", ""),
        ASKED.replace(".", " –").replace("?", ""),
        ASKED.replace("days", "days,").replace("Tom", "“Tom”"),
        ASKED.replace("3", "３"),
    ],
)
def test_case_spacing_punctuation_and_the_commas_of_numbers_do_not_hide_a_question(written: str) -> None:
    assert kinds(written) == ["normalised"]


@pytest.mark.parametrize(
    "written",
    [
        ASKED.replace(" ", "\u200b "),
        ASKED.replace("apples", "ap\u00adples\ufeff"),
        ASKED.replace("a", "a\u0301"),
        ASKED.replace("a", "á"),
        ASKED.replace("3", "**3**").replace("Tom", "_Tom_"),
        ASKED.replace("3", "$3$").replace("1,200", r"\(1,200\)"),
        ASKED.replace("day.", "day.<br/>").replace("Tom", '<span class="name">Tom</span>&nbsp;'),
    ],
    ids=["zero width", "soft hyphen and BOM", "combining", "accents", "Markdown", "TeX", "HTML"],
)
def test_markup_accents_and_what_is_not_seen_do_not_hide_a_question(written: str) -> None:
    assert kinds(written) == ["normalised"]


def test_an_escaped_dollar_and_another_minus_sign_are_the_same_signs() -> None:
    asked = "The fee is $1,200 and it falls to -5 × 2 degrees in the night. How warm is it in the morning at 8?"
    assert kinds(asked.replace("$", r"\$"), asked) == ["normalised"]
    assert kinds(asked.replace("-5", "\u22125"), asked) == ["normalised"]
    assert kinds(asked.replace("-5", "5"), asked) == ["near"]


def test_prices_products_and_comparisons_are_not_taken_for_markup() -> None:
    for text in (
        "pays $5 and gets $2 back",
        "2 * 3 and 4 * 5",
        "2*x*3",
        "a<b and c>d",
        "x ≠ 3",
        "10<sup>2</sup>",
        "$4, $5, or $6",
    ):
        assert plain_text(text) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Exercise 3 - ", "?"),
        ("(7) - ", "?"),
        ("rated 5 * ", "?"),
        ("", " Answer: 1179"),
        ("", " A:"),
        ("", " The final answer: 1179"),
        ("", " Let us think step by step."),
        ("", " We begin with the apples."),
        ("", " - 1179"),
        ("**", "?**"),
        ("**Q.** ", "** 1179"),
    ],
)
def test_what_stands_around_a_question_does_not_hide_it(before: str, after: str) -> None:
    assert set(kinds(before + ASKED.removesuffix("?") + after)) <= {"exact", "normalised"}
    assert kinds(before + ASKED.removesuffix("?") + after) != []


def test_a_question_that_begins_with_a_number_of_things_is_found_behind_a_number_too() -> None:
    asked = "20% of 50 people bet on a horse. How many of the people do not bet on it in the end?"
    assert kinds(f"Exercise 3 - {asked}", asked) == ["exact"]


def test_another_name_or_clause_behind_a_question_makes_another_question() -> None:
    assert kinds("Who is the elder of Tom and Ann Smith?", "Who is the elder of Tom and Ann?") == ["near"]
    assert kinds("Who is older, Tom or Ann Let us think", "Who is older, Tom or Ann?") == ["normalised"]
    assert kinds("How many apples are left in May/June?", "How many apples are left in May?") == []
    assert kinds("Solve 2 * x + 3 = 7.", "x + 3 = 7") == []


def test_trained_text_is_searched_for_whole_questions_that_are_long_enough() -> None:
    index = EvalQuestions([("a", ASKED), ("b", "What is 4 + 3?")])
    trained = [
        ("t0", f"We are asked: {ASKED.lower()} So 1,200 - 21."),
        ("t1", "What is 4 + 3? It is 7."),
        ("t2", ASKED.replace("7", "9")),
    ]
    assert [(pair.kind, pair.training_id, pair.eval_id) for pair in index.quotes(trained)] == [("normalised", "t0", "a")]


def test_another_number_makes_another_problem_that_is_near() -> None:
    (pair,) = overlaps(ASKED.replace("7 days", "9 days"), ASKED)
    assert (pair.kind, pair.same_numbers) == ("near", False)
    assert pair.share == round(18 / 19, 4)  # one of its 19 words differs
    assert pair.run_words == 17


def test_the_same_numbers_in_other_words_are_said_to_be_the_same() -> None:
    (pair,) = overlaps(ASKED.replace("apples", "plums"), ASKED, ngram=4)
    assert (pair.kind, pair.same_numbers) == ("near", True)


def test_signs_count_so_that_sums_of_the_same_numbers_are_told_apart() -> None:
    assert kinds("What is 4 - 3?", "What is 4 + 3?") == []
    assert kinds("What is (4 + 3) * 2?", "What is 4 + (3 * 2)?") == []
    assert kinds("What is 5?", "What is -5?") == []
    assert kinds("What is 4 +  3 ?", "What is 4 + 3?") == ["normalised"]


def test_a_calculation_or_a_sentence_that_goes_on_is_another_question() -> None:
    assert kinds("What is 4 + 3 - 2?", "What is 4 + 3?") == []
    assert kinds("Compute 9 * 4 + 3.", "4 + 3") == []
    assert kinds("How old is Ann in 3 years?", "How old is Ann?") == []
    assert kinds("Q: How old is Ann? A: 3", "How old is Ann?") == ["exact"]


def test_a_long_run_of_words_is_on_record_and_a_shorter_one_is_not() -> None:
    words = [f"word{chr(97 + n)}" for n in range(20)]
    asked = " ".join(words) + " and then twenty other words follow that stand nowhere else in any of the training texts at all"
    assert kinds("x " + " ".join(words[:13]) + " y", asked) == ["ngram"]
    assert kinds("x " + " ".join(words[:12]) + " y", asked) == []
    assert kinds("x " + " ".join(words[:12]) + " y", asked, ngram=12) == ["ngram"]


def test_what_more_than_ten_training_texts_or_eval_questions_repeat_is_boilerplate() -> None:
    told = "Please reason step by step and write your final answer after four signs of a hash"
    few = [f"{told}. Item a{chr(97 + n)}" for n in range(10)]
    asked = f"{told}. Something else is asked for here, at some length, so that little of it is alike in the end, is it not?"
    assert kinds(few, asked) == ["ngram"] * 10
    assert kinds([*few, f"{told}. One more"], asked) == []
    assert kinds(few[:1], [asked.replace("else", f"x{n}") for n in range(11)]) == []


def test_many_traces_of_one_problem_do_not_make_its_words_boilerplate() -> None:
    near = ASKED.replace("7 days", "9 days")
    assert [(pair.kind, pair.training_id) for pair in overlaps([near] * 12, ASKED)] == [("near", f"t{n}") for n in range(12)]


def test_pairs_come_in_order_of_kind_then_of_likeness() -> None:
    changed = [ASKED.replace("7", "8"), ASKED.replace("7", "8").replace("3", "4"), ASKED.lower(), ASKED]
    assert [(pair.kind, pair.training_id) for pair in overlaps(changed, ASKED)] == [
        ("exact", "t3"),
        ("normalised", "t2"),
        ("near", "t0"),
        ("near", "t1"),
    ]


def test_texts_without_words_are_no_overlap() -> None:
    assert kinds("", "?!") == []
    assert kinds("...", "...") == []


def test_an_ngram_of_one_word_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed is 2 or more"):
        EvalQuestions([("e", ASKED)], ngram=1)


def test_held_by_names_each_question_once() -> None:
    index = EvalQuestions([("a", ASKED), ("b", "How old is Ann?")])
    assert index.held_by(f"{ASKED} how old is Ann? {ASKED}") == [("a", "exact"), ("b", "normalised")]


def test_generated_problems_of_two_splits_are_near_each_other_and_never_the_same() -> None:
    train = [(problem.id, problem.question) for problem in generate("train", 3000, 0)]
    evaluated = [(problem.id, problem.question) for problem in generate("test", 500, 0)]
    counts = Counter(pair.kind for pair in EvalQuestions(evaluated).overlaps(train))
    assert counts["near"] > 100
    assert set(counts) <= {"near", "ngram"}


def test_gsm8k_has_its_known_near_duplicate_and_two_more_found_in_seconds(gsm8k_dir: Path) -> None:
    train, test = (
        [(str(n), problem.question) for n, problem in enumerate(load_problems(gsm8k_dir / f"{split}.jsonl"))]
        for split in ("train", "test")
    )
    start = time.process_time()
    found = EvalQuestions(test).overlaps(train)
    assert time.process_time() - start < 10
    assert sorted((pair.kind, pair.eval_id, pair.training_id) for pair in found) == [
        ("near", "602", "1314"),
        ("near", "602", "5162"),
        ("near", "632", "20"),
        ("ngram", "581", "406"),
    ]
    assert not any(pair.same_numbers for pair in found)


def test_answers_that_restate_their_own_question_quote_none_of_the_test_set(gsm8k_dir: Path) -> None:
    train, test = (
        [(str(n), problem) for n, problem in enumerate(load_problems(gsm8k_dir / f"{split}.jsonl"))]
        for split in ("train", "test")
    )
    index = EvalQuestions([(n, problem.question) for n, problem in test])
    assert index.quotes((n, f"We are asked: {problem.question} {problem.answer}") for n, problem in train[:2000]) == []
    assert {pair.eval_id for pair in index.quotes([("t", "\n".join(problem.question for _, problem in test[:50]))])} == {
        n for n, _ in test[:50]
    }
