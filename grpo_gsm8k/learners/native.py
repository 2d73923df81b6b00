"""The native learner: a Hugging Face causal language model trained by AdamW in plain PyTorch.

Shapes: B sequences, T positions, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from grpo_gsm8k.errors import ModelError, ProofError
from grpo_gsm8k.learners.protocol import Loss
from grpo_gsm8k.tokenize import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class AdamWOptions:
    """AdamW without the learning rate, which each step is given. `weight_decay` is decoupled and applies to matrices only."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0


class NativeLearner:
    """Trains `model` in place, on the device and in the precision it came in."""

    def __init__(self, model: PreTrainedModel, optimizer: AdamWOptions = AdamWOptions()) -> None:
        self.model = model.train()
        matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps)
        self._num_steps = 0

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> Mapping[str, float]:
        """Adds the gradient of `loss` on `batch`; returns `loss` and `num_trained` (response tokens)."""
        if batch.num_trained == 0:
            raise ProofError("the batch trains no token; every batch needs at least one response token")
        response_mask_BT = batch.response_mask_BT.to(self.model.device)
        value = loss(self._logprobs(batch, response_mask_BT), response_mask_BT)
        if not math.isfinite(value.item()):
            raise ProofError(f"the loss is {value.item()} at step {self._num_steps}; no gradient was added")
        torch.autograd.backward(value)
        return {"loss": value.item(), "num_trained": float(batch.num_trained)}

    def optim_step(self, lr: float) -> Mapping[str, float]:
        """Takes one AdamW step at `lr`; returns `lr` and `grad_norm` (over all trained weights, before the step)."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not gradients:
            raise ProofError("optim_step without a gradient; call forward_backward first")
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm):
            raise ProofError(f"the gradient norm is {norm} at step {self._num_steps}; the weights were not changed")
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._num_steps += 1
        return {"lr": lr, "grad_norm": norm}

    def save_state(self, path: Path) -> None:
        """Writes weights, optimiser state and step count to `path`/learner.pt."""
        path.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "num_steps": self._num_steps}
        torch.save(state, path / "learner.pt")

    def load_state(self, path: Path) -> None:
        """Takes up the state that `save_state` wrote to `path`; a gradient gathered before is dropped.

        Raises: ModelError when there is none, or when it is of a model with other weights.
        """
        file = path / "learner.pt"
        if not file.is_file():
            raise ModelError(f"no learner state at {file}; give a folder that save_state wrote")
        state = torch.load(file, map_location=self.model.device, weights_only=True)
        shapes = {name: tuple(weight.shape) for name, weight in self.model.state_dict().items()}
        if shapes != {name: tuple(weight.shape) for name, weight in state["model"].items()}:
            raise ModelError(f"{file} is of a model with other weights; load it into the model that it was saved from")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._optimizer.zero_grad(set_to_none=True)
        self._num_steps = state["num_steps"]

    def publish_weights(self, path: Path) -> int:
        """Writes config, generation config and safetensors to `path`; returns the number of optimiser steps taken."""
        self.model.save_pretrained(path)
        return self._num_steps

    def _logprobs(self, batch: TokenBatch, response_mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns the log-probs (B, T) of the labels, in fp32 or better; 0 where the label is no response token."""
        device = response_mask_BT.device
        output = self.model(
            input_ids=batch.input_ids_BT.to(device), attention_mask=batch.attention_mask_BT.to(device), use_cache=False
        )
        logits_NV = output.logits[response_mask_BT]
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        labels_N = batch.labels_BT.to(device)[response_mask_BT]
        logprobs_N = -F.cross_entropy(logits_NV, labels_N, reduction="none")
        return logprobs_N.new_zeros(response_mask_BT.shape).masked_scatter(response_mask_BT, logprobs_N)
