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


def test_neighbours_with_equal_prefixes_are_laid_as_written_out_by_hand() -> None:
    prompt = (5, 6)
    group = [
        TokenSequence.of_response("one", prompt, [7]),
        TokenSequence.of_response("three", prompt, [8, 9, 10]),
        TokenSequence("turns", (*prompt, 11, 12, 13), (False, False, True, False, True)),
        TokenSequence.of_response("other", [5], [6, 7]),
    ]
    batch = pack(group, [3, 0, 1, 2], share_prefixes=True)
    assert batch.lengths == (2, 2, 2, 2)  # other; the prompt; what is put in of "three" and of "turns" after it
    assert batch.continues == (-1, -1, 1, 1)
    assert batch.input_ids_T.tolist() == [5, 6, 5, 6, 8, 9, 11, 12]
    assert batch.position_ids_T.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert batch.trained_at_N.tolist() == [0, 1, 3, 3, 4, 5, 3, 7]
    assert batch.labels_N.tolist() == [6, 7, 7, 8, 9, 10, 11, 13]
    assert batch.sequence_index_N.tolist() == [3, 3, 0, 1, 1, 1, 2, 2]
    assert pack(group, [3, 0, 1, 2]).continues == (-1, -1, -1, -1)


def test_group_is_planned_together_with_its_prefix_counted_once() -> None:
    a, b = (1,) * 6, (2,) * 6
    lengths, prefixes = [8, 7, 9, 8, 8], [a, a, b, a, b]
    assert plan_microbatches(lengths, budget=12, prefixes=prefixes) == [[1, 3, 0], [4, 2]]  # 6 + 1 + 2 + 2 and 6 + 2 + 3
    assert plan_microbatches(lengths, budget=10, prefixes=prefixes) == [[3, 0], [2], [4], [1]]
    assert plan_microbatches(lengths, budget=22, prefixes=prefixes) == [[4, 2, 1, 3, 0]]


@given(st.data(), st.integers(1, 60))
def test_plan_with_prefixes_takes_every_sequence_once_within_the_budget(data: st.DataObject, budget: int) -> None:
    prefixes = data.draw(st.lists(st.sampled_from([(1,), (2,) * 9, (3,) * 20, (4,) * 21]), min_size=1, max_size=40))
    lengths = [len(prefix) + data.draw(st.integers(0, 20)) for prefix in prefixes]
    plan = plan_microbatches(lengths, budget, prefixes)
    assert sorted(index for indices in plan for index in indices) == list(range(len(lengths)))
    for indices in plan:
        rests = sum(lengths[index] - len(prefixes[index]) for index in indices)
        total = rests + sum(len(prefix) for prefix in {prefixes[index] for index in indices})
        assert total <= budget or len(indices) == 1


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_plan_is_the_plain_one_where_no_prefix_is_shared(lengths: list[int], budget: int) -> None:
    prefixes = [(index,) for index in range(len(lengths))]
    assert plan_microbatches(lengths, budget, prefixes) == plan_microbatches(lengths, budget)


def test_part_of_the_trained_tokens_has_their_labels_places_and_extras() -> None:
    part = pack(SEQUENCES, [1, 0]).tokens(slice(1, 3))
    assert part.labels_N.tolist() == [7, 8]
    assert part.trained_at_N.tolist() == [2, 3]
    assert part.sequence_index_N.tolist() == [0, 0]
    assert part.extras["advantage"].tolist() == [0.5, -1.0]
    assert part.input_ids_T.tolist() == [9, 5, 6, 7]


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
