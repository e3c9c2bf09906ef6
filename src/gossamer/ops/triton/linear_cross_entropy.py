"""The chunked loss, and the chunked log-probabilities, with one Triton kernel between the two products.

PyTorch's own functions read and write a chunk's logits about ten times on the way to softmax − one-hot. Here each row
is read twice and written once, in the narrow dtype that the products return and take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.linear_cross_entropy import loss_in_chunks
from gossamer.ops.token_logprobs import logprobs_in_chunks
from gossamer.ops.triton.tiles import accumulator, padded

BLOCK = 4096  # logits that a program holds at once


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the loss in chunks; the arguments are those of `gossamer.ops.linear_cross_entropy`."""
    return loss_in_chunks(hidden, weight, labels, bias, softmax_losses, cast_to_input_dtype=True)


def token_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Compute log-probabilities in chunks; the arguments are those of `gossamer.ops.token_logprobs`, all labeled."""
    return logprobs_in_chunks(hidden, weight, labels, softmax_losses, cast_to_input_dtype=True)


def softmax_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Do what `softmax_losses` of the operation does, for logits of any dtype."""
    losses = torch.empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    block = min(BLOCK, padded(logits.shape[1]))
    with devices.device_context(logits.device):
        _softmax_loss[(len(logits),)](
            logits, labels.contiguous(), losses, logits.shape[1], BLOCK=block, ACC=accumulator(logits.dtype)
        )
    return losses


@triton.jit
def _softmax_loss(logits_at, labels_at, losses_at, vocab, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Find a row's maximum and its sum of exponentials in one pass, then write softmax − one-hot over the row."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_at + row)
    columns = tl.arange(0, BLOCK)
    logits_at += row * vocab
    # The label's logit is read before the sums below, at which the program's threads wait for each other, because the
    # loop after them overwrites it.
    is_known = (label >= 0) & (label < vocab)
    at_label = tl.load(logits_at + label, mask=is_known, other=0.0).to(ACC)
    maximum = tl.full([BLOCK], float("-inf"), dtype=ACC)
    total = tl.zeros([BLOCK], dtype=ACC)
    for start in range(0, vocab, BLOCK):
        mask = start + columns < vocab
        x = tl.load(logits_at + start + columns, mask=mask, other=float("-inf")).to(ACC)
        larger = tl.maximum(maximum, x)
        # A lane that has seen nothing yet holds −∞, and −∞ must not be subtracted from it.
        safe = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(maximum - safe) + tl.exp(x - safe)
        maximum = larger
    highest = tl.max(maximum, 0)
    normalizer = highest + tl.log(tl.sum(total * tl.exp(maximum - highest), 0))
    # A label beyond the vocabulary makes the loss NaN: to check it earlier, the host would have to wait.
    tl.store(losses_at + row, tl.where(is_known, normalizer - at_label, tl.where(label < 0, 0.0, float("nan"))))
    for start in range(0, vocab, BLOCK):
        mask = start + columns < vocab
        x = tl.load(logits_at + start + columns, mask=mask, other=float("-inf")).to(ACC)
        dx = tl.exp(x - normalizer) - tl.where(start + columns == label, 1.0, 0.0)
        dx = tl.where(is_known, dx, 0.0)
        tl.store(logits_at + start + columns, dx.to(logits_at.dtype.element_ty), mask=mask)
