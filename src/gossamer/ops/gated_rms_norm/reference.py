"""The gated norm as it is written."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `gated_rms_norm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    opened = gate.to(wide.dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    return (normed * opened * torch.sigmoid(opened)).to(gate.dtype)
