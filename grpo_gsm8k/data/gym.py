"""reasoning-gym mixtures: weighted draws from its generators, with splits that never share an underlying seed.

reasoning-gym makes item `idx` of a data set of seed `s` from `Random(s + idx)`, so two data sets of nearby seeds share items.
Here the seeds below 2**32 are cut into one range a split; a mixture's seed and a generator's name only choose where in its
own range a split begins. Blocks of 1024 items are one reasoning-gym data set each, so that an item never depends on how
many were asked for. Questions of small generators coincide all the same: those are dropped from the less important split.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_gsm8k.data.rows import last_boxed, normalised, question_hash
from grpo_gsm8k.errors import ConfigError, DataError, ProofError, unknown_name
from grpo_gsm8k.runs.storage import read_plain
from grpo_gsm8k.types import Problem, Score

MIXTURES_DIR = Path(__file__).with_name("mixtures")
BLOCK = 1024
_GAP = 2**20  # left free at the end of each range: some generators look a few seeds ahead
RANGES = {"train": (0, 2**31), "val": (2**31, 2**30), "test": (2**31 + 2**30, 2**30)}
MAX_TRIES = 50  # items looked at for each one kept, before the space is called too small


@dataclass(frozen=True)
class Task:
    """One generator of a mixture: its reasoning-gym name, its weight in the draw, its settings."""

    name: str
    weight: float
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Mixture:
    """The generators of a mixture and how many problems it has; None is the data set's default."""

    tasks: tuple[Task, ...]
    num_train: int | None = None
    num_test: int | None = None

    def as_spec(self) -> dict[str, Any]:
        """Returns the mixture as the mapping that `parse_mixture` takes."""
        return {"datasets": {task.name: {"weight": task.weight, "config": dict(task.config)} for task in self.tasks}}


def load_mixture(path: Path) -> Mixture:
    """Returns the mixture of a TOML file (see `parse_mixture`), or a shipped one by its name. Raises: ConfigError."""
    if not path.suffix and len(path.parts) == 1:
        shipped = {file.stem: file for file in MIXTURES_DIR.glob("*.toml")}
        if path.name not in shipped:
            raise ConfigError(unknown_name("mixture", path.name, shipped) + "; a file of your own is given by its path")
        path = shipped[path.name]
    try:
        spec = tomllib.loads(read_plain(path).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # a bad date or a number too long is no TOMLDecodeError
        raise ConfigError(f"{path}: not TOML ({error})") from None
    return parse_mixture(spec, str(path))


def parse_mixture(spec: Mapping[str, Any], where: str = "mixture") -> Mixture:
    """Returns the mixture of `{"datasets": {name: {"weight": 1.0, "config": {…}}}, "num_train": …, "num_test": …}`.

    `weight` is 1 and `config` the generator's own unless given. `where` is what errors call the spec.
    Raises: ConfigError for an unknown data set or key (naming the valid ones), and for settings the generator refuses.
    """
    _check_keys(spec, ("datasets", "num_train", "num_test"), "key", where)
    datasets = spec.get("datasets")
    if not isinstance(datasets, Mapping) or not datasets:
        raise ConfigError(f"{where}: no [datasets.<name>]; a mixture has at least one reasoning-gym data set")
    sizes = [spec.get(key) for key in ("num_train", "num_test")]
    for key, size in zip(("num_train", "num_test"), sizes, strict=True):
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ConfigError(f"{where}: {key} is {size!r}; a whole number of at least 1 is needed")
    return Mixture(tuple(_parse_task(name, entry, f"{where}: {name}") for name, entry in datasets.items()), *sizes)


def _check_keys(given: Mapping[str, Any], valid: tuple[str, ...], kind: str, where: str) -> None:
    for key in given:
        if key not in valid:
            raise ConfigError(f"{where}: {unknown_name(kind, str(key), valid)}")


def _parse_task(name: str, entry: Any, where: str) -> Task:
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS or name == "composite":
        raise ConfigError(f"{where}: {unknown_name('reasoning-gym data set', name, set(DATASETS) - {'composite'})}")
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: a table with weight and config is needed, and this is {entry!r}")
    _check_keys(entry, ("weight", "config"), "key", where)
    weight, config = entry.get("weight", 1.0), entry.get("config", {})
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ConfigError(f"{where}: weight is {weight!r}; a number above 0 is needed")
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}: config is {config!r}; a table is needed")
    valid = tuple(field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size"))
    _check_keys(config, valid, "config key", where)
    try:
        json.dumps(config)
        _dataset(name, json.dumps(config, sort_keys=True), 0)
    except Exception as error:  # each generator has its own way of refusing its settings, asserts among them
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ConfigError(f"{where}: reasoning-gym refuses this config: {reason}") from None
    return Task(name, float(weight), dict(config))


def underlying_seed(split: str, seed: int, name: str, index: int) -> tuple[int, int]:
    """Returns (block seed, index in the block) of a generator's item; their sum is what reasoning-gym seeds it with.

    The sum lies in the split's own range (`RANGES`) whatever the mixture's seed, the generator and the index.
    """
    start, width = RANGES[split]
    num_blocks = (width - _GAP) // BLOCK
    first = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
    block, within = divmod(index, BLOCK)
    return start + (first + block) % num_blocks * BLOCK, within


@functools.lru_cache(maxsize=128)
def _dataset(name: str, config: str, block_seed: int) -> Any:
    from reasoning_gym.factory import create_dataset

    return create_dataset(name, seed=block_seed, size=BLOCK, **json.loads(config))


@functools.lru_cache(maxsize=8192)
def _entry(name: str, config: str, block_seed: int, within: int) -> dict[str, Any]:
    try:
        entry = _dataset(name, config, block_seed)[within]
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"reasoning-gym's {name} made no item from seed {block_seed} + {within}: {reason}; change it") from None
    return dict(entry)


