"""AdamW over named weights, with float32 master copies of those in half precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from grpo_gsm8k.errors import ModelError
from grpo_gsm8k.learners.options import AdamWOptions

HALF = (torch.float16, torch.bfloat16)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class MasterAdamW:
    """Steps the parameters it is given. `weights` are what it really steps, by name: a parameter, or its float32 master.

    Gradients of half-precision parameters are added up in float32 on their masters, as soon as autograd has made them.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], options: AdamWOptions) -> None:
        self.parameters = dict(parameters)
        self.weights: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            if parameter.dtype in HALF:
                self.weights[name] = parameter.detach().float()
                parameter.register_post_accumulate_grad_hook(self._move_gradient(name))  # type: ignore[no-untyped-call]
            else:
                self.weights[name] = parameter
        self._by_parameter = {id(parameter): self.weights[name] for name, parameter in self.parameters.items()}
        matrices = [weight for weight in self.weights.values() if weight.dim() >= 2]
        vectors = [weight for weight in self.weights.values() if weight.dim() < 2]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=options.betas, eps=options.eps, fused=True)

    @property
    def masters(self) -> dict[str, torch.Tensor]:
        """The float32 masters alone, by name."""
        return {name: weight for name, weight in self.weights.items() if weight is not self.parameters[name]}

    def set_masters(self, values: Mapping[str, torch.Tensor]) -> None:
        """Takes masters' values, by name, and rounds them into the parameters."""
        with torch.no_grad():
            for name, weight in self.masters.items():
                weight.copy_(values[name])
                self.parameters[name].copy_(weight)

    def gradient_of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """Returns where the gradient of `parameter` is added up (zeros if there is none yet), or None if it is not trained."""
        weight = self._by_parameter.get(id(parameter))
        if weight is None:
            return None
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad

    def gradient_norm(self) -> float:
        """Returns the 2-norm of all gathered gradients together; NaN when none was gathered."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item() if gradients else math.nan

    def scale_gradients(self, factor: float) -> None:
        """Multiplies all gathered gradients by `factor`."""
        torch._foreach_mul_([weight.grad for weight in self.weights.values() if weight.grad is not None], factor)

    def step(self, lr: float) -> None:
        """Takes one step at `lr` and clears the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self.clear()
        with torch.no_grad():
            for name, weight in self.masters.items():
                self.parameters[name].copy_(weight)

    def clear(self) -> None:
        """Drops all gathered gradients."""
        for name, weight in self.weights.items():
            weight.grad = None
            self.parameters[name].grad = None

    def moments(self) -> dict[str, torch.Tensor]:
        """Returns the optimiser's state as tensors named `<moment>.<weight>`; none before the first step."""
        state = self._adamw.state
        return {
            f"{moment}.{name}": state[weight][moment]
            for name, weight in self.weights.items()
            if weight in state
            for moment in MOMENTS
        }

    def set_moments(self, values: Mapping[str, torch.Tensor]) -> None:
        """Takes the state that `moments` returned. Raises: ModelError when it is of other weights."""
        known = {f"{moment}.{name}" for name in self.weights for moment in MOMENTS}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ModelError(f"the optimiser state is of a model with other weights ({unknown[0]} is not trained here)")
        self._adamw.state.clear()
        for name, weight in self.weights.items():
            if f"step.{name}" in values:
                self._adamw.state[weight] = {moment: values[f"{moment}.{name}"].to(weight.device) for moment in MOMENTS}
        self.clear()

    def _move_gradient(self, name: str) -> Callable[[torch.Tensor], None]:
        def move(parameter: torch.Tensor) -> None:
            weight = self.weights[name]
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
                parameter.grad = None

        return move
