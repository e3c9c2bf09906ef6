"""The loss a few tokens at a time, as in chunked.py, with one kernel between the two products.

PyTorch's own functions read and write a chunk's logits some ten times on the way from logits to softmax − one-hot;
here each row is read twice and written once, in the narrow type that the products give and want.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.linear_cross_entropy.chunked import in_blocks
from gossamer.ops.tiles import accumulator, padded

BLOCK = 4096  # logits that a program holds at once


def kernels(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `linear_cross_entropy`."""
    return in_blocks(hidden, weight, labels, bias, softmax_loss, narrow=True)


def softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As in chunked.py, for logits of any type."""
    losses = torch.empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    block = min(BLOCK, padded(logits.shape[1]))
    with devices.current(logits.device):
        _softmax_loss[(len(logits),)](
            logits, labels.contiguous(), losses, logits.shape[1], BLOCK=block, ACC=accumulator(logits.dtype)
        )
    return losses.sum()


@triton.jit
def _softmax_loss(logits_at, labels_at, losses_at, vocab, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """One row: a running maximum and the sum of exponentials beside it, then softmax − one-hot written over the row."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_at + row)
    places = tl.arange(0, BLOCK)
    logits_at += row * vocab
    # Read before the sums below, at which the program's threads wait for one another: below they overwrite it.
    known = (label >= 0) & (label < vocab)
    at_label = tl.load(logits_at + label, mask=known, other=0.0).to(ACC)
    most = tl.full([BLOCK], float("-inf"), dtype=ACC)
    total = tl.zeros([BLOCK], dtype=ACC)
    for start in range(0, vocab, BLOCK):
        mask = start + places < vocab
        x = tl.load(logits_at + start + places, mask=mask, other=float("-inf")).to(ACC)
        more = tl.maximum(most, x)
        # A lane that has seen nothing yet holds −∞ and must not take its difference from −∞.
        safe = tl.where(more == float("-inf"), 0.0, more)
        total = total * tl.exp(most - safe) + tl.exp(x - safe)
        most = more
    highest = tl.max(most, 0)
    normaliser = highest + tl.log(tl.sum(total * tl.exp(most - highest), 0))
    # A label beyond the vocabulary is told by the loss: to look at it sooner, the host would have to wait.
    tl.store(losses_at + row, tl.where(known, normaliser - at_label, tl.where(label < 0, 0.0, float("nan"))))
    for start in range(0, vocab, BLOCK):
        mask = start + places < vocab
        x = tl.load(logits_at + start + places, mask=mask, other=float("-inf")).to(ACC)
        dx = tl.exp(x - normaliser) - tl.where(start + places == label, 1.0, 0.0)
        dx = tl.where(known, dx, 0.0)
        tl.store(logits_at + start + places, dx.to(logits_at.dtype.element_ty), mask=mask)
