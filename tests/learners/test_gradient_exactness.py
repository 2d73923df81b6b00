"""Packed, chunked, split into micro-batches: the gradient is that of the plain padded way, on every architecture.

`pytest -s` prints the table of differences.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from architectures import CONFIGS, Whole, build, difference, gradients, padded_loss, sequences

from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.learners import head as head_module
from grpo_gsm8k.learners.native import NativeLearner
from grpo_gsm8k.learners.options import LearnerOptions

# transformers computes norms in float32 even in a float64 model, so two orders of the same sums may differ by 1e-8.
FLOAT64_LIMIT = 1e-6
FLOAT32_LIMIT = 2e-5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the projection of these few tokens is really chunked."""
    monkeypatch.setattr(head_module, "CHUNK_BYTES", {"cpu": 1})


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\n\n| architecture | precision | micro-batches | gradient formed | relative difference |\n|---|---|---|---|---|")
    print("\n".join(rows))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("separable", [True, False], ids=["in the forward", "by recomputing"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_gradient_equals_that_of_the_padded_batch(
    name: str, separable: bool, dtype: torch.dtype, table: list[str]
) -> None:
    reference = build(name, dtype)
    examples = sequences()
    wanted_loss = padded_loss(reference, examples)
    wanted_loss.backward()
    sft = SftLoss(sum(example.num_trained for example in examples))
    for budget in (8192, 30):
        options = LearnerOptions(tokens_per_microbatch=budget)
        learner = NativeLearner(build(name, dtype), options)
        metrics = learner.forward_backward(examples, sft if separable else Whole(sft))
        worst = difference(gradients(learner.model), gradients(reference))
        how = "forward" if separable else "backward"
        table.append(f"| {name} | {str(dtype)[6:]} | {metrics['num_microbatches']:.0f} | {how} | {worst:.1e} |")
        assert metrics["loss"] == pytest.approx(wanted_loss.item(), rel=1e-6)
        assert worst < (FLOAT64_LIMIT if dtype == torch.float64 else FLOAT32_LIMIT)


@pytest.mark.parametrize("budget", [1, 9, 20, 33, 60])
def test_any_split_into_micro_batches_gives_the_gradient_of_one_big_batch(budget: int) -> None:
    examples = sequences()
    loss = SftLoss(sum(example.num_trained for example in examples))
    whole, split = (NativeLearner(build("qwen3"), LearnerOptions(tokens_per_microbatch=size)) for size in (8192, budget))
    one, many = whole.forward_backward(examples, loss), split.forward_backward(examples, loss)
    assert one["num_microbatches"] == 1 < many["num_microbatches"]
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-9)
    assert difference(gradients(split.model), gradients(whole.model)) < FLOAT64_LIMIT


def test_gradient_checkpointing_changes_no_bit() -> None:
    examples = sequences()
    loss = SftLoss(sum(example.num_trained for example in examples))
    plain, checkpointed = (
        NativeLearner(build("gemma3 text", torch.float32), LearnerOptions(gradient_checkpointing=on)) for on in (False, True)
    )
    plain.forward_backward(examples, loss)
    checkpointed.forward_backward(examples, loss)
    assert any(layer.training for layer in checkpointed.model.modules())
    for name, gradient in gradients(plain.model).items():
        assert torch.equal(gradient, gradients(checkpointed.model)[name]), name
