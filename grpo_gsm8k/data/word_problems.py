"""Templated arithmetic word problems of one or two steps: what the tiny model is trained and evaluated on.

Everything is a function of (split, num, seed). A problem's split is decided by a hash of its question with name and object
blanked, so train, val and test differ in wording or numbers, never merely in who owns what. Choices are made on val; test is
only reported on.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from grpo_gsm8k.errors import DataError, unknown_name
from grpo_gsm8k.types import Problem

SPLITS = ("train", "val", "test")
NUM_BUCKETS = 8  # of the blanked questions one bucket is test, one val, the rest train
NUMBERS = range(2, 21)

NAMES = tuple("Ada Ben Dan Eva Ian Leo Mia Pia Sam Tom Uma Zoe".split())
OBJECTS = tuple("apples books cards coins cups eggs hats keys nuts pens rings toys".split())

# Each kind: the sign of each step, and its wordings. Numbers appear in a question in the order in which they are used.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "add": (
        "+",
        (
            "{name} has {0} {objects}. {name} buys {1} more. How many {objects} does {name} have now?",
            "There are {0} {objects} in a box. {name} puts in {1} more. How many {objects} are in the box?",
            "{name} finds {0} {objects} and then {1} more. How many {objects} does {name} find?",
        ),
    ),
    "sub": (
        "-",
        (
            "{name} has {0} {objects}. {name} gives away {1}. How many {objects} does {name} have now?",
            "There are {0} {objects} in a box. {name} takes out {1}. How many {objects} are in the box?",
            "{name} finds {0} {objects} and then loses {1}. How many {objects} are left?",
        ),
    ),
    "add_add": (
        "++",
        (
            "{name} has {0} {objects}. {name} buys {1} more and then finds {2} more. How many {objects} does {name} have now?",
            "There are {0} {objects} in a box. {name} puts in {1} more, then {2} more. How many {objects} are in the box?",
            "{name} finds {0} {objects}, then {1} more and then {2} more. How many {objects} does {name} find?",
        ),
    ),
    "add_sub": (
        "+-",
        (
            "{name} has {0} {objects}. {name} buys {1} more and then gives away {2}. How many {objects} does {name} have now?",
            "There are {0} {objects} in a box. {name} puts in {1} more, then takes out {2}. How many {objects} are in the box?",
            "{name} finds {0} {objects}, then {1} more and then loses {2}. How many {objects} are left?",
        ),
    ),
    "sub_add": (
        "-+",
        (
            "{name} has {0} {objects}. {name} gives away {1} and then buys {2} more. How many {objects} does {name} have now?",
            "There are {0} {objects} in a box. {name} takes out {1}, then puts in {2} more. How many {objects} are in the box?",
            "{name} finds {0} {objects}, loses {1} and then finds {2} more. How many {objects} does {name} have now?",
        ),
    ),
}


class Skeleton(NamedTuple):
    """A question with name and object blanked: which wording, which numbers."""

    kind: str
    wording: str
    numbers: tuple[int, ...]


def generate(split: str, num: int, seed: int) -> list[Problem]:
    """Returns `num` different problems of one split; the kinds of problem are equally likely, so two in five have one step.

    A smaller `num` with the same seed gives a prefix of the same list. `meta` holds `kind`, `numbers` and `num_steps`.
    Raises: DataError for an unknown split, or when more problems are asked for than the split has.
    """
    available = count(split)
    if not 0 <= num <= available:
        raise DataError(f"num is {num}; allowed for the {split} split of the word problems: 0 to {available}")
    rng = random.Random(f"word problems/{split}/{seed}")
    spaces = {kind: _Draws(_skeletons(split)[kind], rng) for kind in KINDS}
    problems = []
    for _ in range(num):
        kind = rng.choice([kind for kind, space in spaces.items() if space.num_left])
        problems.append(_problem(split, *spaces[kind].draw()))
    return problems


def count(split: str) -> int:
    """Returns how many different problems a split has."""
    return sum(len(skeletons) for skeletons in _skeletons(split).values()) * len(NAMES) * len(OBJECTS)


def solve(kind: str, numbers: Sequence[int], max_steps: int | None = None) -> tuple[str, int]:
    """Returns the written solution (each step, then `#### result`) and its result, stopping after `max_steps` steps."""
    result, steps = numbers[0], []
    for sign, number in list(zip(KINDS[kind][0], numbers[1:], strict=True))[:max_steps]:
        before, result = result, result + number if sign == "+" else result - number
        steps.append(f"{before} {sign} {number} = {result}.")
    return f"{' '.join(steps)}\n#### {result}", result


def lazy_answer(problem: Problem) -> str:
    """Returns the solution that stops after the first step: wrong for every problem of two steps."""
    return solve(problem.meta["kind"], problem.meta["numbers"], max_steps=1)[0]


def blanked(skeleton: Skeleton) -> str:
    """Returns the question with name and object blanked, which alone decides the split."""
    return skeleton.wording.format(*skeleton.numbers, name="_", objects="_")


def split_of(skeleton: Skeleton) -> str:
    """Returns the split that a skeleton belongs to."""
    bucket = hashlib.sha256(blanked(skeleton).encode()).digest()[0] % NUM_BUCKETS
    return {0: "test", 1: "val"}.get(bucket, "train")


def _all_skeletons() -> Iterator[Skeleton]:
    for kind, (signs, wordings) in KINDS.items():
        for wording in wordings:
            for numbers in itertools.product(NUMBERS, repeat=len(signs) + 1):
                steps = (solve(kind, numbers, max_steps=i + 1)[1] for i in range(len(signs)))
                if all(result > 0 for result in steps):
                    yield Skeleton(kind, wording, numbers)


@functools.cache
def _all_by_split() -> dict[str, dict[str, list[Skeleton]]]:
    found: dict[str, dict[str, list[Skeleton]]] = {split: {kind: [] for kind in KINDS} for split in SPLITS}
    for skeleton in _all_skeletons():
        found[split_of(skeleton)][skeleton.kind].append(skeleton)
    return found


def _skeletons(split: str) -> dict[str, list[Skeleton]]:
    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    return _all_by_split()[split]


class _Draws:
    """Draws (skeleton, name, object) without replacement: a Fisher-Yates shuffle that stores only the swaps it made."""

    def __init__(self, skeletons: Sequence[Skeleton], rng: random.Random) -> None:
        self._skeletons, self._rng = skeletons, rng
        self._swapped: dict[int, int] = {}
        self.num_left = len(skeletons) * len(NAMES) * len(OBJECTS)

    def draw(self) -> tuple[Skeleton, str, str]:
        pick = self._rng.randrange(self.num_left)
        self.num_left -= 1
        index = self._swapped.get(pick, pick)
        self._swapped[pick] = self._swapped.pop(self.num_left, self.num_left)
        rest, object_index = divmod(index, len(OBJECTS))
        skeleton_index, name_index = divmod(rest, len(NAMES))
        return self._skeletons[skeleton_index], NAMES[name_index], OBJECTS[object_index]


def _problem(split: str, skeleton: Skeleton, name: str, objects: str) -> Problem:
    question = skeleton.wording.format(*skeleton.numbers, name=name, objects=objects)
    answer, result = solve(skeleton.kind, skeleton.numbers)
    return Problem(
        id=f"tiny/{split}/{hashlib.sha256(question.encode()).hexdigest()[:16]}",
        question=question,
        answer=answer,
        gold=str(result),
        meta={"kind": skeleton.kind, "numbers": list(skeleton.numbers), "num_steps": len(skeleton.numbers) - 1},
    )