def generate_mixture(
    mixture: Mixture, split: str, num: int, seed: int, taken: set[str] | None = None
) -> tuple[list[Problem], int]:
    """Returns `num` problems of a split, and how many items were dropped because their question was there before.

    Questions in `taken` (normalised; those of the other splits) are never given, and in val and test no question twice; the
    questions given are added to `taken`. Which generator an item comes from is drawn by weight, item by item.
    Raises: DataError when the generators do not have so many questions, or one of them does not repeat itself.
    """
    taken = set() if taken is None else taken
    ours: set[str] = set()
    problems: list[Problem] = []
    index = 0
    while len(problems) < num:
        if index >= MAX_TRIES * num:
            raise DataError(
                f"reasoning-gym mixture: {len(problems)} of {num} {split} problems found in {index} items, the others ask what "
                "was asked before; ask for fewer problems, or widen the config"
            )
        rng = random.Random(f"reasoning-gym mixture/{seed}/{split}/{index}")
        task = rng.choices(mixture.tasks, [task.weight for task in mixture.tasks])[0]
        problem = _problem(task, split, seed, index)
        asked = normalised(problem.question)
        if asked not in taken and (split == "train" or asked not in ours):
            problems.append(problem)
            ours.add(asked)
        index += 1
    taken |= ours
    _check_repeats(problems)
    return problems, index - num


def _check_repeats(problems: list[Problem]) -> None:
    """Makes the first problem of each generator again, from nothing, and compares."""
    first = {problem.meta["gym"]["dataset"]: problem for problem in reversed(problems)}
    for name, problem in first.items():
        spec = problem.meta["gym"]
        again = _dataset.__wrapped__(name, json.dumps(spec["config"], sort_keys=True), spec["seed"])[spec["index"]]
        if again["question"] != problem.question:
            raise DataError(f"reasoning-gym's {name} does not repeat itself from a seed, so it cannot be pinned; leave it out")


def _problem(task: Task, split: str, seed: int, index: int) -> Problem:
    block_seed, within = underlying_seed(split, seed, task.name, index)
    entry = _entry(task.name, json.dumps(task.config, sort_keys=True), block_seed, within)
    answer = "" if entry["answer"] is None else str(entry["answer"])  # None: only the generator's scorer can tell
    spec = {"dataset": task.name, "config": dict(task.config), "seed": block_seed, "index": within}
    identity = f"gym/{split}/{task.name}/{index:05d}-{question_hash(entry['question'])}"
    return Problem(identity, entry["question"], answer, answer, {"gym": spec})


def score_answer(problem: Problem, answer: str | None) -> float:
    """Returns reasoning-gym's own score, 0 to 1, of an answer that was already read from a completion.

    Raises: DataError when the problem is none of reasoning-gym's; ProofError when the installed reasoning-gym makes another
    question from the same seed (its version changed).
    """
    spec = problem.meta.get("gym")
    if spec is None:
        raise DataError(f"{problem.id}: not a reasoning-gym problem (no meta.gym)")
    config = json.dumps(spec["config"], sort_keys=True)
    entry = _entry(spec["dataset"], config, spec["seed"], spec["index"])
    if entry["question"] != problem.question:
        raise ProofError(f"{problem.id}: this reasoning-gym makes another question from the seed; install the recorded version")
    return float(_dataset(spec["dataset"], config, spec["seed"]).score_answer(answer, entry))


def read_answer(completion: str) -> str | None:
    r"""Returns the answer in a completion: its last `<answer>` tag, else its last `\boxed{}`, else what follows `####`."""
    from reasoning_gym.utils import extract_answer

    tagged = extract_answer(completion, "answer")
    if tagged is not None:
        return str(tagged)
    try:
        return last_boxed(completion)
    except ValueError:
        _, mark, tail = completion.rpartition("####")
        return tail.strip() if mark and tail.strip() else None


def score(problem: Problem, completion: str) -> Score:
    """Returns the score of a completion by reasoning-gym's own scorer; below 1 it is `wrong`, with the partial value kept.

    Raises: as `score_answer`. A scorer that fails on the text gives status `error`.
    """
    answer = read_answer(completion)
    if answer is None:
        return Score(0.0, None, "unparsed", r"no <answer>, \boxed{} or #### in the completion")
    try:
        value = score_answer(problem, answer)
    except (DataError, ProofError):
        raise
    except Exception as error:  # another package's code on a model's text: a failure is said, never taken for a 0
        return Score(0.0, answer, "error", f"reasoning-gym's scorer failed: {type(error).__name__}: {error}")
    return Score(value, answer, "correct" if value >= 1.0 else "wrong")
