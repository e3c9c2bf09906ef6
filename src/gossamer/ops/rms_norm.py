"""Root-mean-square norm over the last dimension."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_number, once_differentiable, shape
from gossamer.ops.registry import Operation

RMS_NORM = Operation("rms_norm")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x · rsqrt(mean x² + eps) · weight in float32 (in float64 if x is) and cast the result to x's dtype.

    Args:
        x: […, width]
        weight: [width]; for the norms of the trunk this is 1 + w
        eps: added to the mean square

    Returns:
        […, width] in x's dtype.

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_floats("rms_norm", x=x, weight=weight)
    eps = check_number("rms_norm", "eps", eps)
    if weight.ndim != 1 or weight.shape != x.shape[-1:] or not len(weight):
        raise UserError(f"rms_norm: x {shape(x)} and weight {shape(weight)} do not fit")
    y: Tensor = RMS_NORM(x.device, x, weight, eps)
    return y


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute the formula of `rms_norm` as it is written."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)


def plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Call PyTorch's own RMS norm, which is a single kernel on devices that have one."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps).to(x.dtype)


def native(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Call the C++ kernel, which passes over memory once in each direction; float64 goes to `plain`."""
    if x.dtype == torch.float64:
        return plain(x, weight, eps)
    y: Tensor = _NativeRMSNorm.apply(x.float(), weight.float(), eps)
    return y.to(x.dtype)


class _NativeRMSNorm(torch.autograd.Function):
    """The kernels of ops/native/norms.cpp, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = weight.numel()
        rows = x.numel() // width
        y, inverse_rms = torch.empty_like(x), x.new_empty(rows)
        kernels.call("rms_norm", x, weight, y, inverse_rms, rows, width, eps)
        ctx.save_for_backward(x, weight, inverse_rms)
        return y

    @staticmethod
    @once_differentiable("rms_norm")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse_rms = ctx.saved_tensors
        dy, dx, dweight = grads[0].contiguous(), torch.empty_like(x), torch.empty_like(weight)
        kernels.call("rms_norm_backward", dy, x, weight, inverse_rms, dx, dweight, len(inverse_rms), weight.numel())
        return dx, dweight, None


RMS_NORM.register("native", native, kernels.obstacle)
RMS_NORM.register("plain", plain)
RMS_NORM.register("reference", reference)
