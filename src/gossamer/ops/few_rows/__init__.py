"""The product of a few vectors with a matrix of many rows: the output head's part of decoding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, shape
from gossamer.ops.few_rows.native import native
from gossamer.ops.matrix import Int8, Matrix, check_matrix
from gossamer.ops.registry import Operation

FEW_ROWS = Operation("few_rows", trains=False)
FEW_ROWS.register("native", kernels.obstacle)(native)


@FEW_ROWS.register("reference")
def reference(x: Tensor, weight: Matrix) -> Tensor:
    """See `few_rows`."""
    if isinstance(weight, Int8):
        weight = weight.values.to(x.dtype) * weight.scales.to(x.dtype).unsqueeze(-1)
    return F.linear(x, weight)


def few_rows(x: Tensor, weight: Matrix) -> Tensor:
    """x Wᵀ. No gradient.

    Args:
        x: [T, width]
        weight: [rows, width], or of int8 with scales

    Returns:
        [T, rows] in x's dtype.

    Raises:
        UserError: shapes, types or devices that do not fit.
    """
    check_matrix("few_rows", "weight", weight)
    values, numbers = (weight.values, weight.scales) if isinstance(weight, Int8) else (weight, weight)
    check_floats("few_rows", x=x, weight=numbers)
    if x.ndim != 2 or values.ndim != 2 or x.shape[1] != values.shape[1] or not min(values.shape):
        raise UserError(f"few_rows: x {shape(x)} and weight {shape(values)} do not fit")
    if isinstance(weight, Tensor) and x.dtype != weight.dtype:
        raise UserError(f"few_rows: x of {x.dtype} and weight of {weight.dtype} must be of one type")
    y: Tensor = FEW_ROWS(x.device, x, weight)
    return y
