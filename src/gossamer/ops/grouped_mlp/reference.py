"""The routed experts one after the other, each on the tokens sent to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(x: Tensor, expert_ids: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """See `grouped_mlp`."""
    y = torch.zeros_like(x)
    for expert in range(len(gate_up_proj)):
        token, place = torch.where(expert_ids == expert)
        gate, up = F.linear(x[token], gate_up_proj[expert].to(x.dtype)).chunk(2, dim=-1)
        out = F.linear(F.silu(gate) * up, down_proj[expert].to(x.dtype)) * weights[token, place, None]
        y = y.index_add(0, token, out.to(x.dtype))
    return y
