"""A linear layer for a few vectors and a matrix with many rows: the output head during decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, shape
from gossamer.ops.matrix import Int8Matrix, Matrix, check_matrix
from gossamer.ops.registry import Operation

SMALL_LINEAR = Operation("small_linear", has_gradient=False)
MAX_VECTORS = 64  # with more vectors, the BLAS is faster than the native kernel


def small_linear(x: Tensor, weight: Matrix) -> Tensor:
    """Compute x Wᵀ. It has no gradient.

    Args:
        x: [T, width]
        weight: [rows, width], either of x's dtype or of int8 with scales

    Returns:
        [T, rows] in x's dtype.

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_matrix("small_linear", "weight", weight)
    values, floats = (weight.values, weight.scales) if isinstance(weight, Int8Matrix) else (weight, weight)
    check_floats("small_linear", x=x, weight=floats)
    if x.ndim != 2 or values.ndim != 2 or x.shape[1] != values.shape[1] or not min(values.shape):
        raise UserError(f"small_linear: x {shape(x)} and weight {shape(values)} do not fit")
    if isinstance(weight, Tensor) and x.dtype != weight.dtype:
        raise UserError(f"small_linear: x of {x.dtype} and weight of {weight.dtype} must have the same dtype")
    y: Tensor = SMALL_LINEAR(x.device, x, weight)
    return y


def reference(x: Tensor, weight: Matrix) -> Tensor:
    """Multiply by the whole matrix in x's dtype, after int8 numbers have been multiplied by their scales."""
    if isinstance(weight, Int8Matrix):
        weight = weight.values.to(x.dtype) * weight.scales.to(x.dtype).unsqueeze(-1)
    return F.linear(x, weight)


def native(x: Tensor, weight: Matrix) -> Tensor:
    """Read every row of the matrix once (ops/native/small_linear.cpp).

    Dtypes other than float32 and int8, and more than `MAX_VECTORS` vectors, go to `reference`.
    """
    values, scales = (weight.values, weight.scales) if isinstance(weight, Int8Matrix) else (weight, None)
    supported = x.dtype == torch.float32 and values.dtype in (torch.float32, torch.int8) and values.is_contiguous()
    if not supported or len(x) > MAX_VECTORS:
        return reference(x, weight)
    out = x.new_empty(len(x), len(values))
    kernels.call("small_linear", x.contiguous(), values, scales, out, len(x), len(values), x.shape[1])
    return out


SMALL_LINEAR.register("native", native, kernels.obstacle)
SMALL_LINEAR.register("reference", reference)
