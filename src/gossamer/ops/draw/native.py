"""Rows of logits in one call of ops/native/draw.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops import native as kernels


def native(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """See `draw`."""
    tokens = torch.empty(len(logits), dtype=torch.int64)
    kernels.call("draw", logits.contiguous(), temperatures, keys, tokens, *logits.shape)
    return tokens
