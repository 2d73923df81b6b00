"""`alphabet_sort`: names arrive three a turn, and each turn the model gives the whole list so far, sorted.

It writes `<sorted>Ada, Ben, Tom</sorted>`, with commas between the names, which are compared as written. A turn without a list
is answered by the next names like any other.

Reward: the similarity of the last turn's list to the right one, 2 L / (n + m): n and m are their lengths, L the most names
that stand in both in the same order (the longest common subsequence). So 1 is the right list and nothing else, a missing or a
superfluous name costs a little, and a list in the order of arrival earns the part of it that was sorted anyway.

Problems are told apart by the three names that come first: each set of three belongs to one split, by its hash.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Mapping, Sequence

from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.envs.splits import SPLITS, SplitEnvironment
from grpo_gsm8k.errors import DataError, unknown_name
from grpo_gsm8k.types import Problem, Score, Status

NAMES_PER_TURN = 3
NUM_TURNS = 3
NAMES = tuple(
    "Ada Amy Ann Ben Bob Cal Cleo Dan Dora Eli Emma Eva Finn Gus Hal Hugo Ian Ida Ivy Jack Jane Joe Kai Kim Leo Lily "
    "Lou Mia Nora Olga Otto Pam Pia Ray Rosa Sam Tess Tom Uma Zoe".split()
)
MAX_TURNS = len(NAMES) // NAMES_PER_TURN

_LIST = re.compile(r"<sorted>(.*?)</sorted>", re.DOTALL)


def split_of(names: Sequence[str]) -> str:
    """Returns the split that a set of first names belongs to: an eighth of the sets are val, an eighth test."""
    bucket = hashlib.sha256(" ".join(sorted(names)).encode()).digest()[0] % 8
    return {0: "test", 1: "val"}.get(bucket, "train")


@functools.cache
def _first_names(split: str) -> tuple[tuple[str, ...], ...]:
    return tuple(names for names in itertools.combinations(NAMES, NAMES_PER_TURN) if split_of(names) == split)


def generate(split: str, num: int, seed: int, num_turns: int = NUM_TURNS) -> list[Problem]:
    """Returns the first `num` problems of a split, no two of which begin with the same three names.

    Raises: DataError for an unknown split, or more problems than there are.
    """
    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    first = _first_names(split)
    if not 0 <= num <= len(first):
        raise DataError(f"num is {num}; allowed for the {split} split of alphabet_sort: 0 to {len(first)}")
    rng = random.Random(f"alphabet_sort/{split}/{seed}")
    return [_problem(split, names, seed, num_turns) for names in rng.sample(first, len(first))[:num]]


def _problem(split: str, first: tuple[str, ...], seed: int, num_turns: int) -> Problem:
    rng = random.Random(f"alphabet_sort/{seed}/{' '.join(first)}")
    arriving = rng.sample(first, len(first)) + rng.sample(sorted(set(NAMES) - set(first)), NAMES_PER_TURN * (num_turns - 1))
    batches = [arriving[start : start + NAMES_PER_TURN] for start in range(0, len(arriving), NAMES_PER_TURN)]
    question = f"Sort these names: {', '.join(batches[0])}. Give the whole list each time, as <sorted>Ann, Bob</sorted>."
    gold = ", ".join(sorted(arriving))
    identity = f"alphabet_sort/{split}/{hashlib.sha256(' '.join(arriving).encode()).hexdigest()[:16]}"
    return Problem(identity, question, gold, gold, {"batches": batches})


def read_list(turn: str) -> list[str] | None:
    """Returns the names of a turn's first list, or None where there is none."""
    found = _LIST.search(turn)
    return [name for name in (part.strip() for part in found[1].split(",")) if name] if found else None


def similarity(answer: Sequence[str], right: Sequence[str]) -> float:
    """Returns 2 L / (n + m), L being the length of the longest common subsequence; 1.0 for equal lists."""
    longest = [0] * (len(right) + 1)
    for name in answer:
        before = longest
        longest = [0]
        for place, expected in enumerate(right):
            longest.append(before[place] + 1 if name == expected else max(longest[place], before[place + 1]))
    return 2 * longest[-1] / (len(answer) + len(right)) if answer or right else 1.0


class AlphabetSortEnv(SplitEnvironment):
    """Names to sort over several turns; which names come when is in the problem's `meta.batches`."""

    name = "alphabet_sort"
    version = "1"
    stop = ("</sorted>",)

    def __init__(self, splits: Mapping[str, Sequence[Problem]], max_turns: int = NUM_TURNS) -> None:
        super().__init__(splits)
        self.max_turns = max_turns

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        """Returns the right list of each turn."""
        return tuple(f"<sorted>{', '.join(names)}</sorted>" for names in _right_lists(problem))

    def _answer(self, exchange: Exchange) -> Reply:
        batches, num_turns = exchange.problem.meta["batches"], len(exchange.completions)
        if num_turns < len(batches):
            return Observation(f"More: {', '.join(batches[num_turns])}")
        lists = [read_list(turn) for turn in exchange.completions]
        right = _right_lists(exchange.problem)
        metrics = {"num_lists_right": float(sum(a == b for a, b in zip(lists, right, strict=True)))}
        last = lists[-1]
        if last is None:
            return Outcome(Score(0.0, None, "unparsed", "no <sorted>…</sorted> in the last turn"), metrics)
        value = similarity(last, right[-1])
        status: Status = "correct" if last == right[-1] else "wrong"
        return Outcome(Score(value, ", ".join(last), status, f"similarity {value:.3f}"), metrics)


def _right_lists(problem: Problem) -> list[list[str]]:
    batches: list[list[str]] = problem.meta["batches"]
    return [sorted(itertools.chain.from_iterable(batches[: turn + 1])) for turn in range(len(batches))]
