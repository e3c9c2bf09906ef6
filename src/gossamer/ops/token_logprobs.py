"""The output head and the log-probability of every target, without holding all the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_indices, once_differentiable, shape
from gossamer.ops.linear import linear
from gossamer.ops.linear_cross_entropy import IGNORED, native_softmax_losses, rows_of_chunk, softmax_losses
from gossamer.ops.registry import Operation, autocast_input, deferred

__all__ = ["token_logprobs"]

TOKEN_LOGPROBS = Operation("token_logprobs")
# Logits up to this size are kept for the backward pass; more of them are computed again, which costs a third more.
KEPT_BYTES = 32 << 20


def token_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Compute log softmax(hidden · weightᵀ)[label] of every token that has a label, in nats.

    Tokens without a label are never multiplied with the weight.

    Args:
        hidden: [N, hidden]
        weight: [V, hidden]
        labels: [N] integers (already shifted), each in 0 … V − 1, or −100 where nothing is predicted

    Returns:
        [number of labels] in the order of the tokens, in float32, or in float64 if hidden is.

    Raises:
        UserError: the shapes, dtypes or devices do not fit, or a label is not a row of the weight.
    """
    check_floats("token_logprobs", hidden=hidden, weight=weight)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not min(weight.shape):
        raise UserError(f"token_logprobs: hidden {shape(hidden)}, weight {shape(weight)} do not fit")
    device = hidden.device
    labels = check_indices("token_logprobs", "labels", labels, len(weight), device, ignored=IGNORED, of="vocabulary")
    if labels.shape != hidden.shape[:1]:
        raise UserError(f"token_logprobs: labels {shape(labels)} must be {[len(hidden)]}, one for each token")
    rows = (labels != IGNORED).nonzero().squeeze(1)
    if len(rows) < len(labels):
        hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
    logprobs: Tensor = TOKEN_LOGPROBS(device, autocast_input(hidden), weight, labels)
    return logprobs


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Compute the log-probabilities from the full logits."""
    logits = F.linear(hidden, weight.to(hidden.dtype)).to(torch.promote_types(hidden.dtype, torch.float32))
    return logits.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Compute the log-probabilities a few tokens at a time."""
    return logprobs_in_chunks(hidden, weight, labels, softmax_losses)


def native(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Compute them in chunks with the C++ kernel; hidden states of other dtypes than float32 go to `chunked`."""
    if hidden.dtype != torch.float32:
        return chunked(hidden, weight, labels)
    return logprobs_in_chunks(hidden, weight, labels, native_softmax_losses)


def logprobs_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    softmax_losses: Callable[[Tensor, Tensor], Tensor],
    cast_to_input_dtype: bool = False,
) -> Tensor:
    """Compute log-probabilities and their gradient chunk by chunk.

    The gradient of a token's log-probability is (one-hot − softmax) · weight for its hidden state, and the outer
    product of both for the weight. What reaches each token from the loss is known in the backward pass only, and scales
    its hidden state and not its V logits.

    Args:
        hidden: [N, hidden]
        weight: [V, hidden]
        labels: [N] int64, each a row of the weight
        softmax_losses: as for `linear_cross_entropy.loss_in_chunks`
        cast_to_input_dtype: whether `softmax_losses` takes the logits in the dtype of hidden and not in float32
    """
    if not torch.is_grad_enabled():  # otherwise `needs_input_grad` would still ask for the weight's gradient
        hidden, weight = hidden.detach(), weight.detach()
    logprobs: Tensor = _TokenLogprobs.apply(hidden, weight, labels, softmax_losses, cast_to_input_dtype)
    return logprobs


class _TokenLogprobs(torch.autograd.Function):
    """`logprobs_in_chunks` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        softmax_losses: Callable[[Tensor, Tensor], Tensor],
        cast_to_input_dtype: bool,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        ctx.narrow, ctx.softmax_losses = hidden.dtype if cast_to_input_dtype else wide, softmax_losses
        logprobs = hidden.new_empty(len(hidden), dtype=wide)
        # The weight's gradient needs what the backward pass is given; that of hidden alone only has to be scaled by it.
        dhidden = torch.empty_like(hidden) if needs_hidden and not needs_weight else None
        is_kept = needs_weight and len(hidden) * len(weight) * hidden.dtype.itemsize <= KEPT_BYTES
        kept: list[Tensor] = []
        w = weight.to(hidden.dtype) if needs_hidden or needs_weight else weight
        for chunk in _chunks(hidden, weight):
            losses, dlogits = _chunk_losses(ctx, hidden[chunk], w, labels[chunk])
            torch.neg(losses, out=logprobs[chunk])
            if dhidden is not None:
                torch.mm(dlogits, w, out=dhidden[chunk])
            elif is_kept:
                kept.append(dlogits)
        if dhidden is not None:
            ctx.save_for_backward(dhidden)
        else:
            ctx.save_for_backward(hidden, weight, labels, *kept)
        return logprobs

    @staticmethod
    @once_differentiable("token_logprobs")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        if not needs_weight:
            (dhidden,) = ctx.saved_tensors
            return dhidden * -grads[0].unsqueeze(1).to(dhidden.dtype), None, None, None, None
        hidden, weight, labels, *kept = ctx.saved_tensors
        w = weight.to(hidden.dtype)
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight, dtype=torch.promote_types(hidden.dtype, torch.float32))
        for number, chunk in enumerate(_chunks(hidden, weight)):
            h, scale = hidden[chunk], -grads[0][chunk].unsqueeze(1).to(hidden.dtype)
            dlogits = kept[number] if kept else _chunk_losses(ctx, h, w, labels[chunk])[1]
            if dhidden is not None:
                torch.mul(dlogits @ w, scale, out=dhidden[chunk])
            if dweight.dtype == dlogits.dtype:
                dweight.addmm_(dlogits.mT, h * scale)
            else:
                dweight += dlogits.mT @ (h * scale)
        return dhidden, dweight.to(weight.dtype), None, None, None


def _chunk_losses(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses [rows] of a chunk, and their gradient [rows, V] with respect to its logits."""
    logits = linear(hidden, weight).to(ctx.narrow)
    losses = ctx.softmax_losses(logits, labels)
    return losses, logits.to(hidden.dtype)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Return the tokens whose logits are held at once, chunk after chunk."""
    row_bytes = len(weight) * torch.promote_types(hidden.dtype, torch.float32).itemsize
    rows = rows_of_chunk(row_bytes, devices.is_accelerator(hidden.device))
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]


TOKEN_LOGPROBS.register("native", native, kernels.obstacle)
TOKEN_LOGPROBS.register(
    "triton",
    deferred("gossamer.ops.triton.linear_cross_entropy", "token_logprobs"),
    devices.triton_obstacle,
    devices.is_accelerator,
)
TOKEN_LOGPROBS.register("chunked", chunked)
TOKEN_LOGPROBS.register("reference", reference)
