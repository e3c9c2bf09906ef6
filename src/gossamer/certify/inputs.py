"""What operations are called with when they are checked and timed: random inputs of a network's own shapes."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.certify.exactness import Inputs
from gossamer.model.config import ModelConfig

Gates = Literal["trained", "fresh"]


def inputs_of(operation: str, config: ModelConfig, lengths: list[int], gates: Gates = "trained") -> Inputs:
    """Random float64 inputs of the network's heads and widths, the documents of these lengths packed in one row.

    They are on the CPU: a device may have no float64. Where an operation takes a state, one is given.

    Args:
        operation: its name
        config: the network
        lengths: of the documents (tokens)
        gates: the delta rule's decays: those of a trained network, which forgets a few percent a token, or of a fresh
            one (`model.initialize`), whose fastest head forgets all within a token or two, so that products of decays
            fall through float32's subnormal range
    """
    generator = torch.Generator().manual_seed(0)
    tokens, hidden = sum(lengths), config.hidden_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

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
                "g": _fresh_gates(normal(1, tokens, values))
                if gates == "fresh"
                else -0.05 * normal(1, tokens, values).exp(),
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
                "expert_ids": ids,
                "weights": weights.double(),
                "gate_up_proj": scaled(experts, 2 * width, hidden),
                "down_proj": scaled(experts, hidden, width),
            }
        case "linear_cross_entropy":
            labels = torch.randint(config.vocab_size, (tokens,), generator=generator)
            labels[::7] = -100
            return {"hidden": normal(tokens, hidden), "weight": scaled(config.vocab_size, hidden), "labels": labels}
        case "orthogonalize":
            return {"matrices": normal(3, 2 * config.moe_intermediate_size, hidden)}
    raise ValueError(operation)


def _fresh_gates(noise: Tensor) -> Tensor:
    """[1, T, heads] of noise → g = −A·softplus(a + dt_bias) as initialised: A from 16 down to 0.01, dt_bias 1."""
    rates = torch.linspace(16, 0.01, noise.shape[2], dtype=noise.dtype)
    return -rates * F.softplus(0.3 * noise + 1)  # a: initializer_range · √hidden


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating-point inputs in `dtype`; gates, rates and states, which the model keeps in float32, no narrower."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: x.to(wide if name in ("g", "beta") or (name == "initial_state" and x.ndim == 4) else dtype)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """All tensors on a device, but for `cu_seqlens`, which is read on the host."""
    return {name: x.to(device) if isinstance(x, Tensor) and name != "cu_seqlens" else x for name, x in inputs.items()}
