"""The short convolution in one pass over memory each way (ops/native/short_conv.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.checks import first_order
from gossamer.ops.native.layout import rows_in_place
from gossamer.ops.packing import lengths_tensor
from gossamer.ops.short_conv.shifted import shifted

MOST_TAPS = 8  # of the kernel


def native(x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """See `short_conv`. float64, and convolutions of more than eight taps, take the path of PyTorch's functions."""
    if x.dtype == torch.float64 or weight.shape[1] > MOST_TAPS:
        return shifted(x, weight, initial_state, lengths)
    if initial_state is None:
        initial_state = x.new_zeros(len(lengths), weight.shape[1] - 1, x.shape[-1])
    y, state = _ShortConv.apply(x.float(), weight.float(), initial_state.float(), lengths)
    return y.to(x.dtype), state.to(x.dtype)


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, initial: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        x, stride = rows_in_place(x)
        taps_first, initial = weight.mT.contiguous(), initial.contiguous()
        y, after = x.new_empty(x.shape), torch.empty_like(initial)
        taps, channels = taps_first.shape
        sizes = len(lengths), channels, taps, stride
        kernels.call("short_conv", x, taps_first, initial, lengths_tensor(lengths), y, after, *sizes)
        ctx.save_for_backward(x, taps_first, initial)
        ctx.lengths, ctx.sizes = lengths, sizes
        return y, after

    @staticmethod
    @first_order("short_conv")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, taps_first, initial = ctx.saved_tensors
        dy, dafter = (grad.contiguous() for grad in grads)
        dx, dweight, dinitial = x.new_empty(x.shape), torch.empty_like(taps_first), torch.empty_like(initial)
        inputs = dy, dafter, x, taps_first, initial, lengths_tensor(ctx.lengths)
        kernels.call("short_conv_backward", *inputs, dx, dweight, dinitial, *ctx.sizes)
        return dx, dweight.mT, dinitial, None
