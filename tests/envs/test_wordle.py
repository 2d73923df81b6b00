"""The guessing game: its signs against an independent oracle, its turns, its reward, its problems."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.envs import wordle
from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.envs.wordle import WordleEnv, feedback, generate, split_of, words
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.types import Problem

CRANE = Problem("one", "Game 1. …", "crane", "crane")
FEW_LETTERS = st.text(alphabet="abcd", min_size=5, max_size=5)


def play(*turns: str, secret: Problem = CRANE, max_turns: int = 6) -> Reply:
    return WordleEnv({"test": [secret]}, max_turns).reply([Exchange(secret, turns, "stop")])[0]


def signs_by_counting(guess: str, secret: str) -> str:
    """Another way to the same signs: a letter that is not in place is Y if fewer than its unplaced copies came before it."""
    signs = []
    for place, letter in enumerate(guess):
        placed = [g == s == letter for g, s in zip(guess, secret, strict=True)]
        if placed[place]:
            signs.append("G")
            continue
        free = secret.count(letter) - sum(placed)
        earlier = sum(guess[i] == letter and not placed[i] for i in range(place))
        signs.append("Y" if earlier < free else "X")
    return " ".join(signs)


@pytest.mark.parametrize(
    ("guess", "secret", "signs"),
    [
        ("crane", "crane", "G G G G G"),
        ("slate", "crane", "X X G X G"),
        ("erase", "speed", "Y X X Y Y"),  # both e of the guess are somewhere in the secret
        ("eerie", "crane", "X X Y X G"),  # the only e stands at the end, so the first two are not in the word once more
        ("allow", "label", "Y Y Y X X"),
        ("llama", "label", "G Y Y X X"),
        ("abide", "speed", "X X X Y Y"),
    ],
)
def test_signs_of_well_known_cases(guess: str, secret: str, signs: str) -> None:
    assert feedback(guess, secret) == signs


@given(FEW_LETTERS, FEW_LETTERS)
def test_signs_agree_with_counting_letter_by_letter(guess: str, secret: str) -> None:
    assert feedback(guess, secret) == signs_by_counting(guess, secret)


@given(FEW_LETTERS, FEW_LETTERS)
def test_a_letter_is_marked_as_often_as_both_words_have_it(guess: str, secret: str) -> None:
    marked = [letter for letter, sign in zip(guess, feedback(guess, secret).split(), strict=True) if sign != "X"]
    assert all(marked.count(letter) == min(guess.count(letter), secret.count(letter)) for letter in "abcd")


def test_the_secret_earns_one_and_other_guesses_are_answered_by_signs() -> None:
    assert play("<guess>slate</guess>") == Observation("X X G X G")
    won = play("<guess>slate</guess>", "I think <guess> CRANE </guess>")
    assert isinstance(won, Outcome)
    assert (won.score.value, won.score.status, won.score.answer) == (1.0, "correct", "crane")
    assert won.metrics == {"num_guesses": 2.0, "num_malformed": 0.0}


def test_a_malformed_guess_costs_a_turn_and_is_told_so() -> None:
    for turn in ("crane", "<guess>cranes</guess>", "<guess>cr4ne</guess>", "<guess>crane", ""):
        assert play(turn) == Observation(wordle.NO_GUESS)
    lost = play("nothing", "<guess>slate</guess>", max_turns=2)
    assert isinstance(lost, Outcome)
    assert lost.metrics == {"num_guesses": 1.0, "num_malformed": 1.0}


def test_a_lost_game_earns_a_tenth_for_each_place_that_was_right_at_some_time() -> None:
    lost = play("<guess>slate</guess>", "<guess>crown</guess>", "<guess>cabin</guess>", max_turns=3)  # a, e; c, r; c
    assert isinstance(lost, Outcome)
    assert lost.score.value == pytest.approx(0.4)
    assert (lost.score.status, lost.score.answer) == ("wrong", "cabin")


def test_a_lost_game_without_any_guess_earns_nothing() -> None:
    lost = play("what?", "a word", max_turns=2)
    assert isinstance(lost, Outcome)
    assert (lost.score.value, lost.score.status) == (0.0, "unparsed")


def test_no_lost_game_earns_as_much_as_a_won_one() -> None:
    lost = play("<guess>crano</guess>", "<guess>ooone</guess>", max_turns=2)  # every place was right, the word was not
    assert isinstance(lost, Outcome)
    assert lost.score.value == pytest.approx(0.5)
    assert lost.score.status == "wrong"


def test_the_word_list_is_of_different_five_letter_words() -> None:
    assert len(words()) >= 150
    assert len(set(words())) == len(words())
    assert all(len(word) == 5 and word.isascii() and word.islower() for word in words())


def test_games_are_the_same_from_the_same_seed_however_many_are_asked_for() -> None:
    games = generate("train", 300, seed=3)
    assert generate("train", 20, seed=3) == games[:20]
    assert [game.gold for game in generate("train", 300, seed=4)] != [game.gold for game in games]
    num_secrets = sum(split_of(word) == "train" for word in words())
    assert sorted(game.gold for game in games[:num_secrets]) == [word for word in words() if split_of(word) == "train"]


def test_no_secret_and_no_question_is_in_two_splits() -> None:
    games = {split: generate(split, 200, seed=0) for split in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not {game.gold for game in games[one]} & {game.gold for game in games[other]}
        assert not {game.question for game in games[one]} & {game.question for game in games[other]}
    assert all(game.gold not in game.question for split in games.values() for game in split)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="unknown split 'dev'"):
        generate("dev", 1, seed=0)
