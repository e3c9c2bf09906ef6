"""The few heavy operations of the network, each with a reference that defines it and faster implementations."""

from __future__ import annotations

import torch

from gossamer.ops.attention import attention
from gossamer.ops.delta_rule import delta_rule
from gossamer.ops.delta_step import delta_step
from gossamer.ops.gated_rms_norm import gated_rms_norm
from gossamer.ops.grouped_mlp import grouped_mlp
from gossamer.ops.grouped_mlp.frozen import frozen_grouped_mlp
from gossamer.ops.linear import linear
from gossamer.ops.linear_cross_entropy import linear_cross_entropy
from gossamer.ops.orthogonalize import orthogonalize
from gossamer.ops.paged_attention import paged_attention
from gossamer.ops.registry import OPERATIONS, Operation, forced
from gossamer.ops.rms_norm import rms_norm
from gossamer.ops.sample_tokens import sample_tokens
from gossamer.ops.short_conv import short_conv
from gossamer.ops.small_linear import small_linear
from gossamer.ops.token_logprobs import token_logprobs

__all__ = [
    "attention",
    "delta_rule",
    "delta_step",
    "describe",
    "forced",
    "frozen_grouped_mlp",
    "gated_rms_norm",
    "grouped_mlp",
    "linear",
    "linear_cross_entropy",
    "orthogonalize",
    "paged_attention",
    "pytorch_only",
    "rms_norm",
    "sample_tokens",
    "short_conv",
    "small_linear",
    "token_logprobs",
    "training_operations",
]


def describe(device: torch.device) -> dict[str, dict[str, object]]:
    """Say for each operation which implementation runs on `device` and what keeps the others from running there."""
    return {
        name: {
            "runs": operation.choose(device).name,
            "implementations": {other.name: other.obstacle(device) or "able" for other in operation.implementations},
        }
        for name, operation in OPERATIONS.items()
    }


def training_operations() -> dict[str, Operation]:
    """Return the operations that have a gradient, by name."""
    return {name: operation for name, operation in OPERATIONS.items() if operation.has_gradient}


def pytorch_only() -> dict[str, str]:
    """Name for each operation the best implementation that needs nothing but PyTorch, as arguments for `forced`."""
    return {name: operation.pytorch_implementation().name for name, operation in OPERATIONS.items()}
