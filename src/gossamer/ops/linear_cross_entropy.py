"""The output head and its loss in one: cross-entropy of hidden · weightᵀ without holding all the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_indices, not_none, once_differentiable, shape
from gossamer.ops.linear import linear
from gossamer.ops.registry import Operation, autocast_input, deferred

__all__ = ["IGNORED", "linear_cross_entropy", "rows_of_chunk"]

LINEAR_CROSS_ENTROPY = Operation("linear_cross_entropy")
IGNORED = -100  # the label of a token that is not predicted, as in the losses of Hugging Face and PyTorch
CHUNK_BYTES = 8 << 20  # size of the logits held at once
# A large vocabulary has few rows in as many bytes. Each chunk reads the whole weight, so they are then this many.
MIN_ROWS, ROWS_OF_LARGE_VOCABULARY = 32, 128
# Tokens without a label are left out where they are more than this share, on a CPU: elsewhere the host would wait.
MAX_UNLABELED = 1 / 8
# An accelerator's products need more rows to be efficient, and each chunk costs it one pass over the weight's gradient.
ACCELERATOR_CHUNKS = 32


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum −log softmax(hidden · weightᵀ + bias)[label] over the tokens, in nats.

    Args:
        hidden: [N, hidden]
        weight: [V, hidden]
        labels: [N] integers (already shifted), each in 0 … V − 1, or −100 where nothing is predicted
        bias: [V] floating point; it is taken as a constant and gets no gradient; None is zero

    Returns:
        The sum, a scalar in float32, or in float64 if hidden is.

    Raises:
        UserError: the shapes, dtypes or devices do not fit, or a label is not a row of the weight.
    """
    check_floats("linear_cross_entropy", hidden=hidden, weight=weight, **not_none(bias=bias))
    fit = hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1]
    if not fit or not min(weight.shape) or (bias is not None and bias.shape != weight.shape[:1]):
        and_bias = "" if bias is None else f", bias {shape(bias)}"
        raise UserError(f"linear_cross_entropy: hidden {shape(hidden)}, weight {shape(weight)}{and_bias} do not fit")
    labels = check_indices(
        "linear_cross_entropy", "labels", labels, len(weight), hidden.device, ignored=IGNORED, of="vocabulary"
    )
    if labels.shape != hidden.shape[:1]:
        raise UserError(f"linear_cross_entropy: labels {shape(labels)} must be {[len(hidden)]}, one for each token")
    bias = None if bias is None else bias.detach()
    if hidden.device.type == "cpu":
        hidden, labels = _without_unlabeled(hidden, labels)
    loss: Tensor = LINEAR_CROSS_ENTROPY(hidden.device, autocast_input(hidden), weight, labels, bias)
    return loss


def _without_unlabeled(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens that have a label, where the others would be multiplied with the weight for little."""
    rows = (labels != IGNORED).nonzero().squeeze(1)
    if len(rows) >= (1 - MAX_UNLABELED) * len(labels):
        return hidden, labels
    return hidden.index_select(0, rows), labels.index_select(0, rows)


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the loss from the full logits."""
    logits = F.linear(hidden, weight.to(hidden.dtype)).to(torch.promote_types(hidden.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the loss a few tokens at a time, and the gradient while their logits are at hand."""
    return loss_in_chunks(hidden, weight, labels, bias, softmax_losses)


def loss_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softmax_losses: Callable[[Tensor, Tensor], Tensor],
    cast_to_input_dtype: bool = False,
) -> Tensor:
    """Compute the loss chunk by chunk with `softmax_losses`, which turns a chunk of logits into their gradient.

    The loss is a sum, so its gradient with respect to the logits, softmax − one-hot, is known as soon as they are. Each
    chunk's logits are replaced by it and used at once for the gradients of hidden and weight. Only those two are saved
    for the backward pass, and they are no larger than the inputs (as in Liger Kernel, arXiv 2410.10989).

    Args:
        hidden: [N, hidden]
        weight: [V, hidden]
        labels: [N] int64
        bias: [V] or None
        softmax_losses: takes logits [rows, V] and labels [rows] and works as the function of that name below
        cast_to_input_dtype: whether `softmax_losses` takes the logits in the dtype of hidden and not in float32
    """
    if not torch.is_grad_enabled():  # otherwise `needs_input_grad` would still ask for the weight's gradient
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, bias, softmax_losses, cast_to_input_dtype)
    return loss


def softmax_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the losses [rows] of a chunk of logits [rows, V], which are replaced by their gradient, softmax − one-hot.

    Rows with a negative label have no loss and a gradient of zero.
    """
    valid = (labels >= 0).to(logits.dtype).unsqueeze(1)
    index = labels.clamp(min=0).unsqueeze(1)
    normalizer = logits.logsumexp(1, keepdim=True)
    losses = ((normalizer - logits.gather(1, index)) * valid).squeeze(1)
    logits.sub_(normalizer).exp_().mul_(valid).scatter_add_(1, index, -valid)
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """`loss_in_chunks` with its gradient, which the forward pass has computed already."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        softmax_losses: Callable[[Tensor, Tensor], Tensor],
        cast_to_input_dtype: bool,
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=dtype)
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        # Without gradients, a narrower weight is only ever read, and is not widened as a whole.
        w = weight.to(hidden.dtype) if needs_hidden or needs_weight else weight
        b = None if bias is None else bias.to(hidden.dtype)
        rows = rows_of_chunk(len(weight) * dtype.itemsize, devices.is_accelerator(hidden.device))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            h = hidden[chunk]
            logits = linear(h, w, b).to(hidden.dtype if cast_to_input_dtype else dtype)
            total += softmax_losses(logits, labels[chunk]).sum()
            dlogits = logits.to(hidden.dtype)
            if dhidden is not None:
                torch.mm(dlogits, w, out=dhidden[chunk])
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
    @once_differentiable("linear_cross_entropy")
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


def rows_of_chunk(row_bytes: int, is_accelerator: bool = False) -> int:
    """Return how many rows of logits, of so many bytes each, are held at once."""
    rows = max(1, CHUNK_BYTES * (ACCELERATOR_CHUNKS if is_accelerator else 1) // row_bytes)
    return rows if rows >= MIN_ROWS else ROWS_OF_LARGE_VOCABULARY


def native(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the loss in chunks with the C++ kernel; hidden states of other dtypes than float32 go to `chunked`."""
    if hidden.dtype != torch.float32:
        return chunked(hidden, weight, labels, bias)
    return loss_in_chunks(hidden, weight, labels, bias, native_softmax_losses)


def native_softmax_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Call ops/native/cross_entropy.cpp, which does what `softmax_losses` does."""
    losses = logits.new_empty(len(logits))
    kernels.call("softmax_loss", logits, labels.contiguous(), losses, *logits.shape)
    return losses


LINEAR_CROSS_ENTROPY.register("native", native, kernels.obstacle)
LINEAR_CROSS_ENTROPY.register(
    "triton",
    deferred("gossamer.ops.triton.linear_cross_entropy", "linear_cross_entropy"),
    devices.triton_obstacle,
    devices.is_accelerator,
)
LINEAR_CROSS_ENTROPY.register("chunked", chunked)
LINEAR_CROSS_ENTROPY.register("reference", reference)
