"""What `runs audit` finds: stored completions graded again, where graders disagree, how good each is against labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from grpo_gsm8k.algorithms.agreement import Agreement, Quality, Verdict, agreements, quality
from grpo_gsm8k.loops.grading import open_graders
from grpo_gsm8k.rewards.registry import GRADERS, JUDGES_OF_ANSWERS
from grpo_gsm8k.runs.audit import Key, Stored, StoredCompletion
from grpo_gsm8k.types import Problem, Score

JUDGES = tuple(name for name in GRADERS if name in JUDGES_OF_ANSWERS)


@dataclass(frozen=True)
class Changed:
    """A stored verdict that the grader of today does not give: `before` and `now` are statuses."""

    problem_id: str
    sample_index: int
    grader: str
    before: str
    now: str


@dataclass(frozen=True)
class Audit:
    """An audit: the scores of today by grader (one a completion), what follows from them, and the labels that were used."""

    stored: Stored
    scores: Mapping[str, Sequence[Score]]
    versions: Mapping[str, str]
    not_regraded: Sequence[str]
    agreements: Sequence[Agreement]
    disagreements: Sequence[int]
    changed: Sequence[Changed]
    labels: Mapping[int, bool]
    qualities: Sequence[Quality]


def audit(stored: Stored, labels: Mapping[Key, bool]) -> Audit:
    """Returns the audit of stored completions with every judge of answers, and every grader that judged them then.

    A judge that needs more than text and gold (`gym`) is not run again; it is named, and takes no part.
    """
    completions = stored.completions
    then = sorted({grader for item in completions for grader in item.statuses})
    names = [*JUDGES, *(name for name in then if name in GRADERS and name not in JUDGES)]
    problems = [Problem(item.problem_id, item.question, "", item.gold) for item in completions]
    with open_graders(names) as graders:
        texts = [item.completion for item in completions]
        scores = {name: graders.grade[name](problems, texts) for name in names}
    verdicts: dict[str, list[Verdict]] = {name: [_verdict(score) for score in scores[name]] for name in JUDGES}
    rows = list(zip(*verdicts.values(), strict=True))
    labelled = {index: labels[item.key] for index, item in enumerate(completions) if item.key in labels}
    return Audit(
        stored=stored,
        scores=scores,
        versions=graders.versions,
        not_regraded=[name for name in then if name not in GRADERS],
        agreements=agreements(verdicts),
        disagreements=[index for index, row in enumerate(rows) if len({*row} - {None}) > 1],
        changed=_changed(completions, scores),
        labels=labelled,
        qualities=[quality(name, [verdicts[name][i] for i in labelled], list(labelled.values())) for name in JUDGES],
    )


def _verdict(score: Score) -> Verdict:
    return None if score.status == "error" else score.status == "correct"


def _changed(completions: Sequence[StoredCompletion], scores: Mapping[str, Sequence[Score]]) -> list[Changed]:
    return [
        Changed(item.problem_id, item.sample_index, name, item.statuses[name], now[index].status)
        for name, now in scores.items()
        for index, item in enumerate(completions)
        if name in item.statuses and item.statuses[name] != now[index].status
    ]


def audit_record(found: Audit) -> dict[str, Any]:
    """Returns an audit as JSON values; every disagreement is in it."""
    return {
        "file": str(found.stored.path),
        "num_completions": len(found.stored.completions),
        "graders": {
            name: {
                "version": found.versions[name],
                "version_then": found.stored.versions.get(name),
                **Counter(score.status for score in scores),
            }
            for name, scores in found.scores.items()
        },
        "not_regraded": list(found.not_regraded),
        "agreements": [asdict(pair) for pair in found.agreements],
        "changed": [asdict(change) for change in found.changed],
        "num_labelled": len(found.labels),
        "num_labelled_disagreements": len(found.labels.keys() & set(found.disagreements)),
        "quality": [asdict(entry) for entry in found.qualities],
        "disagreements": to_label(found),
    }


def to_label(found: Audit) -> list[dict[str, Any]]:
    """Returns each completion on which judges disagree, as a row to label: set `correct` to true or false."""
    rows = []
    for index in found.disagreements:
        item = found.stored.completions[index]
        verdicts = {
            name: {"status": found.scores[name][index].status, "answer": found.scores[name][index].answer} for name in JUDGES
        }
        row = {"problem_id": item.problem_id, "sample_index": item.sample_index, "correct": found.labels.get(index)}
        rows.append({**row, "question": item.question, "gold": item.gold, "verdicts": verdicts, "completion": item.completion})
    return rows


def audit_text(found: Audit, num_shown: int) -> str:
    """Returns an audit as a person reads it in a terminal."""
    num = len(found.stored.completions)
    lines = [f"{found.stored.path}: {num} stored completions, graded again", *_graders(found), "", *_matrix(found), ""]
    lines.append(f"judges disagree on {len(found.disagreements)} of {num}")
    for row in to_label(found)[:num_shown]:
        said = ", ".join(f"{name} {verdict['status']} ({verdict['answer']})" for name, verdict in row["verdicts"].items())
        label = "" if row["correct"] is None else f"  labelled {'correct' if row['correct'] else 'wrong'}"
        lines.append(f"  {row['problem_id']} sample {row['sample_index']} [gold {row['gold']}]: {said}{label}")
        lines.append(f"    … {_ending(row['completion'])}")
    if len(found.disagreements) > num_shown:
        lines.append(f"  … {len(found.disagreements) - num_shown} more (--to-label FILE, or --json for all)")
    return "\n".join([*lines, "", *_quality(found)])


def _graders(found: Audit) -> list[str]:
    lines = [f"  {'':<14}{'correct':>8}{'wrong':>8}{'unparsed':>9}{'error':>7}  version"]
    for name, scores in found.scores.items():
        counts = Counter(score.status for score in scores)
        then = found.stored.versions.get(name)
        was = f" (was {then} then)" if then not in (None, found.versions[name]) else ""
        cells = f"{counts['correct']:>8}{counts['wrong']:>8}{counts['unparsed']:>9}{counts['error']:>7}"
        lines.append(f"  {name:<14}{cells}  {found.versions[name]}{was}")
    lines += [f"  {name}: needs more than text and gold, so it is not graded again" for name in found.not_regraded]
    if not any(item.statuses for item in found.stored.completions):
        return [*lines, "no verdicts were stored with these completions"]
    if not found.changed:
        return [*lines, "every stored verdict is given again"]
    lines.append(f"{len(found.changed)} stored verdicts are not given again: the grader changed, or the file did")
    lines += [f"  {c.problem_id} sample {c.sample_index}: {c.grader} {c.before} then, {c.now} now" for c in found.changed[:5]]
    return [*lines, *([f"  … {len(found.changed) - 5} more (--json)"] if len(found.changed) > 5 else [])]


def _matrix(found: Audit) -> list[str]:
    pairs = {(entry.a, entry.b): entry for entry in found.agreements}
    lines = [f"{'agreement (Cohen’s kappa)':<26}" + "".join(f"{name:>18}" for name in JUDGES)]
    for row in JUDGES:
        cells = []
        for column in JUDGES:
            entry = pairs.get((row, column)) or pairs.get((column, row))
            cells.append("—" if entry is None or entry.share is None else f"{100 * entry.share:.1f} % {_kappa(entry)}")
        lines.append(f"  {row:<24}" + "".join(f"{cell:>18}" for cell in cells))
    for a, b in combinations(JUDGES, 2):
        entry = pairs[a, b]
        if entry.only_a or entry.only_b:
            lines.append(f"  only {a} says correct: {entry.only_a}; only {b}: {entry.only_b}")
    return lines


def _kappa(entry: Agreement) -> str:
    return "(—)" if entry.kappa is None else f"({entry.kappa:.2f})"


def _quality(found: Audit) -> list[str]:
    if not found.labels:
        return ["no labels: --to-label FILE writes the disagreements, --label FILE takes them back with `correct` filled in"]
    on_disagreements = len(found.labels.keys() & set(found.disagreements))
    lines = [
        f"against {len(found.labels)} labels, {on_disagreements} of them where judges disagree"
        + ("; so these are figures of the hard cases, not of the whole" if on_disagreements == len(found.labels) else ""),
        f"  {'':<14}{'precision':<30}{'recall':<30}F1",
    ]
    for entry in found.qualities:
        precision = _share(entry.precision, entry.precision_ci95, entry.true_correct + entry.false_correct)
        recall = _share(entry.recall, entry.recall_ci95, entry.true_correct + entry.false_wrong)
        f1 = "—" if entry.f1 is None else f"{entry.f1:.3f}"
        errors = f"  ({entry.num_errors} errors left out)" if entry.num_errors else ""
        lines.append(f"  {entry.grader:<14}{precision:<30}{recall:<30}{f1}{errors}")
    return lines


def _share(share: float | None, ci95: tuple[float, float] | None, total: int) -> str:
    if share is None or ci95 is None:
        return "— (of none)"
    return f"{100 * share:.1f} % [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}] of {total}"


def _ending(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[-200:]
