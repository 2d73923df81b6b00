"""What `runs compare` says: evaluations compared in pairs, as a table, flips with examples, and a sentence to quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from grpo_gsm8k.algorithms.comparison import Comparison, compare_solved, holm
from grpo_gsm8k.errors import ConfigError, DataError
from grpo_gsm8k.runs.evaluations import EvaluationRecord, grader_errors, what_differs

MAX_CHARS = 240
SMALLEST_P = 1e-300
ALPHA = 0.05


@dataclass(frozen=True)
class Compared:
    """B against A: the numbers, the p-value adjusted for the other comparisons made with it, and what is not alike."""

    a: EvaluationRecord
    b: EvaluationRecord
    found: Comparison
    holm_p: float
    num_comparisons: int
    unfair: list[str]
    known: list[str]


def compare_evaluations(
    a: EvaluationRecord, others: Sequence[EvaluationRecord], *, seed: int, allow_differences: bool
) -> list[Compared]:
    """Returns each of `others` against `a`. Raises: DataError for what is not alike, unless allowed; ConfigError for twins."""
    compared = []
    for b in others:
        if (b.run_path.resolve(), b.step) == (a.run_path.resolve(), a.step):
            raise ConfigError(f"{a.name} is compared with itself; name a step (RUN@0) or another run")
        unfair, known = what_differs(a, b)
        if unfair and not allow_differences:
            raise DataError(
                f"{b.name} cannot be compared with {a.name}: {'; '.join(unfair)}; "
                "evaluate them alike, or use --allow-differences, which compares the problems in common"
            )
        common = a.problems.keys() & b.problems.keys()
        solved_a, solved_b = ({key: side.problems[key].solved for key in common} for side in (a, b))
        compared.append(Compared(a, b, compare_solved(solved_a, solved_b, seed=seed), 0.0, len(others), unfair, known))
    adjusted = holm([entry.found.p for entry in compared])
    return [replace(entry, holm_p=p) for entry, p in zip(compared, adjusted, strict=True)]


def comparison_record(entry: Compared) -> dict[str, Any]:
    """Returns a comparison as JSON values."""
    sides = {
        side: {"run": str(record.run_path), "step": record.step, "model": record.model}
        for side, record in (("a", entry.a), ("b", entry.b))
    }
    return {
        **sides,
        "grader": entry.a.grader,
        **asdict(entry.found),
        "test": _test(entry),
        "holm_p": entry.holm_p,
        "num_comparisons": entry.num_comparisons,
        "grader_errors": {
            side: sum(one.num_errors for one in record.problems.values()) for side, record in (("a", entry.a), ("b", entry.b))
        },
        "differs": entry.unfair,
        "noted": entry.known,
        "sentence": sentence(entry),
    }


def comparison_text(compared: Sequence[Compared], num_flips: int) -> str:
    """Returns the comparisons as a person reads them in a terminal."""
    a = compared[0].a
    several = len(compared) > 1
    width = max(len(record.name) for record in (a, *(entry.b for entry in compared)))
    lines = [
        f"{a.grader} grader, {compared[0].found.num_problems} problems, paired by problem",
        f"  {'':<{width}}  accuracy   against A   95 % interval     gained  lost   p" + ("         Holm" if several else ""),
        f"  {a.name:<{width}}  {_percent(compared[0].found.accuracy_a):>8}   A",
    ]
    for entry in compared:
        found, (low, high) = entry.found, entry.found.ci95
        interval = "none" if low == high else f"[{_points(low)}, {_points(high)}]"
        lines.append(
            f"  {entry.b.name:<{width}}  {_percent(found.accuracy_b):>8}   {_points(found.difference):>9}   {interval:<16}  "
            f"{len(found.gained):>6}  {len(found.lost):>4}   {_p(found.p):<8}" + (f"  {_p(entry.holm_p)}" if several else "")
        )
    for entry in compared:
        lines += ["", sentence(entry)]
        lines += [f"  not alike, as allowed: {said}" for said in entry.unfair]
        lines += [f"  note: {said}" for said in entry.known]
        for word, ids in (("gained", entry.found.gained), ("lost", entry.found.lost)):
            lines += [line for problem in ids[:num_flips] for line in _flip(entry, word, problem)]
            if len(ids) > num_flips:
                lines.append(f"  … {len(ids) - num_flips} more {word} (--num-flips, or --json for all)")
    return "\n".join(line.rstrip() for line in lines)


def sentence(entry: Compared) -> str:
    """Returns the comparison in one sentence that can be quoted."""
    found, (low, high) = entry.found, entry.found.ci95
    p = f"{_test(entry)} p {_p(found.p, spoken=True)}"
    if entry.num_comparisons > 1:
        p += f", {_p(entry.holm_p, spoken=True)} after Holm's correction for {entry.num_comparisons} comparisons"
    shown = "" if entry.holm_p < ALPHA else "No difference is shown: "
    solves = f"{entry.b.name} solves {_percent(found.accuracy_b)} and {entry.a.name} {_percent(found.accuracy_a)}"
    interval = f"95 % paired bootstrap interval {_points(low)} to {_points(high)}"
    if low == high:
        interval = "no bootstrap interval, as " + ("no problem differs" if low == 0 else "every problem differs by as much")
    said = [
        f"{interval}{_disagreement(entry)}",
        p,
        f"{len(found.gained)} gained, {len(found.lost)} lost",
        _detectable(entry),
        *(f"{counts} of {side} have a grader error (counted as wrong)" for side, counts, _ in grader_errors(entry.a, entry.b)),
    ]
    return (
        f"{shown}{solves} of the same {found.num_problems} problems, a difference of {_points(found.difference)} points "
        f"({'; '.join(said)})."
    )


def _disagreement(entry: Compared) -> str:
    """Says why interval and test do not agree on whether there is a difference; nothing where they do."""
    found, (low, high) = entry.found, entry.found.ci95
    excludes_0 = low > 0 or high < 0
    if low == high or excludes_0 == (entry.holm_p < ALPHA):
        return ""
    if not excludes_0:
        return ", which holds 0 where the exact test, which decides, does not"
    if found.p < ALPHA:
        return ", which leaves out 0 but, unlike the p-value that decides, is not corrected for several comparisons"
    few = len(found.gained) + len(found.lost)
    return f", which leaves out 0 but is too narrow where {few} problems differ: the exact test decides"


def _detectable(entry: Compared) -> str:
    found = entry.found
    if found.detectable is None:
        return f"{found.num_problems} problems are too few to show any difference with power 0.8"
    said = f"a difference of {100 * found.detectable:.1f} points would be seen with power 0.8"
    takes = found.detectable if _test(entry) == "exact McNemar" else found.detectable**2
    if takes > found.discordance:
        return f"{said}, and takes more disagreement than the {_percent(found.discordance)} seen"
    return f"{said} at this discordance"


def _test(entry: Compared) -> str:
    once = entry.a.sampling["num_samples"] == entry.b.sampling["num_samples"] == 1
    return "exact McNemar" if once else "exact sign-flip"


def _flip(entry: Compared, word: str, problem: str) -> list[str]:
    before, after = entry.a.problems[problem], entry.b.problems[problem]
    lines = [f"  {word} {problem}: {_shortened(before.question)}  [gold {before.gold}]"]
    for side, record in (("A", before), ("B", after)):
        said = f"{sum(record.solved)}/{len(record.solved)} correct" if len(record.solved) > 1 else ""
        lines.append(f"    {side} {said or ('correct' if record.solved[0] else 'wrong')}: {_shortened(record.completions[0])}")
    return lines


def _shortened(text: str) -> str:
    """Returns a text on one line, its end kept where it is long: that is where the answer stands."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_CHARS else f"{line[: MAX_CHARS // 3]} … {line[-2 * MAX_CHARS // 3 :]}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float, *, spoken: bool = False) -> str:
    if value < SMALLEST_P:
        return f"< {SMALLEST_P:.0e}"
    return f"{'= ' if spoken else ''}{value:.2g}"
