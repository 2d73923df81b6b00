"""Generated word problems: right answers, splits that share nothing, the same problems on every machine."""

from __future__ import annotations

import collections
import hashlib
import operator
import random
import re

import pytest

from grpo_gsm8k.data import word_problems
from grpo_gsm8k.errors import DataError

WORDS = "|".join(sorted({*word_problems.NAMES, *word_problems.OBJECTS}))


def blank(question: str) -> str:
    return re.sub(rf"\b({WORDS})\b", "_", question)


def test_splits_share_no_question_even_with_names_and_objects_blanked() -> None:
    blanked = {s: {blank(p.question) for p in word_problems.generate(s, 5000, seed=3)} for s in word_problems.SPLITS}
    assert not blanked["train"] & blanked["val"]
    assert not blanked["train"] & blanked["test"]
    assert not blanked["val"] & blanked["test"]


def test_each_held_out_split_has_about_an_eighth_of_the_space() -> None:
    total = sum(word_problems.count(split) for split in word_problems.SPLITS)
    for split in ("val", "test"):
        assert 0.11 < word_problems.count(split) / total < 0.14


def test_answers_are_right_when_recomputed_from_the_numbers_of_the_question() -> None:
    signs = {"+": operator.add, "-": operator.sub}
    for problem in word_problems.generate("train", 2000, seed=1):
        numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
        steps, final = problem.answer.split("\n#### ")
        running = numbers[0]
        for step, number in zip(re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", steps), numbers[1:], strict=True):
            left, sign, right, result = step
            assert (int(left), int(right)) == (running, number)
            running = signs[sign](running, number)
            assert int(result) == running > 0
        assert final == problem.gold == str(running)


def test_signs_of_the_steps_follow_the_words_of_the_question() -> None:
    for problem in word_problems.generate("val", 1000, seed=1):
        words = re.split(r"\d+", problem.question)[1:-1]
        for before, sign in zip(words, re.findall(r" ([+-]) ", problem.answer), strict=True):
            assert sign == ("-" if re.search("gives away|takes out|loses", before) else "+")


def test_lazy_answer_stops_after_the_first_step_and_is_wrong_only_for_two_steps() -> None:
    for problem in word_problems.generate("train", 500, seed=2):
        lazy = word_problems.lazy_answer(problem)
        assert lazy.count("=") == 1
        assert problem.answer.startswith(lazy.split(".")[0])
        assert lazy.endswith(f"#### {lazy.split(' = ')[1].split('.')[0]}")
        assert (lazy == problem.answer) == (problem.meta["num_steps"] == 1)


def test_same_arguments_give_the_same_problems_on_every_machine() -> None:
    problems = word_problems.generate("test", 1000, seed=0)
    digest = hashlib.sha256("\n".join(f"{p.id} {p.question} {p.answer}" for p in problems).encode()).hexdigest()
    assert digest.startswith("a61107c18641ec23")
    assert problems[0].id == f"tiny/test/{hashlib.sha256(problems[0].question.encode()).hexdigest()[:16]}"


def test_fewer_problems_are_a_prefix_and_another_seed_gives_others() -> None:
    problems = word_problems.generate("val", 300, seed=5)
    assert word_problems.generate("val", 40, seed=5) == problems[:40]
    assert word_problems.generate("val", 40, seed=6) != problems[:40]
    assert word_problems.generate("val", 0, seed=5) == []


def test_twenty_thousand_training_problems_are_all_different_and_of_every_kind() -> None:
    problems = word_problems.generate("train", 20_000, seed=0)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 20_000
    kinds = collections.Counter(p.meta["kind"] for p in problems)
    assert set(kinds) == set(word_problems.KINDS)
    assert sum(p.meta["num_steps"] == 1 for p in problems) == pytest.approx(20_000 * 2 / 5, rel=0.05)
    assert min(kinds.values()) > 3700


def test_no_two_skeletons_read_alike() -> None:
    skeletons = list(word_problems._all_skeletons())
    assert len({word_problems.blanked(skeleton) for skeleton in skeletons}) == len(skeletons)


def test_drawing_everything_draws_each_combination_once() -> None:
    skeletons = [word_problems.Skeleton("add", "{0}+{1}", (a, 2)) for a in range(5)]
    draws = word_problems._Draws(skeletons, random.Random(0))
    drawn = {draws.draw() for _ in range(draws.num_left)}
    assert len(drawn) == 5 * len(word_problems.NAMES) * len(word_problems.OBJECTS)
    assert draws.num_left == 0


def test_asking_for_more_problems_than_exist_is_refused_with_the_number_there_is() -> None:
    with pytest.raises(DataError, match=f"0 to {word_problems.count('val')}"):
        word_problems.generate("val", word_problems.count("val") + 1, seed=0)
    with pytest.raises(DataError, match="num is -1"):
        word_problems.generate("val", -1, seed=0)


def test_unknown_split_names_the_valid_ones() -> None:
    with pytest.raises(DataError, match=r"unknown split 'tset'; did you mean 'test'\? \(known: test, train, val\)"):
        word_problems.generate("tset", 1, seed=0)
