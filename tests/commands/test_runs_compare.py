"""`runs compare`: evaluations paired by problem, what is refused, and what is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.cli import main
from grpo_gsm8k.runs.directory import RunDirectory


def make_run(
    folder: Path,
    evaluations: dict[int, Sequence[bool]],
    *,
    command: str = "eval",
    gold: str = "7",
    first: int = 0,
    version: str = "3",
    num_errors: int = 0,
    **values: Any,
) -> Path:
    """A run that solved what `evaluations` says, by step; its problems are numbered from `first`."""
    run = RunDirectory.create(folder, command, [command])
    run.start()
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 64}
    if command != "eval":
        sampling = {"temperature": 1.0, "eval_temperature": 0.0, "eval_max_new_tokens": 64}
    run.write_json("config.json", {"values": {"model_id": "tiny", **sampling, **values}, "sources": {}})
    for step, solved in evaluations.items():
        for number, right in enumerate(solved, start=first):
            score = {"value": float(right), "answer": "7", "status": "correct" if right else "wrong", "explanation": ""}
            if number - first < num_errors:
                score |= {"value": 0.0, "status": "error"}
            row = {"problem_id": f"p{number}", "question": f"Question {number}?", "gold": gold, "prompt_token_ids": [number]}
            row |= {"prompt": "", "completion": f"step {step} says {'7' if right else '8'}\n", "sample_index": 0}
            run.append(f"eval/step_{step}.jsonl", {**row, "scores": {"numeric": score, "format": score}})
        graders = {"numeric": {}, "format": {}}
        found = {"num_problems": len(solved), "num_samples": 1, "primary_grader": "numeric", "graders": graders}
        run.write_json(f"eval/step_{step}.json", found)
    if command == "eval":
        run.write_json("result.json", {"grader_versions": {"numeric": version, "format": "1"}})
    else:
        ready = {"event": "ready", "engine": {"grader_versions": {"numeric": version, "format": "1"}}}
        run.append("sys/eval_worker.jsonl", ready)
    run.finish("completed", None, 0)
    return run.path


HALF = [number < 5 for number in range(10)]  # p0 to p4
MOST = [number > 1 for number in range(10)]  # p2 to p9: gains p5 to p9, loses p0 and p1


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["runs", "compare", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_runs_end_against_its_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, {0: HALF, 20: MOST}, command="grpo")
    code, out, _ = compare(capsys, f"{run}@0", run, "--num-flips", "1")
    assert code == 0
    for expected in (
        "numeric grader, 10 problems, paired by problem",
        f"{run.name}@20 solves 80.0 % and {run.name}@0 50.0 % of the same 10 problems, a difference of +30.0 points",
        "exact McNemar p = 0.45; 5 gained, 2 lost",
        "No difference is shown: ",
        "gained p5: Question 5?  [gold 7]",
        "A wrong: step 0 says 8",
        "B correct: step 20 says 7",
        "lost p0: Question 0?",
        "… 4 more gained",
    ):
        assert expected in out, expected


def test_json_holds_every_number_and_every_flip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, {0: HALF, 20: MOST}, command="grpo")
    code, out, _ = compare(capsys, f"{run}@0", f"{run}@20", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert found["gained"] == ["p5", "p6", "p7", "p8", "p9"]
    assert found["lost"] == ["p0", "p1"]
    assert found["p"] == found["holm_p"] == pytest.approx(2 * (1 + 7 + 21) / 128)
    assert (found["a"]["step"], found["b"]["step"], found["num_problems"]) == (0, 20, 10)
    assert found["grader_errors"] == {"a": 0, "b": 0}


def test_several_runs_are_corrected_by_holm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path, {0: solved}) for solved in ([False] * 10, [True] * 10, MOST)]
    code, out, _ = compare(capsys, *runs, "--json")
    first, second = json.loads(out)
    assert code == 0
    assert (first["p"], second["p"]) == (pytest.approx(2 / 1024), pytest.approx(2 / 256))
    assert (first["holm_p"], second["holm_p"]) == (pytest.approx(4 / 1024), pytest.approx(2 / 256))
    assert "after Holm's correction for 2 comparisons" in compare(capsys, *runs)[1]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"gold": "8"}, "gold: 10 problems have another one (the first: p0)"),
        ({"first": 2}, "eval set: 8 problems in common, 2 only in A, 2 only in B"),
        ({"version": "4"}, "grader: numeric 3 in A and numeric 4 in B"),
        ({"max_new_tokens": 32}, "sampling: max_new_tokens is 64 in A and 32 in B"),
        ({"temperature": 0.7}, "sampling: temperature is 0.0 in A and 0.7 in B"),
    ],
)
def test_what_is_not_alike_is_refused_and_named_and_can_be_allowed(
    other: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path, {0: HALF}), make_run(tmp_path, {0: MOST}, **other)
    code, out, err = compare(capsys, a, b)
    assert (code, out) == (2, "")
    assert said in err
    code, out, _ = compare(capsys, a, b, "--allow-differences")
    assert code == 0
    assert f"not alike, as allowed: {said}" in out


def test_a_training_runs_evaluation_can_be_compared_with_an_evals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, plain = make_run(tmp_path, {0: HALF, 8: MOST}, command="sft"), make_run(tmp_path, {0: HALF})
    code, out, _ = compare(capsys, plain, f"{trained}@0")
    assert code == 0
    assert "0 gained, 0 lost" in out


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path, {0: HALF, 5: MOST}), make_run(tmp_path, {0: MOST})
    assert "one run has nothing to be compared with" in compare(capsys, a)[2]
    assert "is compared with itself" in compare(capsys, a, a)[2]
    assert "has no evaluation of step 3; there are 0, 5" in compare(capsys, f"{a}@3", b)[2]
    assert "has no evaluation of step 7" in compare(capsys, a, b, "--step", "7")[2]
    assert "unknown grader 'math'" in compare(capsys, a, b, "--grader", "math")[2]
    assert "no run 'nowhere'" in compare(capsys, "nowhere", b, "--artifacts-dir", tmp_path)[2]
    rows = (b / "eval/step_0.jsonl").read_text("utf-8")
    (b / "eval/step_0.jsonl").write_text(rows[: len(rows) // 2], "utf-8")
    code, _, err = compare(capsys, a, b)
    assert code == 2
    assert "whole rows of 10; it was cut or changed" in err
    assert err.count("\n") == 1


def test_another_grader_and_another_seed_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path, {0: HALF}), make_run(tmp_path, {0: MOST})
    assert "format grader, 10 problems" in compare(capsys, a, b, "--grader", "format")[1]
    assert compare(capsys, a, b, "--seed", "1") == compare(capsys, a, b, "--seed", "1")


def test_without_disagreement_there_is_no_interval_and_nothing_is_said_to_be_seen_at_this_discordance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path, {0: HALF * 2}), make_run(tmp_path, {0: HALF * 2})
    out = compare(capsys, a, b)[1]
    assert "(no bootstrap interval, as no problem differs; exact McNemar p = 1; 0 gained, 0 lost; a difference of" in out
    assert "points would be seen with power 0.8, and takes more disagreement than the 0.0 % seen)." in out
    few = compare(capsys, make_run(tmp_path, {0: [False] * 4}), make_run(tmp_path, {0: [True] * 4}))[1]
    assert "no bootstrap interval, as every problem differs by as much" in few
    assert "4 problems are too few to show any difference with power 0.8)." in few


def test_an_interval_that_leaves_out_0_where_the_test_does_not_reject_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path, {0: [number < solved for number in range(60)]}) for solved in (0, 5, 6)]
    assert (
        "which leaves out 0 but is too narrow where 5 problems differ: the exact test decides; exact McNemar p = 0.06"
        in (compare(capsys, *runs[:2])[1])
    )
    assert "leaves out 0" not in compare(capsys, runs[0], runs[2])[1]
    assert "unlike the p-value that decides, is not corrected for several comparisons" in compare(capsys, *runs)[1]


def test_completions_that_the_grader_failed_on_are_named_and_many_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path, {0: HALF * 20}), make_run(tmp_path, {0: HALF * 20}, num_errors=2)
    code, out, _ = compare(capsys, a, b)
    said = "2 of 200 completions of B have a grader error (counted as wrong)"
    assert code == 0
    assert f"; {said})." in out
    assert f"note: grader: {said}" in out
    assert json.loads(compare(capsys, a, b, "--json")[1])[0]["grader_errors"] == {"a": 0, "b": 2}
    worse = make_run(tmp_path, {0: HALF * 20}, num_errors=3)
    code, _, error = compare(capsys, a, worse)
    assert code == 2
    assert "grader: 3 of 200 completions of B have a grader error" in error
    assert compare(capsys, a, worse, "--allow-differences")[0] == 0
