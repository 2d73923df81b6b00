"""The native learner: a Hugging Face causal language model trained by AdamW in plain PyTorch.

The forward pass is packed (no padding is computed, and a prompt that sequences share only once) and log-probs are computed at
trained positions only, a chunk of the vocabulary projection at a time. The model's own dropout is off, so that a step is a
function of its sequences alone.
Shapes: T input tokens of a micro-batch laid end to end, N trained tokens, H hidden width.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_gsm8k.algorithms.packing import PackedBatch, num_inputs, pack, plan_microbatches, untrained_prefixes
from grpo_gsm8k.engines.loading import context_window, load_model
from grpo_gsm8k.errors import DataError, EnvironmentFailure, ModelError, ProofError
from grpo_gsm8k.learners import state
from grpo_gsm8k.learners.head import Head, head_logprobs, head_loss_backward, head_of
from grpo_gsm8k.learners.optimizer import HALF, MasterAdamW
from grpo_gsm8k.learners.options import LearnerOptions
from grpo_gsm8k.learners.probe import embedding_of, packed_hidden, use_packed_attention
from grpo_gsm8k.learners.protocol import Loss, NotFiniteError
from grpo_gsm8k.tokenize import TokenSequence

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


AS_IT_CAME, FLOAT32 = LearnerOptions(), LearnerOptions(dtype="float32")


@dataclass(slots=True)
class _Sums:
    """What the micro-batches of one `forward_backward` add up to."""

    loss: float = 0.0
    entropy: float | None = None
    num_trained: int = 0
    num_tokens: int = 0
    num_microbatches: int = 0


class NativeLearner:
    """Trains `model` in place, on the device it is on."""

    def __init__(self, model: PreTrainedModel, options: LearnerOptions = AS_IT_CAME) -> None:
        """Raises: ModelError when the model cannot be trained packed, or a LoRA target matches nothing."""
        self.options = options
        self.model = model
        model.train(False)
        use_packed_attention(model)
        if options.dtype == "float32":
            _cast(model, torch.float32)
        self._adapted = self._add_adapter()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        full = {name: parameter.detach().clone() for name, parameter in trained.items()} if options.dtype == "bfloat16" else {}
        if options.dtype == "bfloat16":
            _cast(model, torch.bfloat16, but=() if self._adapted is None else tuple(trained))
        self._optimizer = MasterAdamW(trained, options.adamw)
        self._optimizer.set_masters(full)
        self._reference = copy.deepcopy(model).requires_grad_(False) if options.keep_reference and not options.lora else None
        self._set_modes()
        self._head = replace(head_of(model), temperature=options.temperature)
        self._embedding = embedding_of(model)
        self._num_tokens = min(self._embedding.num_embeddings, self._head.weight_VH.shape[0])
        # On a CPU, rows are added to the gradient; a dense one would be made and added for every micro-batch.
        self._embedding.sparse = model.device.type == "cpu" and self._embedding.weight.dtype not in HALF
        self._shares = options.share_prefixes and model.device.type == "cpu"  # a CUDA kernel for it is not written
        self._context_window = context_window(model)
        self._gathered: list[tuple[PackedBatch, Loss]] = []
        self._num_steps = 0

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        options: LearnerOptions = FLOAT32,
        *,
        revision: str | None = None,
        device: str = "auto",
    ) -> NativeLearner:
        """Returns the learner of a model folder, a hub id or `tiny`; its master weights are read in float32.

        Raises: ModelError, HubError; EngineError when the device is not there; EnvironmentFailure when memory runs out.
        """
        with _memory_named(options):
            return cls(load_model(model_id, revision, device=device, dtype="float32"), options)

    def forward_backward(self, sequences: Sequence[TokenSequence], loss: Loss) -> Mapping[str, float]:
        """Adds the gradient of `loss` on all `sequences`; see `Learner`. `entropy` (mean, nats) is a metric if asked for."""
        if not sequences:
            raise ProofError("the step has no sequence; it needs at least one")
        sums = _Sums()
        try:
            with _memory_named(self.options):
                for _, batch in self._microbatches(sequences):
                    self._add_gradient(batch, loss, sums)
        except BaseException:
            self._drop()
            raise
        metrics = {"loss": sums.loss, "num_trained": float(sums.num_trained)}
        metrics |= {"num_tokens": float(sums.num_tokens), "num_microbatches": float(sums.num_microbatches)}
        return metrics | ({} if sums.entropy is None else {"entropy": sums.entropy / sums.num_trained})

    @torch.no_grad()
    def logprobs(
        self,
        sequences: Sequence[TokenSequence],
        *,
        reference: bool = False,
        temperature: float | None = None,
        dtype: str | None = None,
    ) -> list[tuple[float, ...]]:
        """Returns the log-probs of each sequence's trained tokens, in order; see `Learner`."""
        found: list[tuple[float, ...]] = [()] * len(sequences)
        with _memory_named(self.options), self._weights(reference) as (model, head):
            if dtype is not None:
                model = copy.deepcopy(model)
                _cast(model, getattr(torch, dtype))
                head = replace(head_of(model), temperature=head.temperature)
            if temperature is not None:
                head = replace(head, temperature=temperature)
            for indices, batch in self._microbatches(sequences):
                hidden_TH = packed_hidden(model, batch.input_ids_T, batch.position_ids_T, batch.lengths, batch.continues)
                logprobs_N, _ = head_logprobs(hidden_TH[batch.trained_at_N], batch.labels_N, head)
                values = logprobs_N.tolist()
                start = 0
                for index in indices:
                    found[index] = tuple(values[start : start + sequences[index].num_trained])
                    start += len(found[index])
        return found

    def optim_step(self, lr: float) -> Mapping[str, float]:
        """Takes one AdamW step at `lr`; returns `lr`, and the gradient's norm before and after clipping."""
        if not self._gathered:
            raise ProofError("optim_step without a gradient; call forward_backward first")
        norm = self._optimizer.gradient_norm()
        if not math.isfinite(norm):
            culprits = self._not_finite()
            self._drop()
            raise NotFiniteError(f"the gradient norm is {norm} at step {self._num_steps}", culprits)
        limit = self.options.max_grad_norm
        clipped = norm
        if limit is not None and norm > limit:
            self._optimizer.scale_gradients(limit / norm)
            clipped = limit
        with _memory_named(self.options):
            self._optimizer.step(lr)
        self._gathered.clear()
        self._num_steps += 1
        return {"lr": lr, "grad_norm": norm, "grad_norm_clipped": clipped}

    def save_state(self, path: Path) -> None:
        """Writes weights (or adapter), optimiser state and step count into `path`; see `grpo_gsm8k.learners.state`."""
        state.write_state(path, self.model, self._adapted, self._optimizer, self._num_steps)

    def load_state(self, path: Path) -> None:
        """Takes up the state that `save_state` wrote to `path`; a gradient gathered before is dropped.

        Raises: ModelError when there is none, or when it is of a model with other weights.
        """
        self._drop()
        self._num_steps = state.read_state(path, self.model, self._adapted, self._optimizer)

    def publish_weights(self, path: Path) -> int:
        """Writes config, generation config and full weights (an adapter merged in) to `path`; returns the steps taken."""
        merged = None
        if self._adapted is not None:
            from grpo_gsm8k.learners.lora import merged_state

            merged = merged_state(self._adapted)
        with state.written_to(path):
            self.model.save_pretrained(path, state_dict=merged)
        return self._num_steps

    def publish_adapter(self, path: Path) -> int:
        """Writes the adapter alone, as peft loads it, to `path`; returns the steps taken. Raises: ModelError without LoRA."""
        if self._adapted is None:
            raise ModelError("there is no adapter to publish; the learner was made without LoRA")
        with state.written_to(path):
            self._adapted.save_pretrained(path)
        return self._num_steps

    def weights_digest(self) -> str:
        """Returns the sha256 (hex) of what is trained (masters where there are any) and of the model's saved buffers."""
        tensors: dict[str, torch.Tensor] = dict(self._optimizer.weights)
        saved = self.model.state_dict()
        tensors |= {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def describe(self) -> Mapping[str, Any]:
        """Returns what is trained and how, for the run's record."""
        weights = self._optimizer.weights.values()
        return {
            "model": type(self.model).__name__,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "num_trained_parameters": sum(weight.numel() for weight in weights),
            "master_weights": bool(self._optimizer.masters),
            "lora": self._adapted is not None,
            "share_prefixes": self._shares
            or ("off" if self.model.device.type == "cpu" else "off: only a CPU's attention shares"),
        }

    def _add_adapter(self) -> PeftModel | None:
        if self.options.lora is None:
            return None
        from grpo_gsm8k.learners.lora import add_adapter

        return add_adapter(self.model, self.options.lora)

    def _set_modes(self) -> None:
        """Evaluation mode (no dropout) but for what works in training mode only: the adapter's dropout, checkpointed layers."""
        self.model.train(False)
        self._set_dropout(True)
        if self.options.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not layers:
                raise ModelError(
                    f"{type(self.model).__name__} has no layers to checkpoint; train it without gradient_checkpointing"
                )
            for layer in layers:
                layer.training = True

    def _set_dropout(self, on: bool) -> None:
        """Switches the adapter's dropout."""
        for name, module in self.model.named_modules():
            if ".lora_dropout." in name:
                module.train(on)

    @contextmanager
    def _weights(self, reference: bool) -> Iterator[tuple[PreTrainedModel, Head]]:
        """The model, without the adapter's dropout, and its head: as they are, or as the learner was made with."""
        if not reference:
            self._set_dropout(False)
            try:
                yield self.model, self._head
            finally:
                self._set_dropout(True)
        elif self._adapted is not None:
            with self._adapted.disable_adapter():
                yield self.model, self._head
        elif self._reference is not None:
            yield self._reference, replace(head_of(self._reference), temperature=self.options.temperature)
        else:
            raise ModelError("the learner kept no reference weights; make it with keep_reference")

    def _microbatches(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[list[int], PackedBatch]]:
        """Yields the micro-batches on the device, and which sequences are in each."""
        lengths = [num_inputs(sequence) for sequence in sequences]
        self._check_lengths(sequences, lengths)
        prefixes = untrained_prefixes(sequences) if self._shares else None
        for indices in plan_microbatches(lengths, self.options.tokens_per_microbatch, prefixes):
            batch = pack(sequences, indices, share_prefixes=self._shares)
            self._check_vocabulary(batch, sequences)
            yield indices, batch.to(self.model.device)

    def _check_lengths(self, sequences: Sequence[TokenSequence], lengths: Sequence[int]) -> None:
        window = self._context_window
        for sequence, length in zip(sequences, lengths, strict=True):
            if window is not None and length > window:
                raise DataError(f"sequence {sequence.id!r} has {length} tokens; the model takes {window} at most")

    def _check_vocabulary(self, batch: PackedBatch, sequences: Sequence[TokenSequence]) -> None:
        lowest = min(int(batch.input_ids_T.min()), int(batch.labels_N.min()))
        highest = max(int(batch.input_ids_T.max()), int(batch.labels_N.max()))
        if lowest >= 0 and highest < self._num_tokens:
            return
        for sequence in sequences:
            for token in sequence.token_ids:
                if not 0 <= token < self._num_tokens:
                    raise ModelError(
                        f"sequence {sequence.id!r} has token {token}, but the model's tokens are 0 to {self._num_tokens - 1}; "
                        "use the model's own tokenizer"
                    )

    def _add_gradient(self, batch: PackedBatch, loss: Loss, sums: _Sums) -> None:
        self._optimizer.gradient_of(self._embedding.weight)  # rows are added to what is there, and stay rows where nothing is
        weight_grad = self._optimizer.gradient_of(self._head.weight_VH)
        bias_grad = None if self._head.bias_V is None else self._optimizer.gradient_of(self._head.bias_V)
        head = replace(self._head, weight_grad_VH=weight_grad, bias_grad_V=bias_grad)
        hidden_TH = packed_hidden(self.model, batch.input_ids_T, batch.position_ids_T, batch.lengths, batch.continues)
        hidden_NH = hidden_TH.index_select(0, batch.trained_at_N)
        entropy_weights_N = loss.entropy_weights(batch)
        if loss.separable:
            total, entropy_N, dhidden_NH = head_loss_backward(
                hidden_NH,
                batch.labels_N,
                head,
                lambda logprobs_C, part: loss(logprobs_C, batch.tokens(part)),
                self.options.entropy,
                entropy_weights_N,
            )
            value = self._finite(total, batch)
            torch.autograd.backward(hidden_NH, dhidden_NH)
        else:
            entropy = self.options.entropy or entropy_weights_N is not None
            logprobs_N, entropy_N = head_logprobs(hidden_NH, batch.labels_N, head, entropy)
            total = loss(logprobs_N.double(), batch)
            if entropy_weights_N is not None:
                assert entropy_N is not None
                total = total + (entropy_weights_N * entropy_N).sum(dtype=torch.float64)
            value = self._finite(total, batch)
            torch.autograd.backward(total)
        self._gathered.append((batch, loss))
        sums.loss += value
        if entropy_N is not None:
            sums.entropy = (sums.entropy or 0.0) + entropy_N.detach().double().sum().item()
        sums.num_trained += batch.num_trained
        sums.num_tokens += len(batch.input_ids_T)
        sums.num_microbatches += 1

    def _finite(self, loss: torch.Tensor, batch: PackedBatch) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss is {value} at step {self._num_steps}", batch.sequence_ids)
        return value

    def _not_finite(self) -> list[str]:
        """Returns the ids of the micro-batches whose gradient alone is not finite, or of all where only their sum is not."""
        found: list[str] = []
        gathered = list(self._gathered)
        for batch, loss in gathered:
            self._optimizer.clear()
            self._add_gradient(batch, loss, _Sums())
            if not math.isfinite(self._optimizer.gradient_norm()):
                found += batch.sequence_ids
        return found or [id for batch, _ in gathered for id in batch.sequence_ids]

    def _drop(self) -> None:
        self._optimizer.clear()
        self._gathered.clear()


def _cast(model: PreTrainedModel, dtype: torch.dtype, but: Sequence[str] = ()) -> None:
    """Casts parameters only: buffers such as rotary frequencies lose too much in half precision."""
    for name, parameter in model.named_parameters():
        if name not in but:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


@contextmanager
def _memory_named(options: LearnerOptions) -> Iterator[None]:
    """Turns running out of memory into one line that names the options which save some."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        other = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if other and "allocate memory" not in str(error):  # torch's CPU allocator has no class of its own
            raise
        checkpointing = "gradient_checkpointing is on" if options.gradient_checkpointing else "set gradient_checkpointing"
        adapters = "a lower lora_rank" if options.lora else "lora_rank instead of full weights"
        raise EnvironmentFailure(
            f"memory ran out in training: lower tokens_per_microbatch (now {options.tokens_per_microbatch}); "
            f"{checkpointing}; use {adapters}; or dtype bfloat16"
        ) from error
