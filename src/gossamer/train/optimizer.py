"""AdamW with the parameter groups of Qwen3-Next's training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.train.config import OptimizerConfig


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay pulls on a parameter: on matrices, and on the q and k norms.

    "Zero-centred and weight-decayed layernorm" as Megatron-LM reads it: one-dimensional parameters are left alone but
    for the two norms whose growth Qwen3-Next set out to bound.
    """
    return parameter.ndim > 1 or name.endswith(("q_norm.weight", "k_norm.weight"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: the decayed parameters and the others, in the model's order."""
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (decayed if is_decayed(name, parameter) else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, one fused kernel over all parameters where the device has it."""
    device = next(model.parameters()).device
    fused = device.type in torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )
