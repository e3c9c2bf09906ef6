"""Few vectors times many rows, each row read once (ops/native/rows.h)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.matrix import Int8, Matrix

MOST = 64  # vectors; beyond, the BLAS is faster


def native(x: Tensor, weight: Matrix) -> Tensor:
    """See `few_rows`. Other types than float32 and int8, and many vectors, take the path of PyTorch's functions."""
    values, scales = (weight.values, weight.scales) if isinstance(weight, Int8) else (weight, None)
    if x.dtype != torch.float32 or values.dtype not in (torch.float32, torch.int8) or not values.is_contiguous():
        return F.linear(x, values if scales is None else values.to(x.dtype) * scales.to(x.dtype).unsqueeze(-1))
    if len(x) > MOST:
        return F.linear(x, values if scales is None else values.float() * scales.unsqueeze(-1))
    out = x.new_empty(len(x), len(values))
    kernels.call("few_rows", x.contiguous(), values, scales, out, len(x), len(values), x.shape[1])
    return out
