"""`wordle`: the model guesses a secret word of five letters, `<guess>crane</guess>` a turn, six turns by default.

Each guess is answered by a line of five signs, one a letter: `G` this letter stands here, `Y` it stands elsewhere, `X` it is
not in the word (or not once more: a letter is marked at most as often as the secret has it, right places first). Any five
letters a-z are a guess; case does not count. A turn without one is answered by a line that says so, and is lost.

Reward: 1 for the secret. A game that is lost earns 0.1 for each of the five places that some guess had right, and 0 if no
turn held a guess.

Problems are games: number n has one secret, whatever else is asked for. Each secret belongs to one split, by its hash.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.envs.splits import SPLITS, SplitEnvironment
from grpo_gsm8k.errors import DataError, unknown_name
from grpo_gsm8k.types import Problem, Score

NUM_LETTERS = 5
NUM_TURNS = 6
MAX_TURNS = 20
PLACE_REWARD = 0.1
NO_GUESS = "no guess: write five letters as <guess>crane</guess>"

_GUESS = re.compile(r"<guess>\s*([a-zA-Z]{5})\s*</guess>")


@functools.cache
def words() -> tuple[str, ...]:
    """Returns the secrets: common English words of five letters, sorted, none of which stands in the question."""
    text = (files("grpo_gsm8k.envs") / "wordle_words.txt").read_text("utf-8")
    return tuple(text.split())


def split_of(word: str) -> str:
    """Returns the split that a secret belongs to: a quarter of them are val, a quarter test."""
    bucket = hashlib.sha256(word.encode()).digest()[0] % 4
    return {0: "test", 1: "val"}.get(bucket, "train")


def generate(split: str, num: int, seed: int, num_turns: int = NUM_TURNS) -> list[Problem]:
    """Returns the first `num` games of a split; a secret comes again only after all others of the split.

    Raises: DataError for an unknown split or a negative number.
    """
    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    if num < 0:
        raise DataError(f"num is {num}; a number of games is at least 0")
    secrets = [word for word in words() if split_of(word) == split]
    rng = random.Random(f"wordle/{split}/{seed}")
    drawn: list[str] = []
    while len(drawn) < num:
        drawn += rng.sample(secrets, len(secrets))
    return [_game(split, index, secret, num_turns) for index, secret in enumerate(drawn[:num])]


def _game(split: str, index: int, secret: str, num_turns: int) -> Problem:
    number = index * len(SPLITS) + SPLITS.index(split) + 1  # so that no two splits have a game of the same number
    question = (
        f"Game {number}. Guess the secret word of {NUM_LETTERS} letters in {num_turns} turns, one guess a turn, written as "
        "<guess>crane</guess>. Each guess is answered by a sign a letter: G right place, Y elsewhere in the word, X not in it."
    )
    return Problem(f"wordle/{split}/{index:05d}-{secret}", question, secret, secret)


def feedback(guess: str, secret: str) -> str:
    """Returns the signs of a guess, spaced: `X Y X X G`. Both words are of five letters, in lower case."""
    signs = ["G" if letter == right else "X" for letter, right in zip(guess, secret, strict=True)]
    left = Counter(right for right, sign in zip(secret, signs, strict=True) if sign != "G")
    for place, letter in enumerate(guess):
        if signs[place] == "X" and left[letter] > 0:
            signs[place] = "Y"
            left[letter] -= 1
    return " ".join(signs)


def read_guess(turn: str) -> str | None:
    """Returns the first well-formed guess of a turn in lower case, or None where there is none."""
    found = _GUESS.search(turn)
    return found[1].lower() if found else None


class WordleEnv(SplitEnvironment):
    """The guessing game; the secret is the problem's gold."""

    name = "wordle"
    version = "1"
    stop = ("</guess>",)

    def __init__(self, splits: Mapping[str, Sequence[Problem]], max_turns: int = NUM_TURNS) -> None:
        super().__init__(splits)
        self.max_turns = max_turns

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        """Returns the game that is won at once."""
        return (f"<guess>{problem.gold}</guess>",)

    def _answer(self, exchange: Exchange) -> Reply:
        secret = exchange.problem.gold
        guesses = [read_guess(turn) for turn in exchange.completions]
        last = guesses[-1]
        made = [guess for guess in guesses if guess is not None]
        metrics = {"num_guesses": float(len(made)), "num_malformed": float(len(guesses) - len(made))}
        if last == secret:
            return Outcome(Score(1.0, last, "correct", f"guessed in turn {len(guesses)}"), metrics)
        if len(guesses) < self.max_turns:
            return Observation(NO_GUESS if last is None else feedback(last, secret))
        if not made:
            return Outcome(Score(0.0, None, "unparsed", "no turn held a guess"), metrics)
        num_places = sum(any(guess[place] == secret[place] for guess in made) for place in range(NUM_LETTERS))
        why = f"not guessed in {self.max_turns} turns; {num_places} of {NUM_LETTERS} places were right at some time"
        return Outcome(Score(PLACE_REWARD * num_places, made[-1], "wrong", why), metrics)
