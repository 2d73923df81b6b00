"""`math`: equality, and worker processes that can hang, crash or lose their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from grpo_gsm8k.errors import EnvironmentFailure
from grpo_gsm8k.rewards.algebra import same_value
from grpo_gsm8k.rewards.equivalence import canonical_answer, normalise
from grpo_gsm8k.rewards.math import MathGrader
from grpo_gsm8k.rewards.workers import WorkerPool

HANGS = "\\boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    grader = MathGrader(num_workers=1, timeout_s=20)
    yield grader
    grader.close()


EQUAL = [
    ("\\boxed{\\frac{1}{2}}", "0.5"), ("\\boxed{2\\sqrt{2}}", "\\sqrt{8}"), ("\\boxed{x^2+2x+1}", "(x+1)^2"),
    ("\\boxed{(3,\\infty)}", "(3, \\infty)"), ("\\boxed{\\left[1,2\\right)}", "[1,2)"), ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{\\text{Tuesday}}", "Tuesday"), ("\\boxed{5\\text{ cm}^2}", "5"), ("\\boxed{\\{2,1\\}}", "\\{1,2\\}"),
    ("\\boxed{10\\%}", "10\\%"), ("\\boxed{x=3}", "3"), ("\\boxed{\\text{(A)}}", "A"), ("\\boxed{1{,}080}", "1080"),
    ("\\boxed{\\left(\\frac12, \\sqrt{8}\\right)}", "(0.5, 2\\sqrt{2})"), ("#### 18", "18"),
    ("<answer>3/4</answer>", "\\frac{3}{4}"),
    ("\\boxed{\\cos 60^\\circ}", "\\frac{1}{2}"), ("\\boxed{e^{i\\pi}}", "-1"), ("\\boxed{\\tan 45°}", "1"),
    ("\\boxed{\\sqrt{2}+\\sqrt{3}}", "\\sqrt{5+2\\sqrt{6}}"), ("\\boxed{(\\cos 60^\\circ, 2)}", "(0.5, 2)"),
    ("\\boxed{xy}", "yx"), ("\\boxed{BA}", "BA"), ("\\boxed{18 \\text{ hours and } 30 \\text{ minutes}}", "18.5"),
    ("\\boxed{20 \\text{ percent}}", "20"), ("\\boxed{18^\\circ C}", "18"), ("\\boxed{≈18}", "18"),
    ("\\boxed{3\\text{ or }4}", "4,3"),
    ("$x=5$ so the answer is $5$.", "5"), ("\\boxed{1\\text{ and }-1}", "-1, 1"),
]  # fmt: skip
UNEQUAL = [
    ("\\boxed{[1,2)}", "(1,2)"), ("\\boxed{(1,2)}", "(2,1)"), ("\\boxed{\\frac{\\pi}{3}}", "\\frac{\\pi}{4}"),
    ("\\boxed{18}", "8"),
    ("\\boxed{AB}", "BA"), ("\\boxed{\\{AB, CD\\}}", "\\{BA, CD\\}"), ("\\boxed{\\text{no}}", "on"),
    ("\\boxed{\\sqrt{x^2}}", "x"),
    ("\\boxed{\\tan 45°}", "45"), ("\\boxed{18 \\text{ hours and } 30 \\text{ minutes}}", "18"),
    ("\\boxed{18 million}", "18"),
    ("\\boxed{18!}", "18"), ("\\boxed{18+}", "18"), ("\\boxed{18x}", "18"), ("\\boxed{\\text{not }18}", "18"),
    ("\\boxed{18_2}", "18"),
    ("\\boxed{\\neq 18}", "18"), ("\\boxed{1,2}", "1.2"), ("\\boxed{\\cos 60}", "\\frac{1}{2}"),
    ("\\boxed{x+1}", "x+2"), ("\\boxed{\\text{Monday}}", "Tuesday"), ("\\boxed{1,2,3}", "1,2"), ("\\boxed{B}", "A"),
]  # fmt: skip


def test_equal_answers_are_correct_and_others_wrong(grader: MathGrader) -> None:
    cases = EQUAL + UNEQUAL
    scores = grader.grade_batch([completion for completion, _ in cases], [gold for _, gold in cases])
    assert [score.status for score in scores] == ["correct"] * len(EQUAL) + ["wrong"] * len(UNEQUAL)


def test_a_crash_inside_math_verify_is_an_error_and_never_wrong(grader: MathGrader) -> None:
    """math-verify 0.9 looks an Unequality up in a table of the other relations."""
    score = grader.grade("\\boxed{x<2}", "x \\ne 2")
    assert (score.status, score.answer) == ("error", None)
    assert score.explanation.startswith("math-verify crashed: KeyError")
    assert grader.grade("\\boxed{x\\ne 2}", "x \\ne 2").status == "correct"


@pytest.mark.parametrize(
    ("written", "answer"),
    [("\\$18.00", "18"), ("18\\text{ dollars}", "18"), ("x = 18", "18"), ("(18)", "18"), ("+18", "18"),
     ("\\dfrac{6}{8}", "3/4"),
     ("0.75", "3/4"), ("-\\frac12", "-1/2"), ("20\\%", "20%"), ("20 \\text{ percent}", "20%"), ("\\text{(B)}", "b"),
     ("\\text{ Tuesday }", "tuesday"),
     ("\\left( 1, 2 \\right)", "(1,2)"), ("1,2", "1,2"), ("\\dfrac{\\pi}{3}", "\\frac{\\pi}{3}")],
)  # fmt: skip
def test_equal_answers_are_equal_votes(written: str, answer: str) -> None:
    assert canonical_answer(written) == answer


def test_a_long_answer_votes_whole(grader: MathGrader) -> None:
    answer = "+".join(f"x^{{{i}}}" for i in range(60))
    assert grader.grade(f"\\boxed{{{answer}}}", "x").answer == answer
    assert grader.grade("\\boxed{18\\text{ hours and }30\\text{ minutes}}", "18").answer == "1110"


def test_values_are_compared_where_symbols_are_not_enough() -> None:
    assert same_value("2\\cos(20^\\circ)\\cos(40^\\circ)\\cos(80^\\circ)", "\\frac{1}{4}")
    assert same_value("\\frac{x^2-1}{x-1}", "x+1")
    assert same_value("i^2", "-1")
    assert not same_value("\\sqrt{x^2}", "x")
    assert not same_value("0.333333", "\\frac{1}{3}")
    assert not same_value("x", "y")
    assert not same_value("A", "a")
    assert not same_value("\\frac{1}{0}", "1")
    assert not same_value("18 hours", "18")


def test_no_answer_is_unparsed(grader: MathGrader) -> None:
    assert grader.grade("nothing at all", "3").status == "unparsed"


def test_odd_text_neither_raises_nor_costs_the_worker(grader: MathGrader) -> None:
    nested = "\\boxed{" + "{" * 1500 + "}" * 1500 + "}"
    odd = ["\ud800", "\\boxed{" * 3000, nested, "\0", "9" * 100_000, "\\boxed{\\frac}", "\n" * 9999]
    scores = grader.grade_batch([*odd, "\\boxed{3}"], ["3"] * (len(odd) + 1))
    assert [score.status for score in scores[:-1]].count("correct") == 0
    assert scores[-1].status == "correct"


def test_a_hung_worker_is_killed_and_only_its_problem_is_an_error() -> None:
    grader = MathGrader(num_workers=1, timeout_s=2)
    try:
        scores = grader.grade_batch(["\\boxed{1}", HANGS, "\\boxed{1}", "\\boxed{2}"], ["1"] * 4)
        assert [score.status for score in scores] == ["correct", "error", "correct", "wrong"]
        assert scores[1].explanation == "timed out after 2 s"
    finally:
        grader.close()


def test_a_killed_worker_is_replaced(grader: MathGrader) -> None:
    grader.grade("\\boxed{1}", "1")
    for child in psutil.Process().children():
        if "grpo_gsm8k.rewards.math_worker" in child.cmdline():
            child.kill()
            child.wait()
    assert [s.status for s in grader.grade_batch(["\\boxed{1}"] * 3, ["1"] * 3)] == ["correct"] * 3


def test_a_worker_that_crashes_costs_only_the_problem_it_was_at() -> None:
    pool = WorkerPool("grpo_gsm8k.rewards.math_worker", 1, 20.0)
    try:
        replies = pool.run([["\\boxed{1}", "1"], "not a pair of texts", ["\\boxed{1}", "1"]])
    finally:
        pool.close()
    assert replies[1] == "worker crashed"
    assert [reply[2] for reply in (replies[0], replies[2])] == ["correct", "correct"]


def test_results_do_not_depend_on_the_number_of_workers(grader: MathGrader) -> None:
    completions, golds = [c for c, _ in EQUAL] * 3, [g for _, g in EQUAL] * 3
    two = MathGrader(num_workers=2)
    try:
        assert two.grade_batch(completions, golds) == grader.grade_batch(completions, golds)
    finally:
        two.close()


def test_closing_twice_leaves_no_worker() -> None:
    grader = MathGrader(num_workers=1)
    grader.grade("\\boxed{1}", "1")
    before = {c.pid for c in psutil.Process().children()}
    grader.close()
    grader.close()
    assert len({c.pid for c in psutil.Process().children()}) == len(before) - 1


def test_a_worker_that_cannot_start_is_said_in_one_line() -> None:
    with pytest.raises(EnvironmentFailure, match="cannot start") as failure:
        WorkerPool("grpo_gsm8k.rewards.no_such_worker", 1, 1.0).run([["a", "b"]])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("num_workers", "timeout_s"), [(-1, 1.0), (1, 0.0), (1, 1000.0)])
def test_impossible_options_are_refused(num_workers: int, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="it must be"):
        MathGrader(num_workers, timeout_s)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "from grpo_gsm8k.rewards.math import MathGrader; import psutil, sys\n"
        "g = MathGrader(num_workers=1); g.grade('\\\\boxed{1}', '1')\n"
        "print(psutil.Process().children()[0].pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_normalising_keeps_what_distinguishes_answers() -> None:
    assert normalise("\\left( 1, 2 \\right)") == "(1,2)"
    assert normalise("\\dfrac{1}{2}") == normalise("\\frac12")
    assert normalise("5 \\text{ cm}") == "5"
    assert normalise("\\text{east}") == "east"
