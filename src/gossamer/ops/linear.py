"""A linear layer whose weight may be of a narrower type than its input, as that of a network in bfloat16 on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.matrix import multiply
from gossamer.ops.small_linear import MAX_VECTORS, small_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b in x's dtype; under autocast in the dtype that it chooses.

    A weight of another type is widened a block at a time where no gradient is wanted, and never as a whole.

    Args:
        x: […, width]
        weight: [rows, width]
        bias: [rows]

    Returns:
        […, rows]
    """
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    rows = x.flatten(0, -2)
    y = small_linear(rows, weight) if len(rows) <= MAX_VECTORS else multiply(rows, weight)
    if bias is not None:
        y += bias
    return y.unflatten(0, x.shape[:-1])
