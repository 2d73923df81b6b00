"""Sums and means over the elements that a mask selects.

Shapes: `tensor` has any number of dimensions; `mask` has its shape or broadcasts to it. A mask is bool, or 0 and 1.
What the mask leaves out counts for nothing, be it infinite or NaN, and gets a gradient of exactly 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_gsm8k.errors import DataError

if TYPE_CHECKING:
    import torch


def masked_sum(tensor: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Returns the sum of the selected elements along `dim` (None: of all); 0 where none is selected."""
    kept = tensor.masked_fill(~mask.bool(), 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(tensor: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Returns the mean of the selected elements along `dim` (None: of all).

    It is NaN where none is selected: a mean of nothing is no number, and a 0 would hide it in a later average.
    Source: CS336 (Stanford), assignment 5, `masked_mean`.
    """
    counted = mask.bool().expand_as(tensor)
    return masked_sum(tensor, mask, dim) / (counted.sum() if dim is None else counted.sum(dim))


def masked_normalize(
    tensor: torch.Tensor, mask: torch.Tensor, normalize_constant: float, dim: int | None = None
) -> torch.Tensor:
    """Returns the sum of the selected elements along `dim` (None: of all), divided by `normalize_constant`.

    Raises: DataError (a ValueError) when the constant is 0.
    Source: CS336 (Stanford), assignment 5, `masked_normalize`; with a fixed constant, the loss of Dr. GRPO (arXiv 2503.20783).
    """
    if normalize_constant == 0:
        raise DataError("normalize_constant is 0; a sum is divided by a number other than 0")
    return masked_sum(tensor, mask, dim) / normalize_constant
