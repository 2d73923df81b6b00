"""Graders by name, what importing them costs, and disagreement."""

from __future__ import annotations

import subprocess
import sys

import pytest

from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.rewards.registry import GRADERS, disagree, failed, make_grader
from grpo_gsm8k.types import Score

RIGHT, WRONG = Score(1.0, "1", "correct"), Score(0.0, "2", "wrong")
UNPARSED, ERROR = Score(0.0, None, "unparsed"), Score(0.0, None, "error", "timed out after 5 s")


@pytest.mark.parametrize("name", GRADERS)
def test_every_name_makes_a_grader_of_that_name_that_closes_twice(name: str) -> None:
    grader = make_grader(name)
    assert grader.name == name
    assert grader.version
    grader.close()
    grader.close()


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'numeric'"):
        make_grader("numerik")


def test_a_batch_of_unequal_lengths_is_refused() -> None:
    for name in GRADERS:
        with pytest.raises(ValueError, match="shorter"):
            make_grader(name).grade_batch(["1", "2"], ["1"])


def test_numeric_needs_no_sympy_and_no_torch() -> None:
    script = (
        "import sys; from grpo_gsm8k.rewards.registry import GRADERS, make_grader; [make_grader(n) for n in GRADERS]\n"
        "print([m for m in ('sympy', 'math_verify', 'torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_graders_disagree_on_correct_against_not_correct_alone() -> None:
    assert disagree({"numeric": RIGHT, "gsm8k_strict": UNPARSED})
    assert disagree({"numeric": RIGHT, "math": WRONG})
    assert not disagree({"numeric": WRONG, "gsm8k_strict": UNPARSED})
    assert not disagree({"numeric": RIGHT})


def test_a_failed_grader_is_no_disagreement_but_is_named() -> None:
    assert not disagree({"numeric": RIGHT, "math": ERROR})
    assert failed({"numeric": RIGHT, "math": ERROR}) == ["math"]


def test_format_is_not_compared_with_correctness() -> None:
    assert not disagree({"numeric": RIGHT, "format": WRONG})
