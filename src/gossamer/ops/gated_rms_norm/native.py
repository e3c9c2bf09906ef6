"""The gated norm in one pass over memory each way (ops/native/norms.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.checks import first_order
from gossamer.ops.gated_rms_norm.plain import plain


def native(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `gated_rms_norm`. float64 takes the plain path."""
    if x.dtype == torch.float64:
        return plain(x, gate, weight, eps)
    y: Tensor = _GatedRMSNorm.apply(x.float(), gate.float(), weight.float(), eps)
    return y.to(gate.dtype)


def _rows(gate: Tensor) -> tuple[Tensor, int, int, int]:
    """The gate, in place if it is part of a wider tensor, with its rows, heads a row, and floats from row to row."""
    if gate.ndim == 4 and gate.stride()[2:] == (gate.shape[3], 1) and gate.stride(0) == gate.shape[1] * gate.stride(1):
        return gate, gate.shape[0] * gate.shape[1], gate.shape[2], gate.stride(1)
    width = gate.shape[-1]
    return gate.contiguous(), gate.numel() // width, 1, width


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        gate, rows, heads, stride = _rows(gate)
        y, inverse = torch.empty_like(x), x.new_empty(rows * heads)
        kernels.call("gated_rms_norm", x, gate, weight, y, inverse, rows, heads, weight.numel(), stride, eps)
        ctx.save_for_backward(x, gate, weight, inverse)
        return y

    @staticmethod
    @first_order("gated_rms_norm")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, inverse = ctx.saved_tensors
        gate, rows, heads, stride = _rows(gate)
        dx, dgate, dweight = torch.empty_like(x), torch.empty_like(x), torch.empty_like(weight)
        sizes = rows, heads, weight.numel(), stride
        dy = grads[0].contiguous()
        kernels.call("gated_rms_norm_backward", dy, x, gate, weight, inverse, dx, dgate, dweight, *sizes)
        return dx, dgate, dweight, None
