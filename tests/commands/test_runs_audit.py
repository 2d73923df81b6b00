"""`runs audit`: re-grading what is stored, the disagreements to label, and labels that stay with their completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.cli import main
from grpo_gsm8k.commands.audit import JUDGES
from grpo_gsm8k.runs.directory import RunDirectory
from grpo_gsm8k.runs.storage import read_lines

# (completion, gold, a person's label): the last two are correct and differently read by the strict grader
COMPLETIONS = [
    ("9 + 9 = 18\n#### 18", "18", True),
    ("9 + 8 = 17\n#### 17", "18", False),
    ("So she makes $18 every day.\n\nThe final answer is $\\boxed{18}$.", "18", True),
    ("The answer is 18.", "18", True),
]


def make_run(folder: Path, *, status: str | None = None, version: str = "0") -> Path:
    """A run with an evaluation of `COMPLETIONS`, whose strict grader then said what is right, or `status`."""
    run = RunDirectory.create(folder, "eval", ["eval"])
    run.start()
    for number, (completion, gold, _) in enumerate(COMPLETIONS):
        strict = status or (
            "correct" if completion.endswith(f"#### {gold}") else "wrong" if "####" in completion else "unparsed"
        )
        row = {"problem_id": f"p{number}", "sample_index": 0, "question": f"Question {number}?", "gold": gold}
        row |= {"completion": completion, "scores": {"gsm8k_strict": {"status": strict}}}
        run.append("eval/step_0.jsonl", row)
    run.write_json("eval/step_0.json", {"num_problems": len(COMPLETIONS), "num_samples": 1})
    run.write_json("result.json", {"grader_versions": {"gsm8k_strict": version}})
    run.finish("completed", None, 0)
    return run.path


def record(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["runs", "audit", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_judge_grades_again_and_disagreements_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    found = record(capsys, str(run))
    assert [found["graders"][name].get("correct") for name in JUDGES] == [1, 3, 3]
    assert [row["problem_id"] for row in found["disagreements"]] == ["p2", "p3"]
    assert found["disagreements"][0]["verdicts"]["gsm8k_strict"] == {"status": "unparsed", "answer": None}
    pairs = {(pair["a"], pair["b"]): pair for pair in found["agreements"]}
    assert pairs["gsm8k_strict", "numeric"]["only_b"] == 2
    assert pairs["numeric", "math"]["share"] == 1.0
    assert found["changed"] == []
    assert all(found["graders"][name]["version"] for name in JUDGES)
    assert not (run / "audit").exists()


def test_a_verdict_that_is_not_given_again_is_named_with_both_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, status="correct")
    found = record(capsys, str(run))
    assert [(row["problem_id"], row["grader"], row["before"], row["now"]) for row in found["changed"]] == [
        ("p1", "gsm8k_strict", "correct", "wrong"),
        ("p2", "gsm8k_strict", "correct", "unparsed"),
        ("p3", "gsm8k_strict", "correct", "unparsed"),
    ]
    assert found["graders"]["gsm8k_strict"]["version_then"] == "0"
    assert main(["runs", "audit", str(run)]) == 0
    said = capsys.readouterr().out
    assert "3 stored verdicts are not given again" in said
    assert "(was 0 then)" in said


def test_disagreements_written_labelled_and_taken_back_stay_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sheet = make_run(tmp_path), tmp_path / "sheet.jsonl"
    assert main(["runs", "audit", str(run), "--to-label", str(sheet)]) == 0
    rows = list(read_lines(sheet))
    assert [row["correct"] for row in rows] == [None, None]
    assert main(["runs", "audit", str(run), "--to-label", str(sheet)]) == 2
    sheet.write_text("".join(json.dumps({**row, "correct": row["problem_id"] == "p2" or None}) + "\n" for row in rows))
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 0
    assert "1 labels, 0 other than before, 1 lines without one" in capsys.readouterr().out
    everything = [{"problem_id": f"p{n}", "correct": label} for n, (_, _, label) in enumerate(COMPLETIONS)]
    sheet.write_text("".join(json.dumps(row) + "\n" for row in everything))
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 0
    found = record(capsys, str(run))
    assert (found["num_labelled"], found["num_labelled_disagreements"]) == (4, 2)
    strict, numeric, _ = found["quality"]
    assert (strict["precision"], strict["recall"], strict["f1"]) == (1.0, 1 / 3, 0.5)
    assert (numeric["precision"], numeric["recall"]) == (1.0, 1.0)
    kept = json.loads((run / "audit/eval_step_0.json").read_bytes())
    assert kept["graders"]["numeric"]["version"] == found["graders"]["numeric"]["version"]


def test_a_label_does_not_outlive_the_completion_it_was_given_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, sheet = make_run(tmp_path), tmp_path / "sheet.jsonl"
    sheet.write_text('{"problem_id": "p0", "correct": true}\n')
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 0
    stored = run / "eval/step_0.jsonl"
    stored.write_bytes(stored.read_bytes().replace(b"9 + 9 = 18", b"9 * 2 = 18"))
    found = record(capsys, str(run))
    assert (found["num_labelled"], found["num_labels_of_changed_text"]) == (0, 1)
    assert main(["runs", "audit", str(run)]) == 0
    assert "1 label is of a text that has changed and is left out" in capsys.readouterr().out
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 0  # labelled anew
    found = record(capsys, str(run))
    assert (found["num_labelled"], found["num_labels_of_changed_text"]) == (1, 0)


@pytest.mark.parametrize("key", ["gold", "completion", "question"])
def test_a_sheet_that_shows_another_text_than_is_stored_is_refused_by_its_line(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sheet = make_run(tmp_path), tmp_path / "sheet.jsonl"
    assert main(["runs", "audit", str(run), "--to-label", str(sheet)]) == 0
    rows = [{**row, "correct": True} for row in read_lines(sheet)]
    rows[1][key] += " "
    sheet.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 2
    assert f"sheet.jsonl:2: p3, sample 0, has another {key} in" in capsys.readouterr().err
    assert not (run / "audit").exists()


def test_a_changed_removed_or_emptied_label_is_named_by_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, sheet = make_run(tmp_path), tmp_path / "sheet.jsonl"
    sheet.write_text("".join(json.dumps({"problem_id": f"p{n}", "correct": True}) + "\n" for n in range(2)))
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 0
    kept = run / "audit/labels.jsonl"
    written = kept.read_text()

    def said(content: str) -> str:
        kept.write_text(content)
        capsys.readouterr()
        main(["runs", "verify", str(run)])
        lines = capsys.readouterr().out.splitlines()
        return " ".join(line for line in lines if line.startswith("audit/"))

    assert said(written) == ""
    assert "was changed" in said(written.replace('"correct": true', '"correct": false', 1))
    assert main(["runs", "audit", str(run)]) == 2
    assert "some were removed or added" in said(written.splitlines(keepends=True)[0])
    assert "is empty" in said("")
    kept.write_text(written)
    (run / "audit/eval_step_0.json").write_text((run / "audit/eval_step_0.json").read_text().replace(": 2", ": 3", 1))
    assert "audit/eval_step_0.json: was changed" in said(written)


def test_a_file_of_completions_is_audited_and_its_labels_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sheet = tmp_path / "mine.jsonl", tmp_path / "sheet.jsonl"
    path.write_text(json.dumps({"problem_id": "a", "gold": "18", "completion": "#### 18"}) + "\n")
    sheet.write_text('{"problem_id": "a", "correct": false}\n')
    assert main(["runs", "audit", str(path), "--label", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "not kept: the file is of no run" in said
    assert "0.0 % [0.0, 79.3] of 1" in said  # Wilson's interval of 0 of 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine.jsonl", "sheet.jsonl"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b'{"problem_id": "a", "gold": "1", "completion": "1"}', "its last line is torn"),
        (b"\xff\xfe\n", "not the JSON line"),
        (b"[]\n", "no stored completion"),
        (b'{"problem_id": "a"}\n', "needs problem_id, gold and completion"),
        (b'{"problem_id": "a", "gold": 1, "completion": "1"}\n', "are text"),
        (b'{"problem_id": "a", "gold": "1", "completion": "1"}\n' * 2, "the same problem_id and sample_index twice"),
        (b'{"problem_id": "a", "gold": "1", "completion": "1", "scores": {"numeric": 1}}\n', "no stored completion"),
    ],
)
def test_a_damaged_file_is_one_line(content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    assert main(["runs", "audit", str(tmp_path / "bad.jsonl")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ('{"problem_id": "p9", "correct": true}', "p9, sample 0, is not among the 4 completions"),
        ('{"problem_id": "p0", "correct": true}\n{"problem_id": "p0", "correct": false}', "labelled true and false"),
        ('{"problem_id": "p0", "correct": 1}', "no label"),
        ('{"problem_id": "p0"}', "no label"),
        ("x", "no label"),
    ],
)
def test_a_label_that_is_none_is_named_by_its_line_and_nothing_is_kept(
    label: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sheet = make_run(tmp_path), tmp_path / "sheet.jsonl"
    sheet.write_text(label + "\n")
    assert main(["runs", "audit", str(run), "--label", str(sheet)]) == 2
    assert says in capsys.readouterr().err
    assert not (run / "audit").exists()


def test_an_evaluation_that_was_cut_or_whose_labels_were_damaged_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    (run / "audit").mkdir()
    (run / "audit/labels.jsonl").write_text('{"problem_id": 3}\n')
    assert main(["runs", "audit", str(run)]) == 2
    assert "holds a line that is no label" in capsys.readouterr().err
    stored = run / "eval/step_0.jsonl"
    stored.write_bytes(b"".join(stored.read_bytes().splitlines(keepends=True)[:2]))
    assert main(["runs", "audit", str(run)]) == 2
    assert "holds 2 rows of 4; it was cut or changed" in capsys.readouterr().err
    assert main(["runs", "audit", f"{run}@7"]) == 2
    assert "no evaluation of step 7; there are 0" in capsys.readouterr().err


def test_where_judges_agree_no_empty_sheet_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, sheet = tmp_path / "agreed.jsonl", tmp_path / "sheet.jsonl"
    file.write_text('{"problem_id": "a", "gold": "18", "completion": "9 + 9 = 18\\n#### 18"}\n')
    assert main(["runs", "audit", str(file), "--to-label", str(sheet)]) == 0
    assert "judges agree on every completion" in capsys.readouterr().out and not sheet.exists()
    assert main(["runs", "audit", str(tmp_path / "gone.jsonl")]) == 2
    assert "no file" in capsys.readouterr().err
