"""`calculator` and `calculator_inline`: arithmetic word problems, with a calculator that the model calls while it solves them.

Both end in `#### 9`, graded by `numeric`; a turn that holds `####` is the answer, called tool or not. Reward: 1 where that
number is right, else 0; calls cost nothing but turns.

- `calculator`: the model writes `<calc>12 + 5</calc>`, its turn ends there, and a user's message gives `17`. The question
  says so. For chat models.
- `calculator_inline`: the model writes `12 + 5 =`, and the result is put in right there, in its own text, as ` 17`; the text
  goes on from it. The expression is the arithmetic that stands before the `=` in that text (results of earlier calls
  included). The question is the word problem alone, and the solutions are those that the tiny model was trained on, so that it
  calls from the start; it has to learn which calls to make. Source of the idea: GSM8K's calculator annotations (Cobbe et
  al. 2021, arXiv:2110.14168).

What the calculator takes: `envs.arithmetic`. What it cannot take is answered by `error: …`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from grpo_gsm8k.data import word_problems
from grpo_gsm8k.envs.arithmetic import CalculationError, calculate
from grpo_gsm8k.envs.protocol import Exchange, Observation, Outcome, Reply
from grpo_gsm8k.envs.splits import SplitEnvironment
from grpo_gsm8k.rewards.numeric import NumericGrader
from grpo_gsm8k.types import Problem, Score

NUM_TURNS = 6
MAX_TURNS = 50
INSTRUCTION = "\nTo calculate, write <calc>12 + 5</calc> and wait for the result. End with #### and the number."

_STEP = re.compile(r"([0-9.]+(?: [-+*/] [0-9.]+)+) ?=")
_BEFORE_EQUALS = re.compile(r"[-+*/().,0-9 ]*$")
_SENTENCE_END = re.compile(r"[.,]\s")
_OPERATION = re.compile(r"-?[0-9.(].*[-+*/].*")


def generate(split: str, num: int, seed: int) -> list[Problem]:
    """Returns word problems whose question says how the calculator is called. Raises: DataError as `data.word_problems`."""
    problems = word_problems.generate(split, num, seed)
    return [replace(problem, question=problem.question + INSTRUCTION) for problem in problems]


class CalculatorEnv(SplitEnvironment):
    """Word problems with a calculator called by tags, whose results are a user's messages."""

    name = "calculator"
    version = "1"
    stop = ("</calc>",)

    def __init__(self, splits: Mapping[str, Sequence[Problem]], max_turns: int = NUM_TURNS) -> None:
        super().__init__(splits)
        self.max_turns = max_turns
        self._grader = NumericGrader()

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        """Returns a call for each step of the published answer, then the gold."""
        return (*(f"<calc>{step}</calc>" for step in _STEP.findall(problem.answer)), f"#### {problem.gold}")

    def _answer(self, exchange: Exchange) -> Reply:
        results = self._results(exchange.completions)
        last = exchange.completions[-1]
        metrics = {
            "num_calls": float(sum(result is not None for result in results)),
            "num_failed_calls": float(sum(result is not None and result.startswith("error") for result in results)),
        }
        if "####" in last:
            return Outcome(self._grader.grade(last[last.rindex("####") :], exchange.problem.gold), metrics)
        if results[-1] is None:
            return Outcome(
                Score(0.0, None, "unparsed", "the turn neither calls the calculator nor answers after ####"), metrics
            )
        return Observation(self._observation(results[-1]))

    def _results(self, turns: Sequence[str]) -> list[str | None]:
        """Returns what the calculator says to each turn, or None for one that does not call it."""
        return [_called(_tagged_expression(turn)) if "</calc>" in turn else None for turn in turns]

    def _observation(self, result: str) -> str:
        return result


class InlineCalculatorEnv(CalculatorEnv):
    """Word problems with a calculator called by `=`, whose results are put into the model's own text."""

    name = "calculator_inline"
    stop = ("=",)
    inline = True

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        """Returns the published answer, cut after each `=`, its results left out."""
        steps = _STEP.findall(problem.answer)
        calls = [f"{'. ' if index else ''}{step} =" for index, step in enumerate(steps)]
        return (*calls, f"{'.' if steps else ''}\n#### {problem.gold}")

    def _results(self, turns: Sequence[str]) -> list[str | None]:
        text, results = "", list[str | None]()
        for turn in turns:
            text += turn
            before, equals, after = text.rpartition("=")
            result = None
            if equals and "=" in turn and not after.strip():
                result = _called(_last_expression(before))
                text += self._observation(result)
            results.append(result)
        return results

    def _observation(self, result: str) -> str:
        return f" {result}"


def _tagged_expression(turn: str) -> str:
    """Returns what stands between `<calc>` and the turn's first `</calc>`, "" where nothing opens it."""
    _, opened, expression = turn.partition("</calc>")[0].rpartition("<calc>")
    return expression if opened else ""


def _last_expression(text: str) -> str:
    """Returns the arithmetic that `text` ends in, "" where it is less than an operation."""
    line = text.rpartition("=")[2].rpartition("\n")[2].replace("$", "")
    arithmetic = _BEFORE_EQUALS.search(line)
    expression = _SENTENCE_END.split(arithmetic[0])[-1].strip() if arithmetic else ""
    return expression if _OPERATION.fullmatch(expression) else ""


def _called(expression: str) -> str:
    """Returns what the calculator says to an expression."""
    try:
        return calculate(expression)
    except CalculationError as error:
        return f"error: {error}"
