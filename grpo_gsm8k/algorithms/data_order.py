"""Which examples a step trains on: a function of (seed, step) alone, so that the data cursor of a resumed run is its step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def batch_indices(num_examples: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Returns the examples of optimiser step `step` (counted from 0).

    The data are passed over again and again, each time in an order drawn from (seed, epoch); a batch that reaches the
    end of one pass goes on with the next, so that every example is seen once in each pass and no step is short.
    """
    first = step * batch_size
    return [
        int(_epoch_order(num_examples, position // num_examples, seed)[position % num_examples])
        for position in range(first, first + batch_size)
    ]


def num_steps(num_examples: int, batch_size: int, num_epochs: int) -> int:
    """Returns how many optimiser steps see every example `num_epochs` times (the last may begin another pass)."""
    return -(-num_examples * num_epochs // batch_size)


@lru_cache(maxsize=4)
def _epoch_order(num_examples: int, epoch: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)
