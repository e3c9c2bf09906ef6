"""The layout in which the kernels can read a tensor that is a part of a wider one, without a copy."""

from __future__ import annotations

from torch import Tensor


def rows_in_place(x: Tensor) -> tuple[Tensor, int]:
    """Return a tensor [B, T, …] whose tokens are evenly spaced, with the numbers of each token together.

    Returns:
        The tensor, or a copy if its tokens do not lie so; and the distance from token to token, in numbers.
    """
    width = 1
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size != 1 and stride != width:
            return _copy(x)
        width *= size
    step = x.stride(1) if x.shape[1] > 1 else width
    is_even = x.shape[0] == 1 or x.stride(0) == x.shape[1] * step
    return (x, step) if is_even and step >= width else _copy(x)


def _copy(x: Tensor) -> tuple[Tensor, int]:
    x = x.contiguous()
    return x, x[0, 0].numel() if x.numel() else 1
