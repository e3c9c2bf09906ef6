"""The loss a block of tokens at a time, its gradient made in place of the logits (ops/native/cross_entropy.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.linear_cross_entropy.chunked import chunked, in_blocks


def native(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `linear_cross_entropy`. float64 and bfloat16 take the path of PyTorch's functions."""
    if hidden.dtype != torch.float32 or weight.dtype != torch.float32:
        return chunked(hidden, weight, labels, bias)
    return in_blocks(hidden, weight, labels, bias, softmax_loss)


def softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """See `chunked.softmax_loss`."""
    losses = logits.new_empty(len(logits))
    kernels.call("softmax_loss", logits, labels.contiguous(), losses, *logits.shape)
    return losses.sum()
