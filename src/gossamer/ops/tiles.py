"""What the Triton kernels of the operations share. Imports Triton: only they may import it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What a kernel computes in: float32, or float64 if its input is."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`, as a tile's side must be; `least` is 16 for those of a `dot`."""
    return max(least, int(triton.next_power_of_2(size)))


def token_rows(x: Tensor) -> Tensor:
    """[B, T, …] → [tokens, …] with everything behind the tokens dense; copied only where it is not.

    The parts of a split projection are such rows, a token's stride apart.
    """
    flat = x.flatten(0, 1)
    return flat if len(flat) and flat[0].is_contiguous() else flat.contiguous()
