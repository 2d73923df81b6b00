"""reasoning-gym mixtures: errors that name what is valid, and splits that share neither seeds nor questions."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.data import gym
from grpo_gsm8k.data.gym import RANGES, generate_mixture, load_mixture, parse_mixture, score, score_answer, underlying_seed
from grpo_gsm8k.data.prep import PrepRequest, prepare
from grpo_gsm8k.data.prepared import load_split
from grpo_gsm8k.data.rows import normalised
from grpo_gsm8k.errors import ConfigError, DataError, ProofError
from grpo_gsm8k.types import Problem

SMALL: dict[str, Any] = {
    "datasets": {
        "chain_sum": {"weight": 3, "config": {"max_terms": 2, "max_digits": 1}},
        "spell_backward": {"weight": 1},
    }
}


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from(sorted(RANGES)), st.integers(0, 10**7))
def test_an_underlying_seed_lies_in_its_splits_own_range(seed: int, other: int, split: str, index: int) -> None:
    for mixture_seed in (seed, other):
        start, width = RANGES[split]
        assert start <= sum(underlying_seed(split, mixture_seed, "chain_sum", index)) < start + width - 2**19


def test_the_ranges_of_the_splits_do_not_touch() -> None:
    ends = sorted((start, start + width) for start, width in RANGES.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends)) and ends[-1][1] <= 2**32


def test_what_reasoning_gym_is_really_seeded_with_never_meets_another_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches `random.Random` itself while three mixtures of nearby seeds are generated."""
    seen: dict[str, set[int]] = {split: set() for split in RANGES}
    real = random.Random
    current = ""

    class Watching(real):
        def __init__(self, seed: Any = None) -> None:
            if current and isinstance(seed, int):
                seen[current].add(seed)
            super().__init__(seed)

    mixture = parse_mixture(SMALL)
    gym._entry.cache_clear()
    monkeypatch.setattr("random.Random", Watching)
    monkeypatch.setattr("reasoning_gym.algorithmic.spell_backward.Random", Watching)
    for seed in (0, 1, 2):
        for split in RANGES:
            current = split
            generate_mixture(mixture, split, 40, seed)
    assert all(len(seeds) >= 100 for seeds in seen.values())
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])


def test_no_question_is_in_two_splits_and_the_dropped_are_counted(tmp_path: Path) -> None:
    request = PrepRequest(tmp_path / "out", dataset="gym", eval_n=40, num_train=300, num_test=40, mixture=SMALL)
    prepared = prepare(request)
    splits = {split: load_split(tmp_path / "out", split) for split in ("train", "val", "test")}
    asked = {split: {normalised(problem.question) for problem in problems} for split, problems in splits.items()}
    assert not (asked["train"] & asked["val"] or asked["train"] & asked["test"] or asked["val"] & asked["test"])
    assert (len(asked["val"]), len(asked["test"]), len(splits["train"])) == (40, 40, 300)
    assert prepared.manifest["dropped_repeats"]["train"] > 0
    assert not prepare(request).changed


def test_more_of_a_mixture_begins_with_the_same_problems() -> None:
    mixture = parse_mixture(SMALL)
    few, many = (generate_mixture(mixture, "val", num, seed=5)[0] for num in (20, 60))
    assert many[:20] == few and generate_mixture(mixture, "val", 20, seed=6)[0] != few


def test_weights_are_kept_to() -> None:
    problems, _ = generate_mixture(parse_mixture(SMALL), "train", 400, seed=1)
    share = sum(problem.meta["gym"]["dataset"] == "chain_sum" for problem in problems) / 400
    assert 0.68 < share < 0.82


def test_a_space_that_is_too_small_is_said() -> None:
    tiny = parse_mixture({"datasets": {"chain_sum": {"config": {"max_terms": 2, "max_digits": 1}}}})
    with pytest.raises(DataError, match=r"200 of 300 val problems found in 15000 items"):
        generate_mixture(tiny, "val", 300, seed=0)


def test_reasoning_gyms_own_scorer_judges_problems_read_back_from_disk(tmp_path: Path) -> None:
    mixture = {"datasets": {"countdown": {}, "graph_color": {}, "chain_sum": {}, "family_relationships": {}}}
    prepare(PrepRequest(tmp_path / "out", dataset="gym", eval_n=24, num_train=5, num_test=5, mixture=mixture))
    by_name = {problem.meta["gym"]["dataset"]: problem for problem in load_split(tmp_path / "out", "val")}
    for name in ("countdown", "chain_sum", "family_relationships"):
        problem = by_name[name]
        assert score_answer(problem, problem.gold) == 1.0
        right = score(problem, f"let me see <answer>{problem.gold}</answer>")
        assert (right.value, right.status, right.answer) == (1.0, "correct", problem.gold)
        assert score(problem, r"I say \boxed{-987654321}").status == "wrong"
        assert score(problem, "I do not know").status == "unparsed"
    other_words = f"({by_name['countdown'].gold})"  # not the oracle's string: only the generator's scorer can tell
    assert score_answer(by_name["countdown"], other_words) == 1.0
    assert by_name["graph_color"].gold == "" and score(by_name["graph_color"], "<answer>[]</answer>").value < 1.0


