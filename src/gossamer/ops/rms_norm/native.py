"""The root-mean-square norm in one pass over memory each way (ops/native/norms.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.checks import first_order
from gossamer.ops.rms_norm.plain import plain


def native(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `rms_norm`. float64 takes the plain path."""
    if x.dtype == torch.float64:
        return plain(x, weight, eps)
    y: Tensor = _RMSNorm.apply(x.float(), weight.float(), eps)
    return y.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = weight.numel()
        rows = x.numel() // width
        y, inverse = torch.empty_like(x), x.new_empty(rows)
        kernels.call("rms_norm", x, weight, y, inverse, rows, width, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @first_order("rms_norm")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        dy, dx, dweight = grads[0].contiguous(), torch.empty_like(x), torch.empty_like(weight)
        kernels.call("rms_norm_backward", dy, x, weight, inverse, dx, dweight, len(inverse), weight.numel())
        return dx, dweight, None
