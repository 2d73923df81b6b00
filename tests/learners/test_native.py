"""The native learner against references made by hand: gradients, the AdamW step, state, published weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from grpo_gsm8k.algorithms.sft_loss import SftLoss
from grpo_gsm8k.errors import ModelError, ProofError
from grpo_gsm8k.learners.native import AdamWOptions, NativeLearner
from grpo_gsm8k.learners.protocol import Learner
from grpo_gsm8k.tokenize import TokenBatch, pad_and_shift

PROMPTS = [[5, 6, 7], [8], [9, 3, 4, 11, 12]]
RESPONSES = [[10, 2], [13, 14, 15, 16, 2], [2]]
NUM_TRAINED = 8


def small_model(dtype: torch.dtype = torch.float64, hidden_size: int = 16) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def batch_of(*rows: int) -> TokenBatch:
    return pad_and_shift([PROMPTS[i] for i in rows], [RESPONSES[i] for i in rows], pad_token_id=0)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_step(learner: Learner, lr: float = 1e-2) -> None:
    learner.forward_backward(batch_of(0, 1, 2), SftLoss(NUM_TRAINED))
    learner.optim_step(lr)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_gradient_equals_that_of_the_sequences_taken_one_by_one_without_padding() -> None:
    reference = small_model()
    total = torch.zeros((), dtype=torch.float64)
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logprobs_TV = reference(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        for place, token in enumerate(response):
            total = total - logprobs_TV[len(prompt) + place - 1, token]
    (total / NUM_TRAINED).backward()

    learner = NativeLearner(small_model())
    metrics = learner.forward_backward(batch_of(0, 1, 2), SftLoss(NUM_TRAINED))

    assert metrics == {"loss": pytest.approx(total.item() / NUM_TRAINED, rel=1e-6), "num_trained": 8.0}
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(learner.model)[name], gradient, rtol=1e-6, atol=1e-9)


def test_micro_batches_of_a_step_add_up_to_the_gradient_of_the_whole() -> None:
    whole, split = NativeLearner(small_model()), NativeLearner(small_model())
    loss = whole.forward_backward(batch_of(0, 1, 2), SftLoss(NUM_TRAINED))["loss"]
    parts = [split.forward_backward(batch_of(*rows), SftLoss(NUM_TRAINED))["loss"] for rows in ((2,), (0, 1))]
    assert sum(parts) == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients(whole.model).items():
        torch.testing.assert_close(gradients(split.model)[name], gradient, rtol=1e-6, atol=1e-9)


def test_first_step_moves_each_weight_as_adamw_does_by_hand_and_decays_matrices_only() -> None:
    learner = NativeLearner(small_model(), AdamWOptions(weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learner.forward_backward(batch_of(0, 1, 2), SftLoss(NUM_TRAINED))
    gradient = gradients(learner.model)
    metrics = learner.optim_step(0.01)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    assert metrics == {"lr": 0.01, "grad_norm": pytest.approx(norm, rel=1e-9)}
    for name, p in learner.model.named_parameters():
        decayed = before[name] * (1 - 0.01 * 0.5) if p.dim() >= 2 else before[name]
        g = gradient[name]  # after one step Adam's corrected moments are g and g²
        torch.testing.assert_close(p.detach(), decayed - 0.01 * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-12)


def test_gradient_is_cleared_by_a_step_so_that_the_next_step_needs_a_new_one() -> None:
    learner = NativeLearner(small_model())
    one_step(learner)
    with pytest.raises(ProofError, match="without a gradient"):
        learner.optim_step(0.01)


def test_training_goes_on_from_a_saved_state_exactly_as_if_never_stopped(tmp_path: Path) -> None:
    unbroken = NativeLearner(small_model(torch.float32))
    one_step(unbroken)
    unbroken.save_state(tmp_path / "state")
    one_step(unbroken, lr=5e-3)

    resumed = NativeLearner(small_model(torch.float32))
    one_step(resumed, lr=1.0)  # anything that the loaded state must replace
    resumed.load_state(tmp_path / "state")
    one_step(resumed, lr=5e-3)

    assert_same_weights(unbroken.model, resumed.model)
    assert resumed.publish_weights(tmp_path / "weights") == 2


def test_state_of_another_model_and_a_missing_state_are_refused(tmp_path: Path) -> None:
    NativeLearner(small_model(hidden_size=32)).save_state(tmp_path)
    learner = NativeLearner(small_model())
    with pytest.raises(ModelError, match="other weights"):
        learner.load_state(tmp_path)
    with pytest.raises(ModelError, match="no learner state"):
        learner.load_state(tmp_path / "nowhere")


def test_published_weights_are_the_trained_ones_and_count_the_steps(tmp_path: Path) -> None:
    learner = NativeLearner(small_model(torch.float32))
    assert learner.publish_weights(tmp_path / "before") == 0
    one_step(learner)
    assert learner.publish_weights(tmp_path / "after") == 1
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "after"), learner.model)


def test_loss_that_is_not_finite_stops_and_adds_no_gradient() -> None:
    learner = NativeLearner(small_model())
    with torch.no_grad():
        learner.model.get_input_embeddings().weight[7] = math.nan
    with pytest.raises(ProofError, match="loss is nan at step 0"):
        learner.forward_backward(batch_of(0), SftLoss(NUM_TRAINED))
    assert not gradients(learner.model)


def test_gradient_that_is_not_finite_stops_and_leaves_the_weights() -> None:
    learner, untouched = NativeLearner(small_model()), small_model()
    learner.forward_backward(batch_of(0, 1, 2), SftLoss(NUM_TRAINED))
    gradient = learner.model.get_input_embeddings().weight.grad
    assert gradient is not None
    gradient[0, 0] = math.inf
    with pytest.raises(ProofError, match="gradient norm is inf"):
        learner.optim_step(0.01)
    assert_same_weights(learner.model, untouched)
