"""Names that arrive over turns: what is asked when, how lists are read and scored, which problems there are."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.envs.alphabet_sort import NAMES, AlphabetSortEnv, generate, read_list, similarity, split_of
from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.types import Problem

BATCHES = [["Tom", "Ada", "Leo"], ["Mia", "Ben", "Zoe"]]
GOLD = "Ada, Ben, Leo, Mia, Tom, Zoe"
PROBLEM = Problem("one", "Sort these names: Tom, Ada, Leo. …", GOLD, GOLD, {"batches": BATCHES})


def play(*turns: str) -> Reply:
    return AlphabetSortEnv({"test": [PROBLEM]}, 2).reply([Exchange(PROBLEM, turns, "stop")])[0]


def subsequence_length_by_trying(one: list[str], other: list[str]) -> int:
    """The longest common subsequence by its definition."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + subsequence_length_by_trying(one[1:], other[1:])
    return max(subsequence_length_by_trying(one[1:], other), subsequence_length_by_trying(one, other[1:]))


def test_the_next_names_come_whatever_the_turn_said() -> None:
    assert play("<sorted>Ada, Leo, Tom</sorted>") == Observation("More: Mia, Ben, Zoe")
    assert play("I do not know") == Observation("More: Mia, Ben, Zoe")


def test_the_right_last_list_earns_one() -> None:
    done = play("<sorted>Ada, Leo, Tom</sorted>", f"All of them: <sorted>\n{GOLD} </sorted>")
    assert isinstance(done, Outcome)
    assert (done.score.value, done.score.status, done.score.answer) == (1.0, "correct", GOLD)
    assert done.metrics == {"num_lists_right": 2.0}


def test_a_list_that_is_partly_sorted_earns_its_similarity() -> None:
    done = play("x", "<sorted>Ada, Leo, Tom, Ben, Mia, Zoe</sorted>")  # Ada, Ben, Mia, Zoe stand in order: 2 * 4 / 12
    assert isinstance(done, Outcome)
    assert done.score.value == pytest.approx(2 / 3)
    assert (done.score.status, done.metrics) == ("wrong", {"num_lists_right": 0.0})


def test_a_superfluous_name_costs_a_little_and_is_not_correct() -> None:
    done = play("x", f"<sorted>{GOLD}, Zoe</sorted>")
    assert isinstance(done, Outcome)
    assert done.score.value == pytest.approx(12 / 13)
    assert done.score.status == "wrong"


def test_a_last_turn_without_a_list_earns_nothing() -> None:
    done = play("<sorted>Ada, Leo, Tom</sorted>", GOLD)
    assert isinstance(done, Outcome)
    assert (done.score.value, done.score.status) == (0.0, "unparsed")
    empty = play("x", "<sorted> </sorted>")
    assert isinstance(empty, Outcome)
    assert empty.score.value == 0.0


def test_the_first_list_of_a_turn_is_read() -> None:
    assert read_list("<sorted>Ada,Ben , </sorted> or <sorted>Tom</sorted>") == ["Ada", "Ben"]
    assert read_list("<sorted>Ada") is None


@given(st.lists(st.sampled_from("abcd"), max_size=6), st.lists(st.sampled_from("abcd"), min_size=1, max_size=6))
def test_similarity_is_twice_the_longest_common_subsequence_over_both_lengths(one: list[str], other: list[str]) -> None:
    assert similarity(one, other) == 2 * subsequence_length_by_trying(one, other) / (len(one) + len(other))
    assert similarity(one, other) >= difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() - 1e-12


def test_problems_hold_different_names_and_their_sorted_list() -> None:
    for problem in generate("train", 50, seed=1, num_turns=4):
        arriving = [name for batch in problem.meta["batches"] for name in batch]
        assert len(set(arriving)) == 12
        assert problem.gold.split(", ") == sorted(arriving)
        assert f"Sort these names: {', '.join(arriving[:3])}." in problem.question


def test_the_same_problems_come_from_the_same_seed_however_many_are_asked_for() -> None:
    assert generate("val", 20, seed=3) == generate("val", 200, seed=3)[:20]
    assert generate("val", 20, seed=3) != generate("val", 20, seed=4)


def test_no_two_problems_begin_with_the_same_set_of_names_in_any_split() -> None:
    first = [frozenset(p.meta["batches"][0]) for split in ("train", "val", "test") for p in generate(split, 1000, seed=0)]
    assert len(set(first)) == 3000
    assert split_of(["Tom", "Ada", "Leo"]) == split_of(["Leo", "Tom", "Ada"])


def test_names_are_in_their_order_and_different() -> None:
    assert list(NAMES) == sorted(set(NAMES))


def test_more_problems_than_there_are_are_refused_with_the_number() -> None:
    with pytest.raises(DataError, match=r"num is 99999; allowed for the val split of alphabet_sort: 0 to \d+"):
        generate("val", 99999, seed=0)
