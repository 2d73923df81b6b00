"""Low-rank adapters, by peft: put on, saved, and merged into a copy of the weights for engines that only take full ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedModel

from grpo_gsm8k.errors import ModelError
from grpo_gsm8k.learners.options import ALL_LINEAR, LoraOptions

ADAPTER = "default"


def add_adapter(model: PreTrainedModel, options: LoraOptions) -> PeftModel:
    """Returns the model with a trainable adapter put onto its modules (in place); everything else is frozen.

    Raises: ModelError when a target matches no module, or is the head or the embeddings.
    """
    targets = options.target_modules
    if targets != (ALL_LINEAR,):
        _check_targets(model, targets)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=ALL_LINEAR if targets == (ALL_LINEAR,) else list(targets),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if not any(isinstance(module, LoraLayer) for module in adapted.modules()):
        raise ModelError(f"LoRA target {ALL_LINEAR} matches no module of {type(model).__name__}; name its modules")
    return adapted


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) or _is_conv1d(module)]
    outer = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    refused = {name for name, module in model.named_modules() if any(module is other for other in outer)}
    allowed = sorted({name.rsplit(".", 1)[-1] for name in linear if name not in refused})
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in refused):
            raise ModelError(
                f"LoRA target {target!r} is the head or the embeddings, which are not adapted; allowed: {', '.join(allowed)}"
            )
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise ModelError(f"LoRA target {target!r} matches no module; the modules are {', '.join(allowed)}, or {ALL_LINEAR}")


def _is_conv1d(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def merged_state(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """Returns the state dict of the plain model with the adapter added in; the model itself is not touched."""
    inner = adapted.get_base_model()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in inner.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = tensor
    with torch.no_grad():
        for name, module in inner.named_modules():
            if isinstance(module, LoraLayer):
                weight = state[f"{name}.weight"]
                delta = module.get_delta_weight(ADAPTER)
                dtype = torch.promote_types(weight.dtype, torch.float32)
                state[f"{name}.weight"] = (weight.to(dtype) + delta.to(dtype)).to(weight.dtype)
    return state


def load_adapter(adapted: PeftModel, path: Path) -> None:
    """Takes the adapter's weights from a folder that peft wrote. Raises: ModelError when it is of another adapter."""
    values: dict[str, Any] = load_peft_weights(str(path), device="cpu")
    own = {name: tuple(weight.shape) for name, weight in adapted.state_dict().items() if ".lora_" in name}
    given = {name.replace(".weight", f".{ADAPTER}.weight"): tuple(value.shape) for name, value in values.items()}
    if own != given:
        raise ModelError(
            f"{path} is another adapter (rank, modules or model differ); load it into the learner that it was saved from"
        )
    set_peft_model_state_dict(adapted, values, adapter_name=ADAPTER)
