"""Single-turn environments over a data set: one completion, one score by one grader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_gsm8k.envs.protocol import Exchange, Outcome, Reply
from grpo_gsm8k.envs.splits import SplitEnvironment, cut_by_length
from grpo_gsm8k.rewards.gym import GymScorer
from grpo_gsm8k.rewards.protocol import Grader
from grpo_gsm8k.types import Problem, Score


class DatasetEnv(SplitEnvironment):
    """Problems of a data set; the score is the grader's verdict on the completion against the problem's gold.

    `GymScorer` is for reasoning-gym's problems: each is scored by the generator that made it, from 0 to 1. What can hang
    (`math`, those generators) scores in processes of its own and within a time limit, beyond which a rollout's status is
    `error`. A completion cut by its length limit scores 0 (`unparsed`). The environment closes its grader.
    """

    max_turns = 1

    def __init__(self, name: str, splits: Mapping[str, Sequence[Problem]], grader: Grader | GymScorer) -> None:
        super().__init__(splits)
        self.name = name
        self._grader = grader
        self.version = grader.version if isinstance(grader, GymScorer) else f"{grader.name} {grader.version}"

    def demonstration(self, problem: Problem) -> tuple[str, ...]:
        r"""Returns the published answer as a completion, its gold marked where it has no `####` or `\boxed{}` of its own."""
        answer = problem.answer.strip()
        if "gym" in problem.meta:
            return (f"<answer>{answer}</answer>",) if answer else ()
        if "####" in answer or "\\boxed" in answer:
            return (answer,)
        return (f"{answer}\n\\boxed{{{problem.gold}}}\n#### {problem.gold}",) if problem.gold.strip() else ()

    def reply(self, exchanges: Sequence[Exchange]) -> list[Reply]:
        """Returns the outcome of each completion, in order; a grader that fails leaves its status `error`.

        Raises: DataError, ProofError as `rewards.gym`; EnvironmentFailure when a grader's worker cannot start.
        """
        replies: list[Reply | None] = [cut_by_length(exchange) for exchange in exchanges]
        whole = [index for index, reply in enumerate(replies) if reply is None]
        scores = self._score([exchanges[index] for index in whole])
        for index, score in zip(whole, scores, strict=True):
            replies[index] = Outcome(score)
        return [reply for reply in replies if reply is not None]

    def _score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        texts = [exchange.completions[-1] for exchange in exchanges]
        if isinstance(self._grader, GymScorer):
            return self._grader.score_batch([exchange.problem for exchange in exchanges], texts)
        return self._grader.grade_batch(texts, [exchange.problem.gold for exchange in exchanges])

    def close(self) -> None:
        """Closes the grader."""
        self._grader.close()
