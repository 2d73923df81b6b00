"""Environments by name. Importing this imports no grader and no generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_gsm8k.envs.protocol import Environment
from grpo_gsm8k.errors import ConfigError, unknown_name
from grpo_gsm8k.rewards.workers import DEFAULT_TIMEOUT_S
from grpo_gsm8k.types import Problem

DATASET_GRADERS = {"tiny": "numeric", "gsm8k": "numeric", "math": "math", "gym": "gym", "jsonl": "numeric"}
_LINES = {
    "tiny": "arithmetic word problems of one or two steps, made for the tiny model; one turn",
    "gsm8k": "GSM8K's grade-school word problems; one turn",
    "math": "MATH's competition problems; one turn",
    "gym": "a weighted mixture of reasoning-gym's generators, each with its own scorer; one turn",
    "jsonl": "problems of your own from a JSONL file, with a named grader; one turn",
    "wordle": "guess a word of five letters from signs (right place, elsewhere, not in it); six turns",
    "alphabet_sort": "sort names that arrive over several turns; three turns",
    "calculator": "word problems with a calculator called by <calc>12 + 5</calc>; up to six turns",
    "calculator_inline": "word problems with a calculator that fills in what follows 12 + 5 =; up to six turns",
}
ENV_NAMES: tuple[str, ...] = tuple(_LINES)


def describe_envs() -> dict[str, str]:
    """Returns one line for each environment, by name."""
    return dict(_LINES)


def make_env(
    name: str,
    *,
    splits: Mapping[str, Sequence[Problem]] | None = None,
    grader: str | None = None,
    num_train: int = 4000,
    num_val: int = 500,
    num_test: int = 1000,
    seed: int = 0,
    max_turns: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Environment:
    """Returns an environment; the caller closes it.

    `splits`: problems by split. A data set's environment needs them; one that makes its own (`num_train` … `num_test` of them,
    from `seed`, no question in two splits) takes those it made before, as read from a file, instead. `grader` None is the
    environment's own; a data set's may be any of `rewards.registry.GRADERS`. `max_turns` None is the environment's own.
    `timeout_s` is of one scoring, where that is done in processes (`math`, reasoning-gym); all else takes bounded time.
    Raises: ConfigError for a name, grader or number of turns that is not allowed; DataError for more problems than there are.
    """
    if name not in _LINES:
        raise ConfigError(unknown_name("environment", name, _LINES))
    if name in DATASET_GRADERS:
        return _dataset_env(name, splits, grader, max_turns, timeout_s)
    if grader is not None:
        raise ConfigError(f"environment {name} scores its own rollouts; leave the grader out (it is {grader!r})")
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    return _generated_env(name, splits, sizes, seed, max_turns)


def _dataset_env(
    name: str,
    splits: Mapping[str, Sequence[Problem]] | None,
    grader: str | None,
    max_turns: int | None,
    timeout_s: float,
) -> Environment:
    from grpo_gsm8k.envs.dataset import DatasetEnv
    from grpo_gsm8k.rewards.gym import GymScorer
    from grpo_gsm8k.rewards.registry import GRADERS, make_grader

    if not splits:
        raise ConfigError(f"environment {name} needs problems by split, and none are given; prepare its data set first")
    if max_turns not in (None, 1):
        raise ConfigError(f"max_turns is {max_turns}; environment {name} has one turn, so allowed is 1 or none")
    chosen = DATASET_GRADERS[name] if grader is None else grader
    if name == "gym" and chosen == "gym":
        return DatasetEnv(name, splits, GymScorer(timeout_s=timeout_s))
    if chosen not in GRADERS:
        raise ConfigError(unknown_name("grader", chosen, (*GRADERS, "gym") if name == "gym" else GRADERS))
    return DatasetEnv(name, splits, make_grader(chosen, timeout_s))


def _generated_env(
    name: str,
    splits: Mapping[str, Sequence[Problem]] | None,
    sizes: Mapping[str, int],
    seed: int,
    max_turns: int | None,
) -> Environment:
    from grpo_gsm8k.data import word_problems
    from grpo_gsm8k.envs import alphabet_sort, calculator, wordle
    from grpo_gsm8k.envs.splits import generate_splits

    def check(low: int, high: int) -> None:
        if max_turns is not None and not low <= max_turns <= high:
            raise ConfigError(f"max_turns is {max_turns}; allowed for environment {name}: {low} to {high}")

    if name == "wordle":
        check(1, wordle.MAX_TURNS)
        turns = max_turns or wordle.NUM_TURNS
        return wordle.WordleEnv(
            splits or generate_splits(lambda split, num, seed: wordle.generate(split, num, seed, turns), sizes, seed), turns
        )
    if name == "alphabet_sort":
        check(1, alphabet_sort.MAX_TURNS)
        turns = max_turns or alphabet_sort.NUM_TURNS
        return alphabet_sort.AlphabetSortEnv(
            splits or generate_splits(lambda split, num, seed: alphabet_sort.generate(split, num, seed, turns), sizes, seed),
            turns,
        )
    check(1, calculator.MAX_TURNS)
    turns = max_turns or calculator.NUM_TURNS
    if name == "calculator":
        return calculator.CalculatorEnv(splits or generate_splits(calculator.generate, sizes, seed), turns)
    return calculator.InlineCalculatorEnv(splits or generate_splits(word_problems.generate, sizes, seed), turns)
