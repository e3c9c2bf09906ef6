"""What operations are called with when they are checked and timed: random inputs of a network's own shapes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gossamer import ops
from gossamer.model.config import ModelConfig

Inputs = dict[str, Any]


def inputs_of(operation: str, config: ModelConfig, lengths: list[int], device: torch.device) -> Inputs:
    """Random float64 inputs of the size's heads and widths, the documents of these lengths packed in one row."""
    generator = torch.Generator().manual_seed(0)
    tokens, hidden = sum(lengths), config.hidden_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    def scaled(*shape: int) -> Tensor:
        return normal(*shape) * shape[-1] ** -0.5

    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, value_dim, channels = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_conv_dim
    match operation:
        case "attention":
            q = normal(1, tokens, config.num_attention_heads, config.head_dim)
            k, v = (normal(1, tokens, config.num_key_value_heads, config.head_dim) for _ in range(2))
            return {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens}
        case "delta_rule":
            return {
                "q": normal(1, tokens, keys, key_dim),
                "k": normal(1, tokens, keys, key_dim),
                "v": normal(1, tokens, values, value_dim),
                "g": -0.05 * normal(1, tokens, values).exp(),
                "beta": normal(1, tokens, values).sigmoid(),
                "initial_state": normal(len(lengths), values, key_dim, value_dim),
                "cu_seqlens": cu_seqlens,
            }
        case "short_conv":
            taps = config.linear_conv_kernel_dim
            state = normal(len(lengths), taps - 1, channels)
            x, weight = normal(1, tokens, channels), normal(channels, taps)
            return {"x": x, "weight": weight, "initial_state": state, "cu_seqlens": cu_seqlens}
        case "gated_rms_norm":
            shape = (1, tokens, values, value_dim)
            return {"x": normal(*shape), "gate": normal(*shape), "weight": normal(value_dim), "eps": 1e-6}
        case "rms_norm":
            return {"x": normal(1, tokens, hidden), "weight": normal(hidden), "eps": 1e-6}
        case "grouped_mlp":
            experts, width = config.num_experts, config.moe_intermediate_size
            scores = torch.rand(tokens, experts, generator=generator)
            scores[:, 0] = -1  # one expert idle
            weights, ids = scores.topk(config.num_experts_per_tok)
            return {
                "x": normal(tokens, hidden),
                "expert_ids": ids.to(device),
                "weights": weights.double().to(device),
                "gate_up_proj": scaled(experts, 2 * width, hidden),
                "down_proj": scaled(experts, hidden, width),
            }
        case "linear_cross_entropy":
            labels = torch.randint(config.vocab_size, (tokens,), generator=generator)
            labels[::7] = -100
            return {
                "hidden": normal(tokens, hidden),
                "weight": scaled(config.vocab_size, hidden),
                "labels": labels.to(device),
            }
    raise ValueError(operation)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating-point inputs in `dtype`; gates, rates and states, which the model keeps in float32, no narrower."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: x.to(wide if name in ("g", "beta") or (name == "initial_state" and x.ndim == 4) else dtype)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }


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
            generator = torch.Generator().manual_seed(1)
            grads.extend(torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs)
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
        found[name] = cast(inputs_of(name, config, [length] * rows, device), dtype)
        found[name].pop("initial_state", None)
    return found


def forward_caller(operation: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """A call without gradients."""

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        outputs = getattr(ops, operation)(**inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call
