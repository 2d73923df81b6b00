"""Numbers that are only a piece of what an answer says."""

from __future__ import annotations

import pytest

from grpo_gsm8k.rewards.numeric import NumericGrader

GRADER = NumericGrader()
MARKS = ("\\boxed{{{}}}", "#### {}", "<answer>{}</answer>", "Reasoning.\n#### {}\n")
STATEMENTS = ("The answer is {}.", "The answer is ${}$.", "So he has {}.", "Answer: {}", "**{}**")


def is_correct(completion: str, gold: str = "18") -> bool:
    return GRADER.grade(completion, gold).status == "correct"


@pytest.mark.parametrize(
    "written",
    ["18+2", "18x", "18 + x", "x + 18", "x_{18}", "\\log 18", "log(18)", "\\sin 18", "\\sqrt{18}", "18²", "18^2", "18^{2}",
     "A18",
     "not 18", "isn't 18", "18y", "18\\pi", "18 i", "18(2)", "2(18)", "(2)(18)", "18/x", "x/18", "\\frac{18}{x}", "18*2",
     "2*18",
     "18\\times 2", "18 - 2", "18_2", "18_{10}", "18 \\cdot x", "\\pm 18", "±18", "\\neq 18", "\\geq 18", "x > 18", "18 < x",
     "x^{18}", "e^{18}", "18A", "18B", "18C2", "\\binom{18}{2}", "0.\\overline{18}", "(18, 19)", "18;19", "18 mod 5",
     "18 hours and 30 minutes"],
)  # fmt: skip
def test_a_piece_of_something_larger_is_never_the_answer(written: str) -> None:
    for template in MARKS + STATEMENTS:
        assert not is_correct(template.format(written)), template


@pytest.mark.parametrize(
    "written",
    ["18!", "18+", "18 -", "18/", "f(18)", "> 18", "twice 18", "half of 18", "more than 18", "less than 18", "18 plus 2",
     "18 times 2",
     "18 squared", "--18", "B 18"],
)  # fmt: skip
def test_inside_a_mark_nothing_may_touch_the_number(written: str) -> None:
    for template in MARKS:
        assert not is_correct(template.format(written)), template


@pytest.mark.parametrize(
    "written",
    ["18 dollars", "18\\text{ dollars}", "18 m^2", "18 m²", "18 km²", "18m", "18km", "18 km/h", "18\\,\\text{m}^2",
     "18 \\mathrm{km/h}",
     "18 \\frac{km}{h}", "18cm^3", "18 per hour", "18 apples (in total)", "18 (eighteen)", "(18)", "+18", "18-year-old",
     "18 a day",
     "18\\%", "18^\\circ", "18°F", "18€", "18 USD", "USD 18", "Rs. 18", "A$18", "US$18", "x = 18", "x_1 = 18",
     "3 \\times 6 = 18",
     "\\approx 18", "Janet makes $18", "\\mathbf{18}", "\\displaystyle 18", "18 x-rays", "18 p.m.", "18 o'clock", "18 sq ft",
     "18 — no more"],
)  # fmt: skip
def test_a_unit_or_an_equation_leaves_the_number_alone(written: str) -> None:
    for template in MARKS + STATEMENTS[:3]:
        assert is_correct(template.format(written)), template


def test_an_exclamation_is_no_factorial() -> None:
    for completion in ("The answer is 18!", "So he has 18!", "Answer: 18!", "He has **18**!"):
        assert is_correct(completion)


def test_a_compound_of_units_is_one_amount_in_either_unit() -> None:
    for template in MARKS + STATEMENTS[:1]:
        completion = template.format("18 hours and 30 minutes")
        assert is_correct(completion, "1110")
        assert is_correct(completion, "18.5")
        assert not is_correct(completion, "30")
        assert GRADER.grade(completion, "18.5").answer == "1110"


def test_a_power_is_read_as_its_value() -> None:
    assert is_correct("\\boxed{18²}", "324")
    assert is_correct("#### 2^{3}", "8")
