"""Matrices as decoding reads them: of floating-point numbers, or of int8 with a scale for each row.

A matrix may be of a narrower type than the vectors that it is multiplied by: a CPU without bfloat16 units keeps it in
memory as it is stored, and computes in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import describe, is_dense, shape


class Int8Matrix(NamedTuple):
    """A matrix, or several stacked, whose rows are int8 numbers times a scale.

    Attributes:
        values: […, rows, width] int8
        scales: […, rows] float32
    """

    values: Tensor
    scales: Tensor


Matrix = Tensor | Int8Matrix
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.int8)  # in the order of `NumberType` in ops/native/numbers.h
BLOCK_BYTES = 4 << 20  # of converted rows of a matrix


def check_matrix(operation: str, name: str, matrix: Matrix) -> None:
    """Refuse an int8 matrix whose numbers and scales do not belong together.

    Raises:
        UserError: the message names the operation, the argument and what does not fit.
    """
    if not isinstance(matrix, Int8Matrix):
        return
    values, scales = matrix
    if not is_dense(values) or values.dtype != torch.int8:
        raise UserError(f"{operation}: {name} must be of int8, not {describe(values)}")
    if not is_dense(scales) or scales.dtype != torch.float32 or scales.shape != values.shape[:-1]:
        raise UserError(
            f"{operation}: {name} of {shape(values)} must have scales {list(values.shape[:-1])} of float32, not "
            f"{describe(scales)}"
        )
    if scales.device != values.device or not scales.is_contiguous():
        raise UserError(f"{operation}: {name} must have contiguous scales on the device of its numbers")


def rows_of(matrix: Matrix, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return some rows of a matrix [rows, width] as numbers of `dtype`."""
    if isinstance(matrix, Int8Matrix):
        return matrix.values[rows].to(dtype) * matrix.scales[rows].to(dtype).unsqueeze(-1)
    return matrix[rows].to(dtype)


def multiply(x: Tensor, matrix: Matrix) -> Tensor:
    """Compute x Wᵀ in x's dtype, [T, width] → [T, rows], with W of any type. There is no gradient.

    Rows of another type than x are converted a block at a time, which stays in a core's cache until it is used.
    """
    if isinstance(matrix, Tensor) and matrix.dtype == x.dtype:
        return F.linear(x, matrix)
    values, _ = values_and_scales(matrix)
    assert values is not None
    block = max(1, BLOCK_BYTES // (x.dtype.itemsize * values.shape[1]))
    out = x.new_empty(len(x), len(values))
    for start in range(0, len(values), block):
        part = rows_of(matrix, slice(start, start + block), x.dtype)
        torch.mm(x, part.mT, out=out[:, start : start + block])
    return out


def values_and_scales(matrix: Matrix | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the numbers of a matrix and, if it is of int8, its scales."""
    return (matrix.values, matrix.scales) if isinstance(matrix, Int8Matrix) else (matrix, None)


def kernel_arguments(matrix: Matrix | None) -> tuple[Tensor | None, Tensor | None, int]:
    """Return a matrix as the native kernels take it: its numbers, the scales of int8, and the type of its numbers."""
    values, scales = values_and_scales(matrix)
    return values, scales, 0 if values is None else KERNEL_TYPES.index(values.dtype)


def is_matrix_for_kernels(matrix: Matrix) -> bool:
    """Whether the native kernels can read a matrix: contiguous, of float32, bfloat16 or int8 with scales."""
    if isinstance(matrix, Int8Matrix):
        return matrix.values.is_contiguous()
    return matrix.dtype in (torch.float32, torch.bfloat16) and matrix.is_contiguous()


def is_weight_for_kernels(x: Tensor) -> bool:
    """Whether the native kernels can read what is no matrix: contiguous, of float32."""
    return x.dtype == torch.float32 and x.is_contiguous()
