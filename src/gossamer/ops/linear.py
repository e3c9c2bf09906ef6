"""A linear layer whose weight may be of a narrower type than its input, as that of a network in bfloat16 on a CPU.

A frozen weight may have a matrix B A of low rank beside it, which is trained in its place (LoRA, arXiv 2106.09685).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.checks import once_differentiable
from gossamer.ops.matrix import multiply
from gossamer.ops.small_linear import MAX_VECTORS, small_linear


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, low_rank: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Compute x (W + B A)ᵀ + b in x's dtype; under autocast in the dtype that it chooses.

    A weight of another type is widened a block at a time where no gradient is wanted, and never as a whole. Where the
    input's gradient is wanted and the weight's is not, one weight at a time is widened in the backward pass.

    Args:
        x: […, width]
        weight: [rows, width]
        bias: [rows]
        low_rank: A [rank, width] and B [rows, rank]; the weight then gets no gradient

    Returns:
        […, rows]
    """
    if low_rank is not None:
        y = _with_low_rank(x, weight, *low_rank)
        return y if bias is None else y + bias.to(y.dtype)
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if wants_gradient and weight.requires_grad:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    rows = x.flatten(0, -2)
    if wants_gradient:
        y = _Frozen.apply(rows, weight)
    else:
        y = small_linear(rows, weight) if len(rows) <= MAX_VECTORS else multiply(rows, weight)
    if bias is not None:
        y += bias
    return y.unflatten(0, x.shape[:-1])


def _with_low_rank(x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Compute x (W + B A)ᵀ for a frozen W."""
    weight = weight.detach()
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight) + F.linear(F.linear(x, A), B)
    y: Tensor = _LowRank.apply(x.flatten(0, -2), weight, A.to(x.dtype), B.to(x.dtype))
    return y.unflatten(0, x.shape[:-1])


class _Frozen(torch.autograd.Function):
    """x Wᵀ with a gradient for x alone; W stays in its own type between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight)

    @staticmethod
    @once_differentiable("linear")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight.to(grads[0].dtype), None


class _LowRank(torch.autograd.Function):
    """x (W + B A)ᵀ with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        inner = F.linear(x, A)
        ctx.save_for_backward(x, weight, A, B, inner)
        return linear(x, weight).addmm_(inner, B.mT)

    @staticmethod
    @once_differentiable("linear")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, inner = ctx.saved_tensors
        dy = grads[0]
        dinner = dy @ B
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(dy.dtype)).addmm_(dinner, A)
        return dx, None, dinner.mT @ x, dy.mT @ inner
