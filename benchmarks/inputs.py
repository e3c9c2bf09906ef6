"""What operations are timed with: inputs of a training step, and calls that do nothing but the operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer import ops
from gossamer.certify.exactness import Inputs, cotangents
from gossamer.certify.inputs import cast, inputs_of, moved
from gossamer.model.config import ModelConfig


def caller(operation: str, inputs: Inputs) -> Callable[[], dict[str, Tensor]]:
    """A call forward and backward: outputs by number and gradients by name, for fixed gradients of the outputs."""
    leaves = {
        name: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    wanted = {name: x for name, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    grads: list[Tensor] = []  # made once: a timing must not include it

    def call() -> dict[str, Tensor]:
        outputs = getattr(ops, operation)(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not grads:
            grads.extend(cotangents(outputs))
        found = torch.autograd.grad(outputs, list(wanted.values()), grads)
        result = {f"output {number}": out.detach() for number, out in enumerate(outputs)}
        return result | {f"gradient of {name}": grad for name, grad in zip(wanted, found, strict=True)}

    return call


def training_inputs(
    config: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Inputs]:
    """For each operation what a training step calls it with: `rows` documents of `length` tokens, and no state."""
    found = {}
    for name in ops.training_operations():
        found[name] = moved(cast(inputs_of(name, config, [length] * rows), dtype), device)
        found[name].pop("initial_state", None)
    return found


def forward_caller(operation: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """A call without gradients."""

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        outputs = getattr(ops, operation)(**inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call
