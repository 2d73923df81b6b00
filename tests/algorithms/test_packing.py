"""Packing, against batches written out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.algorithms.packing import num_inputs, pack, plan_microbatches
from grpo_gsm8k.errors import DataError, ProofError
from grpo_gsm8k.tokenize import TokenSequence

ADVANTAGES = {"advantage": (0.0, 0.0, 0.5, -1.0)}
SEQUENCES = [
    TokenSequence("a", (5, 6, 7, 8), (False, False, True, True), ADVANTAGES),
    TokenSequence("b", (9, 10, 11, 12), (False, True, False, False), {"advantage": (0.0, 2.0, 0.0, 0.0)}),
]


def test_batch_is_laid_end_to_end_as_written_out_by_hand() -> None:
    batch = pack(SEQUENCES, [1, 0])
    assert batch.sequence_ids == ("b", "a")
    assert batch.lengths == (1, 3)
    assert batch.input_ids_T.tolist() == [9, 5, 6, 7]
    assert batch.position_ids_T.tolist() == [0, 0, 1, 2]
    assert batch.trained_at_N.tolist() == [0, 2, 3]
    assert batch.labels_N.tolist() == [10, 7, 8]
    assert batch.sequence_index_N.tolist() == [1, 0, 0]
    assert batch.extras["advantage"].tolist() == [2.0, 0.5, -1.0]
    assert batch.num_trained == 3


def test_batch_moved_to_a_device_keeps_all_its_tensors() -> None:
    moved = pack(SEQUENCES, [0]).to(torch.device("meta"))
    assert {moved.input_ids_T.device.type, moved.labels_N.device.type, moved.extras["advantage"].device.type} == {"meta"}


def test_tokens_after_the_last_trained_one_do_not_go_through_the_model() -> None:
    assert [num_inputs(sequence) for sequence in SEQUENCES] == [3, 1]


def test_sequence_that_trains_no_token_is_refused_by_name() -> None:
    with pytest.raises(ProofError, match="'c' trains no token"):
        num_inputs(TokenSequence("c", (1, 2), (False, False)))


def test_sequences_with_different_extras_are_refused() -> None:
    with pytest.raises(DataError, match=r"'c' has extras \[\] and 'a' has \['advantage'\]"):
        pack([*SEQUENCES, TokenSequence("c", (1, 2), (False, True))], [0, 2])


def test_plan_fills_micro_batches_first_fit_by_decreasing_length() -> None:
    assert plan_microbatches([3, 9, 4, 2, 1], budget=10) == [[4, 1], [3, 0, 2]]


def test_sequence_longer_than_the_budget_is_a_micro_batch_of_its_own() -> None:
    assert plan_microbatches([3, 50, 4], budget=7) == [[1], [0, 2]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 60))
def test_plan_takes_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    plan = plan_microbatches(lengths, budget)
    assert sorted(index for indices in plan for index in indices) == list(range(len(lengths)))
    for indices in plan:
        assert sum(lengths[index] for index in indices) <= budget or len(indices) == 1
        assert [lengths[index] for index in indices] == sorted(lengths[index] for index in indices)
