"""`runs power`: against the textbook formulas worked out here, and against simulated comparisons."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

import numpy as np
import pytest

from grpo_gsm8k.cli import main

Z_ALPHA, Z_POWER = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)


def power(capsys: pytest.CaptureFixture[str], options: str) -> tuple[int, str, str]:
    code = main(["runs", "power", *options.split()])
    printed = capsys.readouterr()
    paired, _, unpaired = printed.out.partition("unpaired")
    return code, paired, unpaired or printed.err


def problems(text: str) -> int:
    found = re.search(r"([\d,]+) problems$", text.strip())
    assert found, text
    return int(found[1].replace(",", ""))


def test_the_problems_needed_are_those_of_the_textbook(capsys: pytest.CaptureFixture[str]) -> None:
    _, paired, unpaired = power(capsys, "--baseline 0.7 --effect 0.03 --discordance 0.15")
    psi, d = 0.15, 0.03  # Connor (1987)
    assert problems(paired) == math.ceil(((Z_ALPHA * math.sqrt(psi) + Z_POWER * math.sqrt(psi - d * d)) / d) ** 2)
    p1, p2 = 0.7, 0.67  # Fleiss, towards 1/2
    mean = (p1 + p2) / 2
    spread = Z_ALPHA * math.sqrt(2 * mean * (1 - mean)) + Z_POWER * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    assert problems(unpaired) == math.ceil((spread / d) ** 2)


def test_so_many_problems_show_the_effect_that_needs_so_many(capsys: pytest.CaptureFixture[str]) -> None:
    _, paired, unpaired = power(capsys, "--baseline 0.6 --effect 0.05")
    for text in (paired, unpaired):
        found = power(capsys, f"--n {problems(text)} --baseline 0.6")[1 if text is paired else 2]
        assert "a difference of 5.00 points" in found or "a difference of 4.99 points" in found
        again = power(capsys, f"--n {problems(text)} --baseline 0.6 --effect 0.05")[1 if text is paired else 2]
        assert "seen with power 0.80" in again


def test_the_power_said_is_how_often_simulated_runs_show_the_effect(capsys: pytest.CaptureFixture[str]) -> None:
    _, paired, _ = power(capsys, "--n 800 --baseline 0.7 --effect 0.04 --discordance 0.2")
    said = float(paired.strip().rpartition(" ")[2])
    rng = np.random.default_rng(0)
    gained_lost = rng.multinomial(800, [0.12, 0.08, 0.8], size=20_000)[:, :2]
    z = np.abs(gained_lost[:, 0] - gained_lost[:, 1]) / np.sqrt(gained_lost.sum(axis=1))
    assert said == pytest.approx((z > Z_ALPHA).mean(), abs=0.02)


def test_what_so_few_problems_can_never_show_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "none can be shown with so few" in power(capsys, "--n 5 --baseline 0.5")[1]
    assert "cannot be shown with so few" in power(capsys, "--n 5 --baseline 0.1 --effect 0.9")[1]
    assert problems(power(capsys, "--baseline 0.1 --effect 0.9")[1]) == 7  # P(Binomial(7, .9) ≥ 6) = .85; of 6: .53
    assert "not seen at any baseline" in power(capsys, "--n 5 --effect 0.3")[1]


def test_without_a_baseline_it_says_at_which_the_effect_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    _, paired, unpaired = power(capsys, "--n 1319 --effect 0.04")
    assert "seen at any baseline" in paired
    found = re.search(r"0\.000 to (0\.\d+) and (0\.\d+) to 1\.000", unpaired)
    assert found
    last = float(found[1])
    assert float(found[2]) == pytest.approx(1 - last)
    inside = power(capsys, f"--effect 0.04 --baseline {last}")[2]
    outside = power(capsys, f"--effect 0.04 --baseline {last + 0.001:.3f}")[2]
    assert problems(inside) <= 1319 < problems(outside)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--n 100", "--baseline and --effect are not given"),
        ("--baseline 0.5 --effect 0.6", "no accuracy is that far from the baseline"),
        ("--baseline 0.5 --effect 0.2 --discordance 0.1", "at least the effect"),
        ("--n 0 --baseline 0.5", "not in the range 1<=x"),
        ("--n 10 --baseline nan", "nan is no number"),
        ("--n 10 --effect nan", "nan is no number"),
    ],
)
def test_what_cannot_be_answered_is_one_line(options: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = power(capsys, options)
    assert code == 2
    assert said in error
    assert error.strip().count("\n") == 0
