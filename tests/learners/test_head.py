"""Chunked log-probs and entropies against torch's own, with and without what a head may have."""

from __future__ import annotations

import pytest
import torch

from grpo_gsm8k.learners import head as head_module
from grpo_gsm8k.learners.head import Head, head_logprobs, head_logprobs_backward

N, H, V = 37, 6, 11
HEADS = {"plain": {}, "scaled": {"scale": 0.3}, "soft-capped": {"softcap": 2.0}, "both": {"scale": 3.0, "softcap": 1.5}}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_BYTES", {"cpu": 1})


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden_NH, weight_VH, bias_V = (torch.randn(shape, dtype=dtype) for shape in ((N, H), (V, H), (V,)))
    return hidden_NH, weight_VH, bias_V, torch.randint(V, (N,)), torch.randn(N, dtype=torch.float64)


@pytest.mark.parametrize("kind", HEADS)
def test_log_probs_entropies_and_gradients_equal_those_of_all_logits_at_once(kind: str) -> None:
    hidden_NH, weight_VH, bias_V, labels_N, weights_N = tensors()
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden_NH, weight_VH, bias_V)]
    logits_NV = (leaves[0] @ leaves[1].T + leaves[2]) * HEADS[kind].get("scale", 1.0)
    if "softcap" in HEADS[kind]:
        logits_NV = HEADS[kind]["softcap"] * torch.tanh(logits_NV / HEADS[kind]["softcap"])
    all_NV = logits_NV.log_softmax(-1)
    wanted_N = all_NV.gather(1, labels_N[:, None])[:, 0]
    (wanted_N * weights_N).sum().backward()
    entropy_N = -(all_NV.exp() * all_NV).sum(-1)

    for formed_in in ("backward", "forward"):
        grads = torch.zeros_like(weight_VH), torch.zeros_like(bias_V)
        head = Head(weight_VH, bias_V, **HEADS[kind], weight_grad_VH=grads[0], bias_grad_V=grads[1])
        hidden = hidden_NH.clone().requires_grad_()
        if formed_in == "backward":
            found_N, found_entropy_N = head_logprobs(hidden, labels_N, head, entropy=True)
            (found_N * weights_N).sum().backward()
            dhidden_NH = hidden.grad
        else:
            found_N, found_entropy_N, dhidden_NH = head_logprobs_backward(hidden, labels_N, head, weights_N, entropy=True)
        torch.testing.assert_close(found_N, wanted_N)
        torch.testing.assert_close(found_entropy_N, entropy_N)
        for found, leaf in zip((dhidden_NH, *grads), leaves, strict=True):
            torch.testing.assert_close(found, leaf.grad)


def test_bf16_head_gathers_its_gradient_in_float32() -> None:
    hidden_NH, weight_VH, _, labels_N, weights_N = tensors(torch.bfloat16)
    grad_VH = torch.zeros(V, H)
    head = Head(weight_VH, weight_grad_VH=grad_VH)
    logprobs_N, entropy_N, dhidden_NH = head_logprobs_backward(hidden_NH, labels_N, head, weights_N)
    assert (logprobs_N.dtype, entropy_N, dhidden_NH.dtype) == (torch.float32, None, torch.bfloat16)
    leaf = weight_VH.double().requires_grad_()
    wanted_N = (hidden_NH.double() @ leaf.T).log_softmax(-1).gather(1, labels_N[:, None])[:, 0]
    (wanted_N * weights_N).sum().backward()
    torch.testing.assert_close(grad_VH.double(), leaf.grad, rtol=0.05, atol=0.1)


def test_certain_and_impossible_tokens_keep_their_log_probs() -> None:
    head = Head(torch.tensor([[200.0], [0.0], [-200.0]]))
    logprobs_N, _ = head_logprobs(torch.ones(3, 1), torch.tensor([0, 1, 2]), head)
    assert logprobs_N.tolist() == [0.0, -200.0, -400.0]
