"""A linear layer whose weight may be of a narrower type than its input, and may have a low-rank matrix beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import ops


class LowRank(nn.Module):
    """The matrix s · B A of low rank that is added to a frozen weight (LoRA, arXiv 2106.09685), or one for each expert.

    It begins as zero: `A` is Kaiming-uniform and `B` is zero. Both are in float32, since steps of training are lost to
    the rounding of a narrower type.

    Args:
        weight: [rows, width] or [E, rows, width], what it is added to
        rank: rank of the product
        scale: s, usually α / r

    Attributes:
        A: [rank, width] or [E, rank, width]
        B: [rows, rank] or [E, rows, rank]
        scale: s
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        *stack, rows, width = weight.shape
        bound = width**-0.5  # that of PEFT and of nn.Linear: Kaiming-uniform with a = √5
        self.A = nn.Parameter(torch.empty(*stack, rank, width, device=weight.device).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(*stack, rows, rank, device=weight.device))
        self.scale = scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and s · B, the two that a product takes."""
        return self.A, self.B * self.scale


class Linear(nn.Linear):
    """A linear layer as PyTorch's, which computes in the type of its input.

    Attributes:
        low_rank: what is added to the weight, or None
    """

    low_rank: LowRank | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.low_rank = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute x (W + s B A)ᵀ + b: […, in] → […, out]."""
        return ops.linear(x, self.weight, self.bias, None if self.low_rank is None else self.low_rank.factors())


def has_low_rank(module: nn.Module) -> bool:
    """Whether a network, or a part of it, has matrices of low rank beside its weights."""
    return any(isinstance(part, LowRank) for part in module.modules())
