"""A linear layer whose weight may be of a narrower type than what it is applied to."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer import ops


class Linear(nn.Linear):
    """A linear layer as PyTorch's, which computes in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x Wᵀ + b: […, in] → […, out]."""
        return ops.linear(x, self.weight, self.bias)
