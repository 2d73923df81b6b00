"""Log-probs and entropy, against values worked out by hand, torch.distributions and the tiny model read token by token."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from grpo_gsm8k.algorithms.logprobs import compute_entropy, get_response_log_probs
from grpo_gsm8k.engines.loading import load_model, load_tokenizer
from grpo_gsm8k.errors import DataError
from grpo_gsm8k.tokenize import tokenize_prompt_and_output


def test_entropy_is_in_nats_as_worked_out_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0]])
    assert compute_entropy(logits).tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)
    halves = torch.tensor([0.5, 0.25, 0.25]).log()
    assert compute_entropy(halves).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_entropy_and_its_gradient_agree_with_torch_distributions() -> None:
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    entropy, oracle = compute_entropy(ours), torch.distributions.Categorical(logits=theirs).entropy()
    torch.testing.assert_close(entropy, oracle, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(entropy.sum(), ours)
    (expected,) = torch.autograd.grad(oracle.sum(), theirs)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_entropy_stays_finite_for_huge_logits_and_for_tokens_that_cannot_come() -> None:
    logits = torch.tensor([1e30, 1e30, -math.inf], requires_grad=True)
    entropy = compute_entropy(logits)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2), rel=1e-6) and logits.grad is not None
    assert logits.grad.isfinite().all()
    assert compute_entropy(torch.tensor([0.0, 0.0], dtype=torch.bfloat16)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_log_probs_are_those_of_the_labels_as_worked_out_by_hand() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]).log()
    ids, labels = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])
    found = get_response_log_probs(lambda input_ids: SimpleNamespace(logits=logits), ids, labels, return_token_entropy=True)
    assert found["log_probs"].exp().tolist() == [pytest.approx([0.25, 0.7])]
    first, second = 1.5 * math.log(2), -(0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.7 * math.log(0.7))
    assert found["token_entropy"].tolist() == [pytest.approx([first, second], rel=1e-6)]


def test_a_padded_batch_gives_what_each_sequence_gives_alone_token_by_token() -> None:
    model, tokenizer = load_model("tiny", device="cpu"), load_tokenizer("tiny")
    prompts, outputs = ["How many cups?", "Ada has 3 pens."], ["3 + 4 = 7.\n#### 7", "No."]
    batch = tokenize_prompt_and_output(prompts, outputs, tokenizer, append_eos=True)
    found = get_response_log_probs(model, batch["input_ids"], batch["labels"], return_token_entropy=True)
    assert found["log_probs"].requires_grad and not found["token_entropy"].requires_grad
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        ids = tokenizer(prompt)["input_ids"] + tokenizer(output)["input_ids"] + [tokenizer.eos_token_id]
        for at in range(1, len(ids)):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:at]])).logits[0, -1].double()
            probs = logits.softmax(-1)
            assert found["log_probs"][row, at - 1].item() == pytest.approx(probs[ids[at]].log().item(), abs=1e-4)
            assert found["token_entropy"][row, at - 1].item() == pytest.approx(-(probs * probs.log()).sum().item(), abs=1e-4)


def test_a_batch_padded_on_the_left_needs_its_attention_mask() -> None:
    model = load_model("tiny", device="cpu")
    alone = get_response_log_probs(model, torch.tensor([[5, 6, 7]]), torch.tensor([[6, 7, 8]]))["log_probs"]
    ids, labels = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    padded = get_response_log_probs(model, ids, labels, attention_mask=mask)["log_probs"]
    torch.testing.assert_close(padded[:, 2:], alone, atol=1e-5, rtol=1e-5)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(1, 3\) and \(1, 2\)"):
        get_response_log_probs(lambda ids: SimpleNamespace(logits=ids), torch.zeros(1, 3), torch.zeros(1, 2))