def test_a_question_that_is_made_differently_now_is_never_scored() -> None:
    (problem,), _ = generate_mixture(parse_mixture(SMALL), "val", 1, seed=3)
    changed = Problem(problem.id, problem.question + " ", problem.answer, problem.gold, problem.meta)
    with pytest.raises(ProofError, match="makes another question"):
        score(changed, "<answer>1</answer>")
    with pytest.raises(DataError, match="not a reasoning-gym problem"):
        score_answer(Problem("x", "q", "1", "1"), "1")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"no \[datasets\.<name>\]"),
        ({"dataset": {}}, "unknown key 'dataset'; did you mean 'datasets'"),
        ({"datasets": {"chain_sums": {}}}, "unknown reasoning-gym data set 'chain_sums'; did you mean 'chain_sum'"),
        ({"datasets": {"chain_sum": {"wait": 1}}}, "unknown key 'wait'; did you mean 'weight'"),
        ({"datasets": {"chain_sum": {"config": {"max_term": 3}}}}, "unknown config key 'max_term'; did you mean 'max_terms'"),
        ({"datasets": {"chain_sum": {"config": {"seed": 3}}}}, "unknown config key 'seed'"),
        ({"datasets": {"chain_sum": {"config": {"min_terms": 9}}}}, "reasoning-gym refuses this config: max_terms must be"),
        ({"datasets": {"chain_sum": {"config": {"min_terms": "a"}}}}, "reasoning-gym refuses this config"),
        ({"datasets": {"chain_sum": {"weight": 0}}}, "weight is 0; a number above 0"),
        ({"datasets": {"chain_sum": {"weight": True}}}, "weight is True; a number above 0"),
        ({"datasets": {"chain_sum": 3}}, "a table with weight and config is needed"),
        ({"datasets": {"chain_sum": {}}, "num_train": -4}, "num_train is -4; a whole number of at least 1"),
    ],
)
def test_a_bad_mixture_is_one_line_naming_what_is_valid(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        parse_mixture(spec, "mix.toml")
    assert str(raised.value).startswith("mix.toml: ") and "\n" not in str(raised.value)


def test_a_mixture_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(
        "num_train = 30\nnum_test = 6\n[datasets.chain_sum]\nweight = 2\nconfig = { max_terms = 3 }\n[datasets.gcd]\n"
    )
    mixture = load_mixture(path)
    assert [(task.name, task.weight, dict(task.config)) for task in mixture.tasks] == [
        ("chain_sum", 2.0, {"max_terms": 3}),
        ("gcd", 1.0, {}),
    ]
    prepared = prepare(PrepRequest(tmp_path / "out", dataset="gym", eval_n=4, mixture=path))
    assert prepared.rows == {"train": 30, "val": 4, "test": 6}
    path.write_text("[datasets.chain_sum]\nweight = 1\n[datasets.gcd]\n")
    with pytest.raises(DataError, match=r"mixture\.datasets\.chain_sum\.weight: asked 1\.0, there 2\.0"):
        prepare(PrepRequest(tmp_path / "out", dataset="gym", eval_n=4, mixture=path, num_train=30, num_test=6))
    path.write_text("[datasets")
    with pytest.raises(ConfigError, match="not TOML"):
        load_mixture(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mixture(tmp_path / "none.toml")


def test_a_scorer_that_fails_says_error_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,), _ = generate_mixture(parse_mixture({"datasets": {"gcd": {}}}), "val", 1, seed=3)

    def broken(*_: Any) -> float:
        raise KeyError("shape")

    monkeypatch.setattr("reasoning_gym.arithmetic.gcd.GCDDataset.score_answer", broken)
    failed = score(problem, "<answer>1</answer>")
    assert (failed.status, failed.explanation) == ("error", "reasoning-gym's scorer failed: KeyError: 'shape'")


@pytest.mark.slow
def test_every_generator_of_reasoning_gym_can_be_pinned() -> None:
    from reasoning_gym.factory import DATASETS

    for name in sorted(set(DATASETS) - {"composite"}):
        problems, _ = generate_mixture(parse_mixture({"datasets": {name: {}}}), "train", 2, seed=11)
        assert 0.0 <= score_answer(problems[0], problems[0].gold) <= 1.0
