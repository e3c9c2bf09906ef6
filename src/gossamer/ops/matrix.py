"""Matrices as the kernels of decoding read them: of floating-point numbers, or of int8 with a scale for each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
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


def values_and_scales(matrix: Matrix | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the numbers of a matrix and, if it is of int8, its scales."""
    return (matrix.values, matrix.scales) if isinstance(matrix, Int8Matrix) else (matrix, None)


def is_readable_by_kernels(matrix: Matrix) -> bool:
    """Whether the native kernels can read a matrix: contiguous, of float32 or of int8 with scales."""
    dtype = torch.int8 if isinstance(matrix, Int8Matrix) else torch.float32
    values, _ = values_and_scales(matrix)
    return values is not None and values.dtype == dtype and values.is_contiguous()
