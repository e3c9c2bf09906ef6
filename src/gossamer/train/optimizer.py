"""The optimizers of a network: Muon for matrices, AdamW for the rest, weight decay where Qwen3-Next has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gossamer import device as devices
from gossamer.train.config import OptimizerConfig
from gossamer.train.eager import AdamW
from gossamer.train.muon import Muon, matrix_splits
from gossamer.train.world import to_local


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter: to matrices, and to the q and k norms.

    This is "zero-centered and weight-decayed layernorm" as Megatron-LM reads it: of the one-dimensional parameters it
    applies to the two norms whose growth Qwen3-Next set out to bound.
    """
    return parameter.ndim > 1 or name.endswith(("q_norm.weight", "k_norm.weight"))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], learning_rate: float) -> None:
    """Set the learning rate of the next step, for every group of parameters in its own proportion."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)


def step_clipped(optimizer: torch.optim.Optimizer, norm: Tensor, max_norm: float) -> None:
    """Take a step with the gradients scaled to `max_norm`, if their `norm`, over all optimizers, is larger.

    A fused AdamW divides while it reads them; others need a pass over them.
    """
    excess = (norm + 1e-6) / max_norm
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if float(norm) <= max_norm:
        optimizer.step()
    elif (
        optimizer.defaults.get("fused")
        and norm.dtype == torch.float32
        and not any(isinstance(p, DTensor) for p in parameters)
    ):
        optimizer.grad_scale = excess  # type: ignore[attr-defined]  # as torch.amp.GradScaler hands it over
        optimizer.step()
        del optimizer.grad_scale  # type: ignore[attr-defined]
    else:
        torch._foreach_div_([to_local(p.grad) for p in parameters], excess)
        optimizer.step()


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers that share the model's trainable parameters; their state has the parameters' dtype."""
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
    """Return AdamW over the parameters, with one fused kernel for each group where the device has it."""
    groups = defaultdict[tuple[float, float], list[Tensor]](list)
    for name, parameter in parameters.items():
        decay = config.weight_decay if is_decayed(name, parameter) else 0.0
        factor = config.embedding_lr_factor if name.endswith("embed_tokens.weight") else 1.0
        groups[decay, factor].append(parameter)
    device = next(iter(parameters.values())).device
    fused = devices.capabilities(device).fused_adamw
    described = [
        {"params": group, "weight_decay": decay, "lr_factor": factor} for (decay, factor), group in groups.items()
    ]
    return AdamW(described, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)
