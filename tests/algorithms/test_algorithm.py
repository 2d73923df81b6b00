"""The algorithms as records of parts: what each is made of, and which parts cannot go together."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from grpo_gsm8k.algorithms.algorithm import PARTS, Algorithm, check_group_size, with_parts
from grpo_gsm8k.algorithms.registry import ALGORITHMS, find_algorithm
from grpo_gsm8k.config_rl import ALGORITHM_NAMES, GrpoConfig
from grpo_gsm8k.errors import ConfigError


def test_each_algorithm_is_the_parts_of_its_paper() -> None:
    found = {
        name: (a.baseline, a.scale, a.ratio, a.objective, a.clip_low, a.clip_high, a.denominator, a.zero_variance)
        for name, a in ALGORITHMS.items()
    }
    assert found == {
        "reinforce": ("zero", "one", "token", "reinforce", None, None, "sequence_sum", "keep"),
        "reinforce_baseline": ("group_mean", "one", "token", "reinforce", None, None, "sequence_sum", "keep"),
        "rloo": ("leave_one_out", "one", "token", "reinforce", None, None, "sequence_sum", "keep"),
        "grpo": ("group_mean", "group_std", "token", "clip", 0.2, 0.2, "sequences", "keep"),
        "dr_grpo": ("group_mean", "one", "token", "clip", 0.2, 0.2, "constant", "keep"),
        "dapo": ("group_mean", "group_std", "token", "clip", 0.2, 0.28, "tokens", "resample"),
        "gspo": ("group_mean", "group_std", "sequence", "clip", 3e-4, 4e-4, "sequences", "keep"),
        "cispo": ("group_mean", "group_std", "token", "cispo", 1.0, 4.0, "tokens", "keep"),
    }


def test_the_config_offers_the_algorithms_and_parts_that_there_are() -> None:
    assert tuple(ALGORITHMS) == ALGORITHM_NAMES
    fields = GrpoConfig.__dataclass_fields__
    for part, allowed in PARTS.items():
        if part != "objective":  # an algorithm is its objective: it is chosen by name
            assert tuple(fields[part].metadata["choices"]) == allowed, part


def test_an_algorithm_is_found_by_name_and_an_unknown_one_is_refused() -> None:
    assert find_algorithm("dapo").name == "dapo"
    with pytest.raises(ConfigError, match=r"unknown algorithm 'grop'; did you mean 'grpo'\? \(known: cispo, dapo, "):
        find_algorithm("grop")


def test_a_part_given_as_none_stays_as_it_was() -> None:
    changed = with_parts(find_algorithm("grpo"), scale="one", clip_high=None, kl_beta=0.1)
    assert (changed.scale, changed.clip_high, changed.kl_beta) == ("one", 0.2, 0.1)
    assert with_parts(find_algorithm("grpo"), scale=None) == find_algorithm("grpo")


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("grpo", {"clip": 0.2}, "unknown part of an algorithm 'clip'; did you mean 'clip_low'?"),
        ("grpo", {"name": "other"}, "unknown part of an algorithm 'name'"),
        ("grpo", {"denominator": "token"}, "unknown denominator 'token'; did you mean 'tokens'?"),
        ("grpo", {"kl_estimator": "k3"}, "kl_estimator is not read by grpo while kl_beta is 0"),
        ("dr_grpo", {"advantage_eps": 1e-4}, "advantage_eps is not read by dr_grpo while scale is one"),
        ("grpo", {"overlong_penalty": 0.5}, "overlong_penalty is not read by grpo while overlong_buffer is 0"),
        ("grpo", {"clip_low": 1.5}, "clip_low is 1.5; a number from 0 to 1 is needed"),
        ("grpo", {"clip_high": -0.1}, "clip_high is -0.1; a number at least 0 is needed"),
        ("grpo", {"clip_high": float("inf")}, "clip_high is inf"),
        ("grpo", {"kl_beta": float("nan")}, "kl_beta is nan; a number at least 0 is needed"),
        ("grpo", {"overlong_buffer": -1}, "overlong_buffer is -1"),
        ("grpo", {"baseline": "zero"}, "scale group_std needs a group baseline"),
        ("reinforce", {"scale": "batch_std"}, "scale batch_std needs a group baseline"),
        ("reinforce", {"zero_variance": "drop"}, "zero_variance drop needs a group baseline"),
        ("rloo", {"clip_high": 0.2}, "clip_high is not read by rloo, which has no ratio to clip"),
        ("rloo", {"ratio": "sequence"}, "ratio sequence is not read by rloo, which has no ratio"),
    ],
)
def test_contradictory_and_unread_parts_are_refused_in_one_line(name: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_parts(find_algorithm(name), **parts)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_clip_needs_its_bounds() -> None:
    with pytest.raises(ConfigError, match="clip_low is None; a number from 0 to 1 is needed"):
        Algorithm(name="mine", baseline="zero", scale="one", objective="clip", denominator="tokens")


def test_a_group_baseline_needs_two_rollouts_and_no_baseline_one() -> None:
    check_group_size(find_algorithm("reinforce"), 1)
    check_group_size(find_algorithm("grpo"), 2)
    with pytest.raises(ConfigError, match="group_size is 1, and baseline leave_one_out of rloo compares"):
        check_group_size(find_algorithm("rloo"), 1)
    with pytest.raises(ConfigError, match="group_size is 0"):
        check_group_size(find_algorithm("reinforce"), 0)


def test_the_overlong_buffer_of_dapo_is_a_fifth_of_the_limit() -> None:
    assert find_algorithm("dapo").overlong_tokens(20480) == 4096
    assert find_algorithm("grpo").overlong_tokens(512) == 0
    assert with_parts(find_algorithm("grpo"), overlong_buffer=100).overlong_tokens(512) == 100
    with pytest.raises(ConfigError, match="overlong_buffer is 600 tokens, and a rollout has 512 at most"):
        with_parts(find_algorithm("grpo"), overlong_buffer=600).overlong_tokens(512)


def test_the_records_are_made_without_torch() -> None:
    code = "import grpo_gsm8k.algorithms.registry, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
