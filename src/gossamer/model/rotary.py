"""Rotary position embedding (arXiv 2104.09864) on the first dimensions of a head, in the rotate-half (NeoX) form."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_frequencies(rotary_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Compute the frequencies θ^(−2i/d), [rotary_dim / 2] in float32.

    Args:
        rotary_dim: d, how many dimensions of a head rotate
        theta: θ, base of the frequencies
        device: where the result lies
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    return 1.0 / theta**exponents


def rotary_tables(positions: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of the angles p · θ^(−2i/d), each [*positions, 1, rotary_dim / 2] in float32.

    Args:
        positions: int64, positions in the document
        rotary_dim: d, how many dimensions of a head rotate
        theta: θ, base of the frequencies
    """
    angles = positions[..., None, None].float() * rotary_frequencies(rotary_dim, theta, positions.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate dimension i against i + d/2 for i < d/2, and pass the others: x is [B, T, H, D]."""
    cos, sin = (table.to(x.dtype) for table in tables)
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
