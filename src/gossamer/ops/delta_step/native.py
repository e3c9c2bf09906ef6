"""The step of a linear-attention layer in one sweep over the state (ops/native/delta_step.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.delta_step.padded import padded
from gossamer.ops.sequences import Sequences

if TYPE_CHECKING:
    from gossamer.ops.delta_step import DeltaMemory, DeltaWeights


def native(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, memory: DeltaMemory, sequences: Sequences) -> Tensor:
    """See `delta_step`. Other types than float32 take the path of PyTorch's functions."""
    tensors = (qkvz, ba, *weights[:-1], *memory)
    if any(x.dtype != torch.float32 for x in tensors):
        return padded(qkvz, ba, weights, memory, sequences)
    _, value_heads, key_dim, value_dim = memory.recurrent.shape
    _, most, key_heads, _ = memory.keys.shape
    y = qkvz.new_empty(len(qkvz), value_heads * value_dim)
    qkvz, ba = qkvz.contiguous(), ba.contiguous()
    sizes = len(sequences.slots), key_heads, value_heads // key_heads, key_dim, value_dim, weights.conv.shape[1], most
    kernels.call("delta_step", qkvz, ba, *weights[:-1], *memory, sequences.steps, y, *sizes, weights.eps)
    return y
