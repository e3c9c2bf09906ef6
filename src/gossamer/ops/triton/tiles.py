"""Helpers that the Triton kernels share. This module imports Triton, so only they may import it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return the dtype in which a kernel computes: float32, or float64 if its input is float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def padded(size: int, min_size: int = 1) -> int:
    """Round `size` up to a power of two, as a tile's side must be; the sides of a `dot` have a `min_size` of 16."""
    return max(min_size, int(triton.next_power_of_2(size)))


def token_rows(x: Tensor) -> Tensor:
    """Flatten [B, T, …] to [tokens, …] with each token's numbers contiguous, without a copy where they are already.

    The parts of a split projection are such rows, which lie a stride apart.
    """
    flat = x.flatten(0, 1)
    return flat if len(flat) and flat[0].is_contiguous() else flat.contiguous()
