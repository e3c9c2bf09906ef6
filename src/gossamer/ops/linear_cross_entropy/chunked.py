"""The loss a few tokens at a time, the gradient computed while the logits are at hand.

The loss is a sum, so its gradient with respect to the logits, softmax − one-hot, is known as soon as they are: each
chunk's logits are turned into it in place and spent at once on the gradients of hidden and weight. What is kept for
the backward pass are those two, no larger than the inputs (as in Liger Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import first_order

CHUNK_BYTES = 8 << 20  # of logits held at once
# An accelerator's products need more rows to be efficient, and each chunk costs it one pass over the weight's gradient.
ACCELERATOR_CHUNKS = 32


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `linear_cross_entropy`."""
    return in_blocks(hidden, weight, labels, bias, softmax_loss)


def in_blocks(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softmax_loss: Callable[[Tensor, Tensor], Tensor],
    narrow: bool = False,
) -> Tensor:
    """The loss block by block, each block of logits turned into its gradient by `softmax_loss` and spent at once.

    It gets the logits in float32 (float64 if hidden is), or, if `narrow`, in the type of hidden, as the product is.
    """
    if not torch.is_grad_enabled():  # `needs_input_grad` below would still speak of the weight's gradient
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, bias, softmax_loss, narrow)
    return loss


def softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses of a block of logits [rows, V], which become their gradient, softmax − one-hot.

    Rows with a negative label have no loss and a gradient of zero.
    """
    valid = (labels >= 0).to(logits.dtype).unsqueeze(1)
    index = labels.clamp(min=0).unsqueeze(1)
    normaliser = logits.logsumexp(1, keepdim=True)
    total = ((normaliser - logits.gather(1, index)) * valid).sum()
    logits.sub_(normaliser).exp_().mul_(valid).scatter_add_(1, index, -valid)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        softmax_loss: Callable[[Tensor, Tensor], Tensor],
        narrow: bool,
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=dtype)
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        w = weight.to(hidden.dtype)
        b = None if bias is None else bias.to(hidden.dtype)
        chunk_bytes = CHUNK_BYTES * (ACCELERATOR_CHUNKS if devices.is_accelerator(hidden.device) else 1)
        rows = max(1, chunk_bytes // (len(weight) * dtype.itemsize))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            h = hidden[part]
            logits = (h @ w.mT if b is None else torch.addmm(b, h, w.mT)).to(hidden.dtype if narrow else dtype)
            total += softmax_loss(logits, labels[part])
            dlogits = logits.to(hidden.dtype)
            if dhidden is not None:
                torch.mm(dlogits, w, out=dhidden[part])
            if dweight is None:
                continue
            if dweight.dtype == dlogits.dtype:
                dweight.addmm_(dlogits.mT, h)
            else:
                dweight += dlogits.mT @ h
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @first_order("linear_cross_entropy")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = grads[0]
        return (
            None if dhidden is None else (dhidden * scale.to(dhidden.dtype)),
            None if dweight is None else (dweight * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )
