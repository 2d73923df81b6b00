"""Masked sums and means, against values worked out by hand and loops in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from grpo_gsm8k.algorithms.masking import masked_mean, masked_normalize, masked_sum
from grpo_gsm8k.errors import DataError

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, False, True], [False, False, True]])


def test_sums_and_means_are_those_worked_out_by_hand() -> None:
    assert masked_sum(VALUES, MASK).item() == 10
    assert masked_sum(VALUES, MASK, dim=0).tolist() == [1, 0, 9]
    assert masked_sum(VALUES, MASK, dim=-1).tolist() == [4, 6]
    assert masked_mean(VALUES, MASK).item() == pytest.approx(10 / 3)
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [2, 6]
    assert masked_normalize(VALUES, MASK, 4.0).item() == 2.5
    assert masked_normalize(VALUES, MASK, 2.0, dim=1).tolist() == [2, 3]


@pytest.mark.parametrize("dim", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("as_mask", [torch.Tensor.bool, torch.Tensor.long, torch.Tensor.float])
def test_any_dimension_and_kind_of_mask_agrees_with_loops(dim: int | None, as_mask: object) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 4, 5, generator=generator) > 0.4
    groups: dict[tuple[int, ...], list[float]] = {}
    for index in itertools.product(range(3), range(4), range(5)):
        key = () if dim is None else tuple(at for axis, at in enumerate(index) if axis != dim % 3)
        groups.setdefault(key, [])
        if mask[index]:
            groups[key].append(tensor[index].item())
    means, sums = masked_mean(tensor, as_mask(mask), dim), masked_sum(tensor, as_mask(mask), dim)  # type: ignore[operator]
    for key, members in groups.items():
        assert sums[key].item() == pytest.approx(sum(members), abs=1e-12)
        mean = sum(members) / len(members) if members else math.nan
        assert means[key].item() == pytest.approx(mean, abs=1e-12, nan_ok=True)


def test_the_mean_of_nothing_is_no_number_and_its_sum_is_0() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert masked_mean(VALUES, nothing).isnan()
    assert masked_sum(VALUES, nothing).item() == 0
    assert masked_mean(VALUES, MASK, dim=0).isnan().tolist() == [False, True, False]


def test_what_is_left_out_reaches_neither_value_nor_gradient_even_when_infinite() -> None:
    tensor = torch.tensor([math.inf, 2.0, math.nan], requires_grad=True)
    mean = masked_mean(tensor, torch.tensor([0, 1, 0]))
    mean.backward()
    assert mean.item() == 2 and tensor.grad is not None
    assert tensor.grad.tolist() == [0, 1, 0]


def test_a_mask_that_broadcasts_counts_each_element_it_selects() -> None:
    assert masked_mean(VALUES, torch.tensor([True, False, True])).item() == (1 + 3 + 4 + 6) / 4


def test_dividing_by_0_is_refused() -> None:
    with pytest.raises(DataError, match="normalize_constant is 0"):
        masked_normalize(VALUES, MASK, 0.0)
