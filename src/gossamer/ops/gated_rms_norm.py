"""Gated root-mean-square norm, which follows the delta rule: first the norm, then the gate."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_number, once_differentiable, shape
from gossamer.ops.registry import Operation, deferred

GATED_RMS_NORM = Operation("gated_rms_norm")


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x · rsqrt(mean x² + eps) · weight · SiLU(gate) in float32 (in float64 if x is), and cast it.

    Args:
        x: […, width]
        gate: […, width]
        weight: [width]
        eps: added to the mean square

    Returns:
        […, width] in the gate's dtype.

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_floats("gated_rms_norm", x=x, gate=gate, weight=weight)
    eps = check_number("gated_rms_norm", "eps", eps)
    if x.shape != gate.shape or weight.ndim != 1 or weight.shape != x.shape[-1:] or not len(weight):
        raise UserError(f"gated_rms_norm: x {shape(x)}, gate {shape(gate)} and weight {shape(weight)} do not fit")
    y: Tensor = GATED_RMS_NORM(x.device, x, gate, weight, eps)
    return y


def reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute the formula of `gated_rms_norm` as it is written."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    z = gate.to(wide.dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    return (normed * z * torch.sigmoid(z)).to(gate.dtype)


def plain(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compose the gated norm from PyTorch's own functions."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps)
    return (y * F.silu(gate.to(dtype))).to(gate.dtype)


def native(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Call the C++ kernel, which passes over memory once in each direction; float64 goes to `plain`."""
    if x.dtype == torch.float64:
        return plain(x, gate, weight, eps)
    y: Tensor = _NativeGatedRMSNorm.apply(x.float(), gate.float(), weight.float(), eps)
    return y.to(gate.dtype)


def _gate_rows(gate: Tensor) -> tuple[Tensor, int, int, int]:
    """Lay out the gate as rows, without a copy if it is part of a wider projection.

    Returns:
        The gate, the number of rows, the heads of a row, and the floats from one row to the next.
    """
    if gate.ndim == 4 and gate.stride()[2:] == (gate.shape[3], 1) and gate.stride(0) == gate.shape[1] * gate.stride(1):
        return gate, gate.shape[0] * gate.shape[1], gate.shape[2], gate.stride(1)
    width = gate.shape[-1]
    return gate.contiguous(), gate.numel() // width, 1, width


class _NativeGatedRMSNorm(torch.autograd.Function):
    """The kernels of ops/native/norms.cpp, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        gate, rows, heads, stride = _gate_rows(gate)
        y, inverse_rms = torch.empty_like(x), x.new_empty(rows * heads)
        kernels.call("gated_rms_norm", x, gate, weight, y, inverse_rms, rows, heads, weight.numel(), stride, eps)
        ctx.save_for_backward(x, gate, weight, inverse_rms)
        return y

    @staticmethod
    @once_differentiable("gated_rms_norm")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, inverse_rms = ctx.saved_tensors
        gate, rows, heads, stride = _gate_rows(gate)
        dx, dgate, dweight = torch.empty_like(x), torch.empty_like(x), torch.empty_like(weight)
        sizes = rows, heads, weight.numel(), stride
        dy = grads[0].contiguous()
        kernels.call("gated_rms_norm_backward", dy, x, gate, weight, inverse_rms, dx, dgate, dweight, *sizes)
        return dx, dgate, dweight, None


GATED_RMS_NORM.register("native", native, kernels.obstacle)
GATED_RMS_NORM.register(
    "triton",
    deferred("gossamer.ops.triton.gated_rms_norm", "gated_rms_norm"),
    devices.triton_obstacle,
    devices.is_accelerator,
)
GATED_RMS_NORM.register("plain", plain)
GATED_RMS_NORM.register("reference", reference)
