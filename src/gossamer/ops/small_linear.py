"""A linear layer for a few vectors and a matrix with many rows: the output head during decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, shape
from gossamer.ops.matrix import (
    Int8Matrix,
    Matrix,
    check_matrix,
    is_matrix_for_kernels,
    kernel_arguments,
    multiply,
    values_and_scales,
)
from gossamer.ops.registry import Operation

SMALL_LINEAR = Operation("small_linear", has_gradient=False)
MAX_VECTORS = 64  # with more vectors, the BLAS is faster than the native kernel


def small_linear(x: Tensor, weight: Matrix) -> Tensor:
    """Compute x Wᵀ. It has no gradient.

    Args:
        x: [T, width]
        weight: [rows, width], of x's dtype, of a narrower one, or of int8 with scales

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
    if isinstance(weight, Tensor) and torch.promote_types(x.dtype, weight.dtype) != x.dtype:
        raise UserError(f"small_linear: x of {x.dtype} must be at least as wide as weight of {weight.dtype}")
    y: Tensor = SMALL_LINEAR(x.device, x, weight)
    return y


def reference(x: Tensor, weight: Matrix) -> Tensor:
    """Multiply by the matrix in x's dtype, after int8 numbers have been multiplied by their scales."""
    return multiply(x, weight)


def native(x: Tensor, weight: Matrix) -> Tensor:
    """Read every row of the matrix once (ops/native/small_linear.cpp).

    Vectors of other dtypes than float32, more than `MAX_VECTORS` of them, and matrices of other dtypes than float32,
    bfloat16 and int8 go to `reference`.
    """
    if x.dtype != torch.float32 or not is_matrix_for_kernels(weight) or len(x) > MAX_VECTORS:
        return reference(x, weight)
    values, _ = values_and_scales(weight)
    assert values is not None
    out = x.new_empty(len(x), len(values))
    kernels.call("small_linear", x.contiguous(), *kernel_arguments(weight), out, len(x), *values.shape)
    return out


SMALL_LINEAR.register("native", native, kernels.obstacle)
SMALL_LINEAR.register("reference", reference)
