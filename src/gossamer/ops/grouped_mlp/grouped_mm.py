"""The routed experts through PyTorch's grouped matrix product: all experts in one call, no read-back from the device.

Tokens are sorted by expert as in sorted.py, but the ends of the experts' rows stay on the device. The grouped product
needs bfloat16 on a GPU (the CPU's simple form also takes float32) and rows whose size is a multiple of 16 bytes.
Everything else goes to `sorted_by_expert`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import once_differentiable
from gossamer.ops.grouped_mlp.sorted import sorted_by_expert, sum_by_token

ALIGNMENT = 16  # bytes


def grouped_mm(
    x: Tensor, expert_indices: Tensor, expert_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Multiply all experts' rows in one grouped product; the arguments are those of `grouped_mlp`."""
    is_aligned = all(width * x.itemsize % ALIGNMENT == 0 for width in down_proj.shape[1:])
    is_supported = x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and not devices.is_accelerator(x.device))
    if not (is_aligned and is_supported and len(x)):
        return sorted_by_expert(x, expert_indices, expert_weights, gate_up_proj, down_proj)
    gate_up, down = (stack.to(x.dtype).contiguous() for stack in (gate_up_proj, down_proj))
    y: Tensor = _GroupedMM.apply(x, expert_indices, expert_weights, gate_up, down)
    return y


class _GroupedMM(torch.autograd.Function):
    """`grouped_mm` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        top_k = indices.shape[1]
        order = indices.flatten().argsort(stable=True)  # row of the sorted buffer → assignment n·top_k + j
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        token = order // top_k
        counts = torch.bincount(indices.flatten(), minlength=len(gate_up))
        ends = counts.cumsum(0).to(torch.int32)

        rows = x.index_select(0, token)
        hidden = F.grouped_mm(rows, gate_up.mT, offs=ends)
        gate, up = hidden.chunk(2, dim=1)
        inner = F.silu(gate).mul_(up)
        out = F.grouped_mm(inner, down.mT, offs=ends)
        scaled = out * weights.flatten().index_select(0, order).unsqueeze(1).to(out.dtype)
        ctx.save_for_backward(rows, hidden, inner, token, order, rank, weights, gate_up, down, ends, counts == 0)
        return sum_by_token(scaled, rank, top_k)

    @staticmethod
    @once_differentiable("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, inner, token, order, rank, weights, gate_up, down, ends, is_idle = ctx.saved_tensors
        gate, up = hidden.chunk(2, dim=1)
        weight = weights.flatten().index_select(0, order).unsqueeze(1).to(rows.dtype)
        grad_rows = grads[0].to(rows.dtype).index_select(0, token)  # gradient of the weighted outputs

        dinner = F.grouped_mm(grad_rows, down, offs=ends)
        ddown = _weight_gradient(grad_rows, inner * weight, ends, is_idle)
        # ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩ gives the weights' gradient without the experts' outputs.
        dweights = torch.empty_like(weights.flatten())
        dweights[order] = torch.linalg.vecdot(dinner, inner).to(dweights.dtype)

        dinner = dinner * weight
        dhidden = torch.empty_like(hidden)
        dgate, dup = dhidden.chunk(2, dim=1)
        torch.mul(dinner, F.silu(gate), out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dinner.mul_(up), gate))
        drows = F.grouped_mm(dhidden, gate_up, offs=ends)
        dgate_up = _weight_gradient(dhidden, rows, ends, is_idle)
        dx = sum_by_token(drows, rank, weights.shape[1])
        return dx, None, dweights.view_as(weights), dgate_up, ddown


def _weight_gradient(left: Tensor, right: Tensor, ends: Tensor, is_idle: Tensor) -> Tensor:
    """Compute leftᵀ · right over each expert's rows: [rows, m], [rows, n] → [E, m, n].

    The results of experts without rows are zeroed here: on some chips the grouped product leaves their memory as it was
    (pytorch/pytorch#172439).
    """
    return F.grouped_mm(left.mT, right, offs=ends).masked_fill_(is_idle.view(-1, 1, 1), 0.0)
