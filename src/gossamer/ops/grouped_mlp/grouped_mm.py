"""The routed experts through PyTorch's grouped matrix product: all experts in one call, no read-back from the device.

Tokens are sorted by expert as in sorted.py; where each expert's rows end stays on the device. The grouped product wants
bfloat16 on a GPU (a CPU's simple form also takes float32) and rows of a multiple of 16 bytes; anything else runs as
sorted.py does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import first_order
from gossamer.ops.grouped_mlp.sorted import by_expert, sum_by_token

ALIGNMENT = 16  # bytes


def grouped_mm(x: Tensor, expert_ids: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """See `grouped_mlp`."""
    aligned = all(width * x.itemsize % ALIGNMENT == 0 for width in down_proj.shape[1:])
    narrow = x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and not devices.is_accelerator(x.device))
    if not (aligned and narrow and len(x)):
        return by_expert(x, expert_ids, weights, gate_up_proj, down_proj)
    gate_up, down = (stack.to(x.dtype).contiguous() for stack in (gate_up_proj, down_proj))
    y: Tensor = _GroupedMLP.apply(x, expert_ids, weights, gate_up, down)
    return y


class _GroupedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        chosen = ids.shape[1]
        order = ids.flatten().argsort(stable=True)  # row of the sorted buffer → assignment n·k + j
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        token = order // chosen
        counts = torch.bincount(ids.flatten(), minlength=len(gate_up))
        ends = counts.cumsum(0).to(torch.int32)

        rows = x.index_select(0, token)
        hidden = F.grouped_mm(rows, gate_up.mT, offs=ends)
        gate, up = hidden.chunk(2, dim=1)
        inner = F.silu(gate).mul_(up)
        out = F.grouped_mm(inner, down.mT, offs=ends)
        scaled = out * weights.flatten().index_select(0, order).unsqueeze(1).to(out.dtype)
        ctx.save_for_backward(rows, hidden, inner, token, order, rank, weights, gate_up, down, ends, counts == 0)
        return sum_by_token(scaled, rank, chosen)

    @staticmethod
    @first_order("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, inner, token, order, rank, weights, gate_up, down, ends, idle = ctx.saved_tensors
        gate, up = hidden.chunk(2, dim=1)
        weight = weights.flatten().index_select(0, order).unsqueeze(1).to(rows.dtype)
        grad_rows = grads[0].to(rows.dtype).index_select(0, token)  # of the weighted outputs

        dinner = F.grouped_mm(grad_rows, down, offs=ends)
        ddown = _weight_gradient(grad_rows, inner * weight, ends, idle)
        # ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩: the weights' gradient without the experts' outputs.
        dweights = torch.empty_like(weights.flatten())
        dweights[order] = torch.linalg.vecdot(dinner, inner).to(dweights.dtype)

        dinner = dinner * weight
        dhidden = torch.empty_like(hidden)
        dgate, dup = dhidden.chunk(2, dim=1)
        torch.mul(dinner, F.silu(gate), out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dinner.mul_(up), gate))
        drows = F.grouped_mm(dhidden, gate_up, offs=ends)
        dgate_up = _weight_gradient(dhidden, rows, ends, idle)
        dx = sum_by_token(drows, rank, weights.shape[1])
        return dx, None, dweights.view_as(weights), dgate_up, ddown


def _weight_gradient(left: Tensor, right: Tensor, ends: Tensor, idle: Tensor) -> Tensor:
    """leftᵀ · right over each expert's rows: [rows, m], [rows, n] → [E, m, n].

    Experts without rows are zeroed here: on some chips the grouped product leaves what lay in their memory
    (pytorch/pytorch#172439).
    """
    return F.grouped_mm(left.mT, right, offs=ends).masked_fill_(idle.view(-1, 1, 1), 0.0)
