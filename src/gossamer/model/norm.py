"""Root-mean-square norms: the trunk's, with a factor of 1 + w, and the gated one of linear attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import ops


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the type that norms, gates and states are computed in: float32, or float64 for inputs of that type."""
    return torch.promote_types(x.dtype, torch.float32)


class RMSNorm(nn.Module):
    """A norm, x · rsqrt(mean x² + ε) · (1 + w), computed in float32 and cast last. w starts at zero."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension: […, width] → […, width]."""
        return ops.rms_norm(x, 1.0 + self.weight.to(working_dtype(x)), self.eps)

    def factor(self) -> Tensor:
        """Return 1 + w, [width], by which a normalized vector is multiplied."""
        return 1.0 + self.weight.detach().to(working_dtype(self.weight))


class GatedRMSNorm(nn.Module):
    """A gated norm, RMS(x) · w ⊙ SiLU(gate), norm before gate. Here the weight is plain, and starts at one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Normalize and gate the last dimension: both […, width] → […, width]."""
        return ops.gated_rms_norm(x, gate, self.weight, self.eps)
