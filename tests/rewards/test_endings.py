"""How completions end: cut off, or with what is no part of the answer."""

from __future__ import annotations

import pytest

from grpo_gsm8k.rewards.endings import is_truncated
from grpo_gsm8k.rewards.numeric import NumericGrader

GRADER = NumericGrader()


def reading(completion: str) -> str | None:
    return GRADER.grade(completion, "1").answer


@pytest.mark.parametrize(
    "completion",
    ["There are 30 eggs, so the", "She has $40 to spend. Now we need to find the number of", "So 7 and 12 are added to",
     "There are 7 cans. So the total is 7 * 5", "The fish left: 24 − 16", "He needs 120 / 15", "So 3 x", "7 - 3 =",
     "We have 7 cans,", "There are 7 cans. He then", "There are 7 cans.\n\nNow we know", "The total for 3 days is:",
     "There are 7 cans.\n\n### Adding", "Solving \\(4s = 60\\), we get \\(s",
     "We find\n\\[\n45 + 33 = 78", "She has 30 eggs, so they",
     "Tom has 5 apples. He buys 3 more, which gives", "1. **Apples:** 5\n2. **Pears:** 6\n3. **"],
)  # fmt: skip
def test_a_text_that_stops_in_the_middle_has_no_answer(completion: str) -> None:
    score = GRADER.grade(completion, "7")
    assert (score.status, score.answer) == ("unparsed", None)


@pytest.mark.parametrize(
    "completion",
    ["## Step 4: Add them\nThe sum is 35.\n\n## Step 5: Calculate the distance from",
     "There are 7 cans.\nStep 5: Find the rest.",
     "**Step 3:**", "7 cans.\n\n### Step 3", "* Day 1: 4 feet\n* Day 2: 8 feet\n* Day 3:"],
)  # fmt: skip
def test_the_number_of_a_step_is_never_the_answer_of_a_text_that_ends_at_its_heading(completion: str) -> None:
    assert GRADER.grade(completion, "5").status == "unparsed"
    assert GRADER.grade(completion, "3").status == "unparsed"


@pytest.mark.parametrize("mark", ["\\boxed{18}", "#### 18", "<answer>18</answer>", "The answer is 18."])
def test_a_mark_counts_although_the_text_after_it_is_cut_off(mark: str) -> None:
    assert reading(f"{mark}\n\nWe know that 3 * 6 = 18 because the") == "18"


@pytest.mark.parametrize(
    "completion",
    ["He has 18", "He has 18 apples left", "So he needs 3 more, that is 18 in all", "20 - 2 = 18 apples", "Total: 18\nper week",
     "$18", "**18 apples**", "He sells 18 of them", "3 * 6 = 18 square meters,", "She has $18\n\nHope this helps",
     "$x = 18$", "\\[\n3 \\times 6 = 18\n\\]", "So there are 18 in Districts 1 - 3.", "He is 18 years old 😊", "36/2"],
)  # fmt: skip
def test_a_text_without_a_closing_full_stop_is_not_cut_off(completion: str) -> None:
    assert GRADER.grade(completion, "18").status == "correct"


@pytest.mark.parametrize(
    "completion",
    ["He has 47 pets in total:\n\n- 3 cats\n- 9 dogs\n- 35 fish",
     "The total is 47. Here's the breakdown:\n\n- cats: 12\n- dogs: 35",
     "He has **47** pets.\n\n| Pet | Count |\n|---|---|\n| Cats | 12 |\n| Dogs | 35 |",
     "The bill is **$47.00**. Here is the breakdown:\n\n- Bread: 5 * 7 = $35\n- Milk: $12",
     "| Pet | Count |\n|---|---|\n| Cats | 12 |\n| Dogs | 35 |\n| **Total** | **47** |",
     "He has **35** dogs.\n\n| Pet | Count |\n|---|---|\n| Dogs | 35 |\n| In total | 47 |",
     "The parts add up as follows:\n- 12 + 5 = 17\n- 17 + 30 = 47", "1. He has 12 cats.\n2. He has 35 dogs.\n3. 12 + 35 = 47"],
)  # fmt: skip
def test_a_closing_breakdown_is_no_answer_and_a_closing_sum_is(completion: str) -> None:
    assert GRADER.grade(completion, "47").status == "correct"


@pytest.mark.parametrize(
    "completion",
    ["**Lee has 15 sheep.** (And 5 geese: 60 + 10 = 70 legs ✓)", "Lee has 15 sheep. (He also has 5 geese.)",
     "Lee has 15 sheep.\n\n(The other 5 are geese. That is 20 in all.)", "There are 5 geese.\n(3 * 5 = 15)", "It is \\( 15 \\)",
     "(5 * 3 = 15)"],
)  # fmt: skip
def test_a_last_sentence_in_parentheses_is_an_aside(completion: str) -> None:
    assert GRADER.grade(completion, "15").status == "correct"


def test_the_empty_text_is_not_cut_off() -> None:
    assert not is_truncated("")
