"""Is an environment sound? Every problem's published answer against the environment's own scoring, and repeated questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_gsm8k.data.rows import duplicate_groups, normalised
from grpo_gsm8k.envs.protocol import Environment, Exchange, Observation, Outcome, Reply
from grpo_gsm8k.rewards.numbers import parse_gold
from grpo_gsm8k.types import Problem, Score

NUM_EXAMPLES = 5
NUM_WRONG_ANSWERS = 3  # other problems' answers tried before a problem counts as one that takes any answer
NUM_LOOKED_AT = 50  # following problems among which one with another gold is looked for
MAX_SHOWN_CHARS = 60

Script = tuple[Problem, tuple[str, ...]]
"""A problem, and the model's turns to play."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that was found: how many problems it concerns, the first of them, and whether it is a fault.

    What is no fault is said all the same: repeated questions within a split, problems that have no published answer.
    """

    kind: str
    num: int
    examples: tuple[str, ...]
    is_fault: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found in one split; `num_right` published answers earned the full score."""

    env: str
    version: str
    split: str
    num_problems: int
    num_right: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that was found is a fault."""
        return not any(finding.is_fault for finding in self.findings)


def verify(env: Environment, split: str) -> Verification:
    """Returns what is wrong with a split's problems, judged by the environment itself.

    A published answer (`Environment.demonstration`) must earn 1.0 and status "correct"; of the answers of other problems with
    other golds, tried in turn, at least one must not. A question (letter case and white space aside) must not be in another
    split. Raises: DataError when there is no such split; what the environment raises.
    """
    problems = env.problems(split)
    shown = [(problem, env.demonstration(problem)) for problem in problems]
    without = [_example(problem, "no published answer to check with") for problem, turns in shown if not turns]
    checked = [(problem, turns) for problem, turns in shown if turns]
    replies = play(env, checked)
    unreadable, refused = [], []
    for (problem, _), reply in zip(checked, replies, strict=True):
        if isinstance(reply, Outcome) and reply.score.status == "error":
            unreadable.append(_example(problem, f"{_short(problem.gold)}: {reply.score.explanation}"))
        elif not _is_full(reply):
            refused.append(_example(problem, f"{_short(problem.gold)}: {_verdict(reply)}"))
    answered = [pair for pair, reply in zip(checked, replies, strict=True) if _is_full(reply)]
    taken = [_example(p, f"{_short(p.gold)}: full score for {_short(turns[-1])}") for p, turns in _wrongly_taken(env, answered)]
    empty = [_example(problem, "the question is empty") for problem in problems if not problem.question.strip()]
    findings = [
        _finding("empty questions", empty, True),
        _finding("golds that the grader cannot read", unreadable, True),
        _finding("published answers without the full score", refused, True),
        _finding("wrong answers with the full score", taken, True),
        _finding("problems without a published answer", without, False),
        _finding("questions repeated in the split", _repeated(problems), False),
        *(
            _finding(f"questions also in {other}", _shared(env, problems, other), True)
            for other in env.splits
            if other != split
        ),
    ]
    found = tuple(finding for finding in findings if finding.num)
    return Verification(env.name, env.version, split, len(problems), len(answered), found)


def play(env: Environment, scripts: Sequence[Script]) -> list[Reply]:
    """Returns the reply to the last turn of each (problem, turns) that was played, in order; an outcome ends it early."""
    replies: list[Reply] = [Observation("")] * len(scripts)
    for num_turns in range(1, max((len(turns) for _, turns in scripts), default=0) + 1):
        live = [
            index
            for index, (_, turns) in enumerate(scripts)
            if num_turns <= len(turns) and isinstance(replies[index], Observation)
        ]
        exchanges = [_exchange(env, scripts[index][0], scripts[index][1][:num_turns]) for index in live]
        for index, reply in zip(live, env.reply(exchanges), strict=True):
            replies[index] = reply
    return replies


def _exchange(env: Environment, problem: Problem, turns: tuple[str, ...]) -> Exchange:
    return Exchange(problem, turns, "stop" if env.stop and turns[-1].endswith(env.stop) else "eos")


def _wrongly_taken(env: Environment, answered: Sequence[Script]) -> list[Script]:
    """Returns the problems that give the full score to each other problem's answer that was tried, with the last of those."""
    suspects = [(problem, _answers_of_others(answered, index)) for index, (problem, _) in enumerate(answered)]
    suspects = [(problem, others) for problem, others in suspects if others]
    for attempt in range(NUM_WRONG_ANSWERS):
        trying = [(problem, others[attempt]) for problem, others in suspects if attempt < len(others)]
        replies = play(env, trying)
        cleared = {problem.id for (problem, _), reply in zip(trying, replies, strict=True) if not _is_full(reply)}
        suspects = [(problem, others) for problem, others in suspects if problem.id not in cleared]
    return [(problem, others[-1]) for problem, others in suspects]


def _answers_of_others(answered: Sequence[Script], index: int) -> list[tuple[str, ...]]:
    """Returns the right turns of the next few problems that have another gold."""
    near = [answered[(index + step) % len(answered)] for step in range(1, min(NUM_LOOKED_AT, len(answered)))]
    own = _gold_key(answered[index][0])
    return [turns for problem, turns in near if _gold_key(problem) != own][:NUM_WRONG_ANSWERS]


def _gold_key(problem: Problem) -> str:
    """Returns the gold as it is compared: two ways to write one number are one gold."""
    gold = parse_gold(problem.gold)
    return normalised(problem.gold) if gold is None else str(gold.value)


def _is_full(reply: Reply) -> bool:
    return isinstance(reply, Outcome) and reply.score.status == "correct" and reply.score.value >= 1.0


def _verdict(reply: Reply) -> str:
    if isinstance(reply, Observation):
        return f"the environment wants another turn ({_short(reply.text)})"
    score: Score = reply.score
    read = "" if score.answer is None else f", read {_short(score.answer)}"
    return f"{score.status} {score.value:g}{read} ({score.explanation})"


def _finding(kind: str, examples: Sequence[str], is_fault: bool) -> Finding:
    return Finding(kind, len(examples), tuple(examples[:NUM_EXAMPLES]), is_fault)


def _repeated(problems: Sequence[Problem]) -> list[str]:
    """Returns an example for each problem whose question an earlier one asked."""
    return [
        _example(problems[later], f"asks what {problems[group[0]].id} asks")
        for group in duplicate_groups(problems)
        for later in group[1:]
    ]


def _shared(env: Environment, problems: Sequence[Problem], other: str) -> list[str]:
    ids = {normalised(problem.question): problem.id for problem in env.problems(other)}
    asked = [(problem, ids.get(normalised(problem.question))) for problem in problems]
    return [_example(problem, f"asks what {known} asks") for problem, known in asked if known is not None]


def _example(problem: Problem, what: str) -> str:
    return f"{problem.id}: {what}"


def _short(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…")
