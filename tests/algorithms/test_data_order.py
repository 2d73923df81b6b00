"""The data order is a function of (seed, step)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.algorithms.data_order import batch_indices, num_steps


@given(st.integers(1, 40), st.integers(1, 15), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_every_pass_sees_every_example_once(num_examples: int, batch_size: int, epochs: int, seed: int) -> None:
    steps = num_steps(num_examples, batch_size, epochs)
    stream = [index for step in range(steps) for index in batch_indices(num_examples, batch_size, step, seed)]
    assert len(stream) == steps * batch_size
    assert 0 <= len(stream) - num_examples * epochs < batch_size
    for epoch in range(epochs):
        assert sorted(stream[epoch * num_examples : (epoch + 1) * num_examples]) == list(range(num_examples))


def test_the_order_depends_on_seed_and_pass_and_on_nothing_else() -> None:
    first = batch_indices(100, 10, 3, 7)
    batch_indices(100, 10, 55, 7)
    assert batch_indices(100, 10, 3, 7) == first
    assert batch_indices(100, 10, 3, 8) != first
    assert batch_indices(100, 10, 13, 7) != first
