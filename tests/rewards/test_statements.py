"""Which number of a sentence is its answer."""

from __future__ import annotations

import pytest

from grpo_gsm8k.rewards.numeric import NumericGrader
from grpo_gsm8k.rewards.statements import join_units

GRADER = NumericGrader()


def is_correct(completion: str, gold: str) -> bool:
    return GRADER.grade(completion, gold).status == "correct"


@pytest.mark.parametrize(
    "completion",
    ["It takes 160 minutes, or 2 hours and 40 minutes, to load.", "It takes 160 minutes. That's 2 hours and 40 minutes!",
     "It takes 160 minutes, which is 2 hours and 40 minutes.", "It takes 2 hours and 40 minutes (160 minutes).",
     "It takes 2 hours 40 minutes.", "\\boxed{2 \\text{ hours and } 40 \\text{ minutes}}",
     "It takes **160 minutes** (2 hours and 40 minutes)."],
)  # fmt: skip
def test_hours_and_minutes_are_one_number(completion: str) -> None:
    assert is_correct(completion, "160")
    assert not is_correct(completion, "40")
    assert not is_correct(completion, "2")


def test_a_compound_is_written_in_the_unit_that_was_computed() -> None:
    assert join_units("6 feet and 2 inches") == "74 inches"
    assert join_units("1 year and 6 months") == "18 months"
    assert join_units("2 hours and 30 minutes", before="5 / 2 = 2.5 hours.") == "2.5 hours"
    assert join_units("2 hours and 30 minutes", before="150 minutes is 2.5 hours.") == "150 minutes"
    assert join_units("5 days and 8 hours a day") == "5 days and 8 hours a day"
    assert join_units("2 hours and 75 minutes") == "2 hours and 75 minutes"
    assert join_units("3 pounds and 5 dollars") == "3 pounds and 5 dollars"


@pytest.mark.parametrize(
    ("completion", "gold", "other"),
    [("John has 54 candies, which is 21 more than James.", "21", "54"),
     ("5000 * 0.025 = $125\n\nThe merchant makes $125 with jewelry, which is $29 more than with gadgets.", "125", "29"),
     ("125 - 96 = 29. With jewelry he makes $125, which is $29 more than with gadgets.", "29", "125"),
     ("John has 54 candies, which is 2 times as many as James.", "54", "2"),
     ("Total = 7 * 9 = 63 apples, which is 2 more than 61.", "63", "2"),
     ("So 12 students dance, which is 60% of the entire class.", "60", "12")],
)  # fmt: skip
def test_a_closing_difference_is_the_answer_unless_what_stands_before_it_was_computed(
    completion: str, gold: str, other: str
) -> None:
    assert is_correct(completion, gold)
    assert not is_correct(completion, other)


@pytest.mark.parametrize(
    ("completion", "gold", "other"),
    [("Out of the 20 cars, 4 are red, so 4/20 or 20% of them are red.", "20", "4"), ("That is 1/5, or 20%.", "20", "5"),
     ("So 12 of 20 students dance.", "12", "20"), ("So, 11 remain after he eats 3 of 14.", "11", "3"),
     ("20% of 60 is 12.", "12", "60")],
)  # fmt: skip
def test_parts_and_percentages_are_told_apart(completion: str, gold: str, other: str) -> None:
    assert is_correct(completion, gold)
    assert not is_correct(completion, other)


@pytest.mark.parametrize(
    ("completion", "gold", "other"),
    [("She should set it to 500°F so that the oven will be 520°F.", "500", "520"),
     ("He earns $460 for working 45 hours this week.", "460", "45"),
     ("The most sticks he can make is 1600 with the 2 x 8 wood.", "1600", "8"),
     ("She makes $64,800 more with the Widgeteer 3000 than with the WidgetMaster 9000.", "64800", "9000"),
     ("He rode 25 miles between his stop at mile 20 and his stop at mile 45.", "25", "45"),
     ("Dividing 60 by 3 gives 20 seashells each.", "20", "60"),
     ("60 shells divided by 3 people is 20 shells each.", "20", "60"),
     ("20 + 40 = 60 shells, which split between the 3 of them is 20 shells each.", "20", "60"),
     ("He picks 18 baskets. At 4 kg each that's 72 kg of apples.", "72", "4"),
     ("It covers 60 miles in one hour and 45 in the next, for 105 miles in total.", "105", "45"),
     ("She bakes 24 a batch, which makes 120 cakes for the party of 60 guests.", "120", "60"),
     ("The probability is 3/5, i.e. 60%.", "60", "5"),
     ("This makes $30 + $160 or $190.", "190", "160")],
)  # fmt: skip
def test_what_only_describes_is_left_out(completion: str, gold: str, other: str) -> None:
    assert is_correct(completion, gold)
    assert not is_correct(completion, other)


def test_an_operation_without_a_result_is_no_answer() -> None:
    for gold in ("7", "5", "35"):
        assert not is_correct("So the total is 7 * 5.", gold)
