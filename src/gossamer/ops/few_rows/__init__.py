"""The product of a few vectors with a matrix of many rows: the output head's part of decoding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.decode_layers.layers import Int8, Matrix
from gossamer.ops.few_rows.native import native
from gossamer.ops.registry import Operation

FEW_ROWS = Operation("few_rows", trains=False)
FEW_ROWS.register("native", kernels.obstacle)(native)


@FEW_ROWS.register("reference")
def reference(x: Tensor, weight: Matrix) -> Tensor:
    """See `few_rows`."""
    if isinstance(weight, Int8):
        weight = weight.values.to(x.dtype) * weight.scales.unsqueeze(-1)
    return F.linear(x, weight)


def few_rows(x: Tensor, weight: Matrix) -> Tensor:
    """x Wᵀ. No gradient.

    Args:
        x: [T, width]
        weight: [rows, width], or of int8 with scales

    Returns:
        [T, rows] in x's dtype.

    Raises:
        UserError: shapes that do not fit.
    """
    shape = weight.values.shape if isinstance(weight, Int8) else weight.shape
    if x.ndim != 2 or len(shape) != 2 or x.shape[1] != shape[1]:
        raise UserError(f"few_rows: x {tuple(x.shape)} and weight {tuple(shape)} do not fit")
    y: Tensor = FEW_ROWS(x.device, x, weight)
    return y
