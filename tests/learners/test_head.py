"""Chunked log-probs, entropies and their gradients against torch's own, with and without what a head may have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from grpo_gsm8k.learners import head as head_module
from grpo_gsm8k.learners.head import Head, head_logprobs, head_loss_backward

N, H, V = 37, 6, 11
HEADS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "soft-capped": {"softcap": 2.0},
    "tempered": {"temperature": 0.6},
    "all": {"scale": 3.0, "softcap": 1.5, "temperature": 1.7},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_BYTES", {"cpu": 1})


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden_NH, weight_VH, bias_V = (torch.randn(shape, dtype=dtype) for shape in ((N, H), (V, H), (V,)))
    return hidden_NH, weight_VH, bias_V, torch.randint(V, (N,)), torch.randn(N, dtype=torch.float64)


def weighted(weights_N: torch.Tensor) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """A sum over tokens that is not linear in the log-probs."""
    return lambda logprobs_C, part: (weights_N[part] * (logprobs_C + 0.1 * logprobs_C**2)).sum()


@pytest.mark.parametrize("with_entropy", [False, True], ids=["", "entropy trained"])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_equal_those_of_all_logits_at_once(kind: str, with_entropy: bool) -> None:
    hidden_NH, weight_VH, bias_V, labels_N, weights_N = tensors()
    entropy_weights_N = weights_N.flip(0) * 0.5 if with_entropy else None
    loss = weighted(weights_N)
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden_NH, weight_VH, bias_V)]
    options = HEADS[kind]
    logits_NV = (leaves[0] @ leaves[1].T + leaves[2]) * options.get("scale", 1.0)
    if "softcap" in options:
        logits_NV = options["softcap"] * torch.tanh(logits_NV / options["softcap"])
    all_NV = (logits_NV / options.get("temperature", 1.0)).log_softmax(-1)
    wanted_N = all_NV.gather(1, labels_N[:, None])[:, 0]
    entropy_N = -(all_NV.exp() * all_NV).sum(-1)
    wanted = loss(wanted_N, slice(0, N)) + (0.0 if entropy_weights_N is None else (entropy_weights_N * entropy_N).sum())
    wanted.backward()

    for formed_in in ("backward", "forward"):
        grads = torch.zeros_like(weight_VH), torch.zeros_like(bias_V)
        head = Head(weight_VH, bias_V, **options, weight_grad_VH=grads[0], bias_grad_V=grads[1])
        hidden = hidden_NH.clone().requires_grad_()
        if formed_in == "backward":
            found_N, found_entropy_N = head_logprobs(hidden, labels_N, head, entropy=True)
            torch.testing.assert_close(found_N, wanted_N)
            total = loss(found_N, slice(0, N))
            if entropy_weights_N is not None:
                total = total + (entropy_weights_N * found_entropy_N).sum()
            total.backward()
            dhidden_NH = hidden.grad
        else:
            total, found_entropy_N, dhidden_NH = head_loss_backward(hidden, labels_N, head, loss, True, entropy_weights_N)
        torch.testing.assert_close(total, wanted)
        torch.testing.assert_close(found_entropy_N, entropy_N)
        for found, leaf in zip((dhidden_NH, *grads), leaves, strict=True):
            torch.testing.assert_close(found, leaf.grad)


def test_entropy_alone_can_be_trained() -> None:
    hidden_NH, weight_VH, _, labels_N, _ = tensors()
    leaf = hidden_NH.clone().requires_grad_()
    all_NV = (leaf @ weight_VH.T).log_softmax(-1)
    (-(all_NV.exp() * all_NV).sum()).backward()
    hidden = hidden_NH.clone().requires_grad_()
    _, entropy_N = head_logprobs(hidden, labels_N, Head(weight_VH), entropy=True)
    entropy_N.sum().backward()
    torch.testing.assert_close(hidden.grad, leaf.grad)


def test_bf16_head_gathers_its_gradient_in_float32() -> None:
    hidden_NH, weight_VH, _, labels_N, weights_N = tensors(torch.bfloat16)
    grad_VH = torch.zeros(V, H)
    head = Head(weight_VH, weight_grad_VH=grad_VH)
    total, entropy_N, dhidden_NH = head_loss_backward(
        hidden_NH, labels_N, head, lambda x_C, part: (weights_N[part] * x_C).sum()
    )
    assert (total.dtype, entropy_N, dhidden_NH.dtype) == (torch.float64, None, torch.bfloat16)
    leaf = weight_VH.double().requires_grad_()
    wanted_N = (hidden_NH.double() @ leaf.T).log_softmax(-1).gather(1, labels_N[:, None])[:, 0]
    (wanted_N * weights_N).sum().backward()
    torch.testing.assert_close(grad_VH.double(), leaf.grad, rtol=0.05, atol=0.1)


def test_certain_and_impossible_tokens_keep_their_log_probs() -> None:
    head = Head(torch.tensor([[200.0], [0.0], [-200.0]]))
    logprobs_N, entropy_N = head_logprobs(torch.ones(3, 1), torch.tensor([0, 1, 2]), head, entropy=True)
    assert logprobs_N.tolist() == [0.0, -200.0, -400.0]
    assert entropy_N.tolist() == [0.0, 0.0, 0.0]
