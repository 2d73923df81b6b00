"""Two records of one run are compared: the first difference is found, in the order of causes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.divergence import (
    agreement,
    drifts,
    first_in_files,
    first_in_ledger,
    first_in_metrics,
    first_in_result,
    read_steps,
)

STAGES = {"data": "d", "prompt": "p", "sampled_tokens": "s", "reward": "r", "advantage": "a", "loss": [1.5], "grad_norm": [0.5]}


def ledger(folder: Path, **changed: Any) -> Path:
    """A run with steps 1 and 2 and evaluations of steps 0 and 2; `changed` stages are those of step 2."""
    evaluation = {"eval/data": "e", "eval/sampled_tokens": "f", "eval/reward": "g"}
    evaluated = {**evaluation, **{key: value for key, value in changed.items() if key.startswith("eval/")}}
    trained = {**STAGES, "weights": "w", **{key: value for key, value in changed.items() if not key.startswith("eval/")}}
    rows = [
        {"step": 0, **evaluation},
        {"step": 2, **evaluated},
        {"step": 1, **STAGES, "weights": "v"},
        {"step": 2, **trained},
    ]
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def parted(tmp_path: Path, **changed: Any) -> tuple[int | None, str] | None:
    """(step, stage) at which a run with these stages in step 2 parts from one without."""
    sides = [read_steps(ledger(tmp_path / name, **stages), "ledger.jsonl") for name, stages in (("a", {}), ("b", changed))]
    found = first_in_ledger(*sides)
    return None if found is None else (found.step, found.stage)


def test_equal_ledgers_do_not_part(tmp_path: Path) -> None:
    assert parted(tmp_path) is None


@pytest.mark.parametrize("stage", [*STAGES, "weights", "eval/data", "eval/sampled_tokens", "eval/reward"])
def test_the_stage_that_differs_is_named_with_both_values(tmp_path: Path, stage: str) -> None:
    there, here = (
        read_steps(ledger(tmp_path / name, **changed), "ledger.jsonl") for name, changed in (("a", {}), ("b", {stage: "other"}))
    )
    found = first_in_ledger(there, here)
    assert found is not None and (found.step, found.stage) == (2, stage)
    assert (found.there, found.here) == (there[(2, stage.startswith("eval/"))][stage], "other")


def test_of_several_stages_the_first_cause_is_named(tmp_path: Path) -> None:
    changed = {"weights": "x", "grad_norm": [9.0], "loss": [8.0], "reward": "y", "eval/sampled_tokens": "z"}
    assert parted(tmp_path, **changed) == (2, "reward")


def test_training_stands_before_the_evaluation_of_the_same_step(tmp_path: Path) -> None:
    assert parted(tmp_path, **{"weights": "x", "eval/data": "z"}) == (2, "weights")


def test_a_loss_that_differs_in_its_last_bit_differs(tmp_path: Path) -> None:
    assert parted(tmp_path, loss=[1.5000000000000002]) == (2, "loss")


def test_the_order_of_the_lines_does_not_matter_and_a_missing_line_does(tmp_path: Path) -> None:
    there = read_steps(ledger(tmp_path / "a"), "ledger.jsonl")
    assert list(there) == [(0, True), (1, False), (2, False), (2, True)]
    here = {key: row for key, row in there.items() if key != (2, True)}
    found = first_in_ledger(there, here)
    assert found is not None and (found.step, found.stage, found.here) == (2, "evaluation", "not there")


def test_only_steps_up_to_n_are_compared_when_asked(tmp_path: Path) -> None:
    sides = [read_steps(ledger(tmp_path / name, **more), "ledger.jsonl", 1) for name, more in (("a", {}), ("b", {"loss": [3]}))]
    assert first_in_ledger(*sides) is None and list(sides[0]) == [(0, True), (1, False)]


def test_weights_hashed_at_other_steps_are_no_difference_where_that_is_said(tmp_path: Path) -> None:
    there = read_steps(ledger(tmp_path / "a"), "ledger.jsonl")
    here = {key: {name: value for name, value in row.items() if name != "weights"} for key, row in there.items()}
    assert first_in_ledger(there, here, sparse_weights=True) is None
    found = first_in_ledger(there, here)
    assert found is not None and (found.step, found.stage) == (1, "weights")


def test_agreement_counts_the_lines_of_each_stage(tmp_path: Path) -> None:
    sides = [read_steps(ledger(tmp_path / name, **more), "ledger.jsonl") for name, more in (("a", {}), ("b", {"loss": [3.0]}))]
    counts = agreement(*sides)
    assert counts["loss"] == (1, 2) and counts["data"] == (2, 2) and counts["eval/data"] == (2, 2)
    assert list(counts)[:3] == ["data", "prompt", "sampled_tokens"]


def test_times_are_no_difference_between_metrics_and_drift_names_the_largest() -> None:
    there = {(1, False): {"step": 1, "loss": 1.0, "time/s": 3.0}, (2, False): {"step": 2, "loss": 2.0, "time/s": 3.0}}
    here = {(1, False): {"step": 1, "loss": 1.25, "time/s": 9.0}, (2, False): {"step": 2, "loss": 1.5, "time/s": 8.0}}
    found = first_in_metrics(there, here)
    assert found is not None and (found.step, found.stage, found.there, found.here) == (1, "loss", 1.0, 1.25)
    (drift,) = drifts(there, here)
    assert (drift.key, drift.step, drift.size) == ("loss", 2, 0.5)


def test_the_first_row_field_and_place_of_a_changed_evaluation_are_named(tmp_path: Path) -> None:
    rows = [{"problem_id": f"p{i}", "sample_index": 0, "token_ids": [1, 2, 3]} for i in range(3)]
    for name in ("a", "b"):
        (tmp_path / name / "eval").mkdir(parents=True)
        (tmp_path / name / "eval/step_4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows[1] = {**rows[1], "token_ids": [1, 7, 3]}
    found = first_in_files(tmp_path / "a", tmp_path / "b", both_only=False)
    assert found is not None and (found.file, found.step) == ("eval/step_4.jsonl", 4)
    assert found.detail == "row 2, p1, sample 0: token_ids differ from number 1 on: 2 and 7"


def test_places_and_times_are_no_difference_between_results(tmp_path: Path) -> None:
    for name, sha in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"folder": name, "times": name, "sha256": sha}))
    assert first_in_result(tmp_path / "a", tmp_path / "b") is None
    found = first_in_result(tmp_path / "a", tmp_path / "c")
    assert found is not None and (found.stage, found.there, found.here) == ("sha256", "1", "2")


@pytest.mark.parametrize("line", ["[1]", '{"loss": 1}', "{broken"])
def test_a_damaged_ledger_is_said_in_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "ledger.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"ledger\.jsonl"):
        read_steps(tmp_path, "ledger.jsonl")
