"""The few heavy operations, each with a reference that says what it computes and others that compute it fast."""

from __future__ import annotations

import torch

from gossamer.ops.attention import attention
from gossamer.ops.delta_rule import delta_rule
from gossamer.ops.delta_step import delta_step
from gossamer.ops.draw import draw
from gossamer.ops.few_rows import few_rows
from gossamer.ops.gated_rms_norm import gated_rms_norm
from gossamer.ops.grouped_mlp import grouped_mlp
from gossamer.ops.linear_cross_entropy import linear_cross_entropy
from gossamer.ops.orthogonalize import orthogonalize
from gossamer.ops.paged_attention import paged_attention
from gossamer.ops.registry import OPERATIONS, Operation, forced
from gossamer.ops.rms_norm import rms_norm
from gossamer.ops.short_conv import short_conv

__all__ = [
    "attention",
    "delta_rule",
    "delta_step",
    "describe",
    "draw",
    "few_rows",
    "forced",
    "gated_rms_norm",
    "grouped_mlp",
    "linear_cross_entropy",
    "orthogonalize",
    "paged_attention",
    "pytorch_alone",
    "rms_norm",
    "short_conv",
    "training_operations",
]


def describe(device: torch.device) -> dict[str, dict[str, object]]:
    """For each operation: the implementation that runs on `device`, and the others with what keeps them from it."""
    return {
        name: {
            "runs": operation.choose(device).name,
            "implementations": {other.name: other.obstacle(device) or "able" for other in operation.implementations},
        }
        for name, operation in OPERATIONS.items()
    }


def training_operations() -> dict[str, Operation]:
    """Those that have a gradient."""
    return {name: operation for name, operation in OPERATIONS.items() if operation.trains}


def pytorch_alone() -> dict[str, str]:
    """For each operation the implementation that needs nothing but PyTorch, for `forced`."""
    return {name: operation.through_pytorch().name for name, operation in OPERATIONS.items()}
