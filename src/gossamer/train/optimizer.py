"""Which parameter is stepped how: Muon for matrices, AdamW for the rest, weight decay where Qwen3-Next has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import device as devices
from gossamer.train.config import OptimizerConfig
from gossamer.train.muon import Muon, matrix_splits


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay pulls on a parameter: on matrices, and on the q and k norms.

    "Zero-centred and weight-decayed layernorm" as Megatron-LM reads it: one-dimensional parameters are left alone but
    for the two norms whose growth Qwen3-Next set out to bound.
    """
    return parameter.ndim > 1 or name.endswith(("q_norm.weight", "k_norm.weight"))


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that share the model's trainable parameters; all state is in the parameters' own float32."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    splits = matrix_splits(model) if config.kind == "muon" else {}
    splits = {parameter: split for parameter, split in splits.items() if parameter.requires_grad}
    optimizers: list[torch.optim.Optimizer] = []
    if splits:
        optimizers.append(Muon(splits, config.learning_rate, config.momentum, config.weight_decay))
    others = {name: parameter for name, parameter in trained.items() if parameter not in splits}
    if others:
        optimizers.append(_adamw(others, config))
    return optimizers


def _adamw(parameters: Mapping[str, Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, one fused kernel over all parameters where the device has it."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (config.weight_decay, 0.0)]
    for name, parameter in parameters.items():
        groups[0 if is_decayed(name, parameter) else 1]["params"].append(parameter)
    device = next(iter(parameters.values())).device
    fused = devices.capabilities(device).fused_adamw
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)
