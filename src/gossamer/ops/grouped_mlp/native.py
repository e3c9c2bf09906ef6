"""The routed experts by the kernels of ops/native/experts.cpp: experts in parallel, products single-threaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.checks import first_order
from gossamer.ops.grouped_mlp.sorted import by_expert


def native(x: Tensor, expert_ids: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """See `grouped_mlp`. float64, and experts too few to keep the threads busy, take the path of PyTorch."""
    if x.dtype == torch.float64 or not runs_natively(len(gate_up_proj)):
        return by_expert(x, expert_ids, weights, gate_up_proj, down_proj)
    y: Tensor = _Experts.apply(x.float(), expert_ids, weights.float(), gate_up_proj.float(), down_proj.float())
    return y.to(x.dtype)


def runs_natively(experts: int) -> bool:
    """Whether so many experts keep the threads busy."""
    return experts >= 2 * torch.get_num_threads()


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        x, ids, weights, gate_up, down = (part.contiguous() for part in (x, ids, weights, gate_up, down))
        experts, twice, hidden = gate_up.shape
        order, rank = torch.empty_like(ids).flatten(), torch.empty_like(ids).flatten()
        offsets = ids.new_empty(experts + 1)
        kernels.call("sort_by_expert", ids, len(order), experts, order, rank, offsets)
        inner, outputs, y = x.new_empty(len(order), twice), x.new_empty(len(order), hidden), torch.empty_like(x)
        sizes = len(x), ids.shape[1], experts, hidden, twice // 2
        kernels.call("experts", x, order, rank, offsets, weights, gate_up, down, inner, outputs, y, *sizes)
        ctx.save_for_backward(x, order, rank, offsets, weights, gate_up, down, inner)
        ctx.sizes = sizes
        return y

    @staticmethod
    @first_order("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, order, rank, offsets, weights, gate_up, down, inner = ctx.saved_tensors
        dy = grads[0].contiguous()
        drows, dx, dweights = x.new_empty(len(order), x.shape[1]), torch.empty_like(x), torch.empty_like(weights)
        dgate_up, ddown = torch.empty_like(gate_up), torch.empty_like(down)
        inputs = dy, x, order, rank, offsets, weights, gate_up, down, inner
        kernels.call("experts_backward", *inputs, drows, dx, dweights, dgate_up, ddown, *ctx.sizes)
        return dx, None, dweights, dgate_up, ddown
