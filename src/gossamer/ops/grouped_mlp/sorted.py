"""The routed experts on tokens sorted by expert, with a hand-written backward pass.

After sorting, each expert's tokens form one block of rows. Every product is a plain matrix product on such a block and
is written directly to its place in one buffer; in the backward pass, that is the stacked gradient of all experts.
Autograd through a loop over experts would allocate a full-size gradient of zeros for each of them.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.checks import once_differentiable


def sorted_by_expert(
    x: Tensor, expert_indices: Tensor, expert_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Sort the tokens by expert and multiply each expert's block of rows; the arguments are those of `grouped_mlp`."""
    gate_up, down = gate_up_proj.to(x.dtype), down_proj.to(x.dtype)
    y: Tensor = _SortedMLP.apply(x, expert_indices, expert_weights, gate_up, down)
    return y


def sorted_places(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort assignments by expert: indices [N, top_k] → the assignment n·top_k + j of each row, and the row of each."""
    order = indices.flatten().argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return order, rank


def blocks_of(indices: Tensor, experts: int) -> list[tuple[int, slice]]:
    """List (expert, its rows) for every expert that has tokens. This is the only read-back from the device."""
    counts = torch.bincount(indices.flatten(), minlength=experts).tolist()
    edges = pairwise(accumulate(counts, initial=0))
    return [(expert, slice(start, end)) for expert, (start, end) in enumerate(edges) if end > start]


class _SortedMLP(torch.autograd.Function):
    """`sorted_by_expert` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        order, rank = sorted_places(indices)
        token = order // indices.shape[1]
        blocks = blocks_of(indices, len(gate_up))

        rows = x.index_select(0, token)
        hidden = x.new_empty(len(rows), gate_up.shape[1])
        for expert, block in blocks:
            torch.mm(rows[block], gate_up[expert].mT, out=hidden[block])
        gate, up = hidden.chunk(2, dim=1)
        inner = F.silu(gate).mul_(up)
        out = torch.empty_like(rows)
        for expert, block in blocks:
            torch.mm(inner[block], down[expert].mT, out=out[block])
        scaled = out.mul_(weights.flatten().index_select(0, order).unsqueeze(1).to(out.dtype))

        ctx.save_for_backward(rows, hidden, inner, token, order, rank, weights, gate_up, down)
        ctx.blocks = blocks
        return sum_by_token(scaled, rank, indices.shape[1])

    @staticmethod
    @once_differentiable("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, inner, token, order, rank, weights, gate_up, down = ctx.saved_tensors
        gate, up = hidden.chunk(2, dim=1)
        weight = weights.flatten().index_select(0, order).unsqueeze(1).to(rows.dtype)
        grad_rows = grads[0].index_select(0, token)  # gradient of the weighted outputs

        dinner = torch.empty_like(inner)
        weighted = inner * weight
        ddown = torch.zeros_like(down)
        for expert, block in ctx.blocks:
            torch.mm(grad_rows[block], down[expert], out=dinner[block])
            torch.mm(grad_rows[block].mT, weighted[block], out=ddown[expert])
        # ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩ gives the weights' gradient without the experts' outputs.
        dweights = torch.empty_like(weights.flatten())
        dweights[order] = torch.linalg.vecdot(dinner, inner).to(dweights.dtype)

        dinner.mul_(weight)
        dhidden = torch.empty_like(hidden)
        dgate, dup = dhidden.chunk(2, dim=1)
        torch.mul(dinner, F.silu(gate), out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dinner.mul_(up), gate))
        drows = grad_rows  # which is no longer needed, so its memory is reused
        dgate_up = torch.zeros_like(gate_up)
        for expert, block in ctx.blocks:
            torch.mm(dhidden[block], gate_up[expert], out=drows[block])
            torch.mm(dhidden[block].mT, rows[block], out=dgate_up[expert])
        dx = sum_by_token(drows, rank, weights.shape[1])
        return dx, None, dweights.view_as(weights), dgate_up, ddown


def sum_by_token(rows: Tensor, rank: Tensor, top_k: int) -> Tensor:
    """Return sorted rows to their tokens and add the `top_k` rows of a token: [N·top_k, hidden] → [N, hidden]."""
    return rows.index_select(0, rank).view(-1, top_k, rows.shape[1]).sum(1)
