"""The short convolution as a sum of shifted copies, channels last, with a hand-written backward pass.

Every document is laid out behind its K − 1 earlier inputs, so that one shifted sum over the whole buffer serves all
documents and none reads another's tokens. Autograd would keep every tap's product; here x alone is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.checks import first_order
from gossamer.ops.packing import cached_layout


def shifted(x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """See `short_conv`; `lengths` are the documents' lengths in tokens."""
    if initial_state is None:
        initial_state = x.new_zeros(len(lengths), weight.shape[1] - 1, x.shape[-1])
    y, state = _ShiftedConv.apply(x, weight, initial_state.to(x.dtype), lengths)
    return y, state


@cached_layout
def _places(lengths: tuple[int, ...], taps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the padded buffer that hold tokens, earlier inputs, and each document's last K − 1 inputs."""
    tokens, before, last, start = [], [], [], 0
    for length in lengths:
        end = start + taps - 1 + length
        before.append(torch.arange(start, start + taps - 1))
        tokens.append(torch.arange(start + taps - 1, end))
        last.append(torch.arange(end - (taps - 1), end))
        start = end
    return torch.cat(tokens).to(device), torch.cat(before).to(device), torch.cat(last).to(device)


def _sum_of_taps(padded: Tensor, weight: Tensor) -> Tensor:
    """[rows, channels] → [rows − K + 1, channels] before the activation."""
    rows, taps = len(padded) - weight.shape[1] + 1, weight.shape[1]
    total = padded[taps - 1 :] * weight[:, taps - 1]
    for tap in range(taps - 1):
        total.addcmul_(padded[tap : tap + rows], weight[:, tap])
    return total


class _ShiftedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, initial: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        channels, taps = weight.shape
        tokens, before, last = _places(lengths, taps, x.device)
        padded = x.new_empty(len(tokens) + len(before), channels)
        padded.index_copy_(0, tokens, x.flatten(0, 1)).index_copy_(0, before, initial.flatten(0, 1))
        ctx.save_for_backward(padded, weight, tokens, before, last)
        ctx.shapes = x.shape, initial.shape
        y = F.silu(_sum_of_taps(padded, weight.to(x.dtype)), inplace=True).index_select(0, tokens - (taps - 1))
        return y.view(x.shape), padded.index_select(0, last).view(initial.shape)

    @staticmethod
    @first_order("short_conv")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, grad_state = grads
        padded, weight, tokens, before, last = ctx.saved_tensors
        x_shape, initial_shape = ctx.shapes
        taps, w = weight.shape[1], weight.to(padded.dtype)
        rows = len(padded) - taps + 1
        z = _sum_of_taps(padded, w)
        dz = torch.zeros_like(z).index_copy_(0, tokens - (taps - 1), grad_y.flatten(0, 1))
        dz = torch.ops.aten.silu_backward(dz, z)
        dpadded = torch.zeros_like(padded)
        dw = torch.empty_like(w)
        for tap in range(taps):
            dpadded[tap : tap + rows].addcmul_(dz, w[:, tap])
            dw[:, tap] = torch.linalg.vecdot(padded[tap : tap + rows], dz, dim=0)
        dpadded.index_add_(0, last, grad_state.flatten(0, 1))
        return (
            dpadded.index_select(0, tokens).view(x_shape),
            dw.to(weight.dtype),
            dpadded.index_select(0, before).view(initial_shape),
            None,
        )
