"""The gated norm from PyTorch's own functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `gated_rms_norm`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps)
    return (y * F.silu(gate.to(dtype))).to(gate.dtype)
