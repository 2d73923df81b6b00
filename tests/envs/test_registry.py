"""Environments by name: what each needs, what is refused, and that what is shipped is sound."""

from __future__ import annotations

import pytest

from grpo_gsm8k.config_rl import ENVS, MULTI_TURN
from grpo_gsm8k.data import word_problems
from grpo_gsm8k.data.rows import normalised
from grpo_gsm8k.envs.registry import DATASET_GRADERS, ENV_NAMES, describe_envs, make_env
from grpo_gsm8k.envs.verify import verify
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.types import Problem

GENERATED = tuple(name for name in ENV_NAMES if name not in DATASET_GRADERS)
PROBLEMS = [Problem("a", "2 and 2?", "#### 4", "4"), Problem("b", "2 and 3?", "#### 5", "5")]


def test_every_environment_has_a_line_and_the_config_knows_the_same_names() -> None:
    assert tuple(describe_envs()) == ENV_NAMES == ENVS
    assert GENERATED == MULTI_TURN
    assert all(line and "\n" not in line for line in describe_envs().values())


@pytest.mark.parametrize("name", GENERATED)
def test_a_shipped_environment_is_sound_and_its_splits_are_apart(name: str) -> None:
    env = make_env(name, num_train=150, num_val=50, num_test=100, seed=5)
    assert env.name == name
    assert env.max_turns > 1
    questions = [normalised(problem.question) for split in env.splits for problem in env.problems(split)]
    ids = [problem.id for split in env.splits for problem in env.problems(split)]
    assert len(set(questions)) == len(questions) == len(set(ids)) == 300
    for split in ("train", "val", "test"):
        found = verify(env, split)
        assert found.ok and found.findings == () and found.num_right == found.num_problems
    env.close()


@pytest.mark.parametrize("name", GENERATED)
def test_the_seed_alone_makes_the_problems(name: str) -> None:
    one, same, other = (make_env(name, num_train=20, num_val=5, num_test=5, seed=seed) for seed in (1, 1, 2))
    assert one.problems("train") == same.problems("train") != other.problems("train")


@pytest.mark.parametrize("name", GENERATED)
def test_an_environment_takes_the_problems_it_made_before(name: str) -> None:
    made = make_env(name, num_train=5, num_val=5, num_test=5).problems("val")
    again = make_env(name, splits={"test": made})
    assert (again.splits, again.problems("test")) == (("test",), made)


def test_a_data_set_has_its_own_grader_or_a_named_one() -> None:
    splits = {"test": PROBLEMS}
    assert make_env("gsm8k", splits=splits).version.startswith("numeric ")
    assert make_env("jsonl", splits=splits, grader="gsm8k_strict").version.startswith("gsm8k_strict ")
    assert make_env("gym", splits=splits).version.startswith("reasoning-gym ")
    math = make_env("math", splits=splits)
    assert math.version.startswith("math ")
    math.close()
    math.close()


def test_turns_can_be_chosen_where_there_are_turns() -> None:
    env = make_env("alphabet_sort", num_train=3, num_val=0, num_test=0, max_turns=2)
    assert env.max_turns == 2
    assert all(len(problem.meta["batches"]) == 2 for problem in env.problems("train"))
    wordle = make_env("wordle", num_train=1, num_val=0, num_test=0, max_turns=4)
    assert "in 4 turns" in wordle.problems("train")[0].question


def test_what_is_not_allowed_is_said_in_one_line() -> None:
    splits = {"train": word_problems.generate("train", 2, 0)}
    cases: list[tuple[str, dict[str, object], str]] = [
        ("wordel", {}, "unknown environment 'wordel'; did you mean 'wordle'?"),
        ("gsm8k", {}, "environment gsm8k needs problems by split"),
        ("tiny", {"splits": splits, "max_turns": 3}, "max_turns is 3; environment tiny has one turn"),
        ("tiny", {"splits": splits, "grader": "numerc"}, "unknown grader 'numerc'; did you mean 'numeric'?"),
        ("tiny", {"splits": splits, "grader": "gym"}, "unknown grader 'gym'"),
        ("wordle", {"grader": "numeric"}, "environment wordle scores its own rollouts"),
        ("alphabet_sort", {"max_turns": 99}, "max_turns is 99; allowed for environment alphabet_sort: 1 to 13"),
        ("calculator", {"max_turns": 0}, "max_turns is 0; allowed for environment calculator: 1 to 50"),
    ]
    for name, arguments, message in cases:
        with pytest.raises(ConfigError) as caught:
            make_env(name, **arguments)  # type: ignore[arg-type]
        assert message in str(caught.value) and "\n" not in str(caught.value)
