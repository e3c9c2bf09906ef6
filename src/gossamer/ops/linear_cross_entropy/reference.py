"""The loss from the full logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `linear_cross_entropy`."""
    logits = F.linear(hidden, weight.to(hidden.dtype)).to(torch.promote_types(hidden.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
