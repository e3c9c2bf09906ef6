"""The routed experts with frozen weights and a matrix of low rank beside each of them, which is trained in its place.

The two products of low rank are grouped as those of the experts are: each expert's rows are multiplied by its own thin
factors. The sum of a weight and what is added to it is never formed, and a weight of a narrower type than the tokens is
widened one expert at a time, in the forward and in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, once_differentiable, shape
from gossamer.ops.grouped_mlp import check_experts, runs_natively
from gossamer.ops.grouped_mlp.sorted import blocks_of, sorted_places, sum_by_token
from gossamer.ops.matrix import kernel_arguments
from gossamer.ops.registry import Operation, autocast_input

FROZEN_GROUPED_MLP = Operation("frozen_grouped_mlp")


def frozen_grouped_mlp(
    x: Tensor,
    expert_indices: Tensor,
    expert_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_A: Tensor,
    gate_up_B: Tensor,
    down_A: Tensor,
    down_B: Tensor,
) -> Tensor:
    """Compute `grouped_mlp` with gate_up_proj + gate_up_B gate_up_A and down_proj + down_B down_A for each expert.

    The gradient is that of the tokens, their experts' weights and the four factors.

    Args:
        x: [N, hidden]
        expert_indices: [N, top_k] integers, each in 0 … E − 1
        expert_weights: [N, top_k]
        gate_up_proj: [E, 2·I, hidden], frozen
        down_proj: [E, hidden, I], frozen
        gate_up_A: [E, r, hidden]; r is 0 where nothing is added
        gate_up_B: [E, 2·I, r]
        down_A: [E, s, I]; s is 0 where nothing is added
        down_B: [E, hidden, s]

    Returns:
        y [N, hidden] in x's dtype, or in autocast's dtype under autocast.

    Raises:
        UserError: the shapes, dtypes or devices do not fit, or an index belongs to no expert.
    """
    operation = "frozen_grouped_mlp"
    expert_indices = check_experts(operation, x, expert_indices, expert_weights, gate_up_proj, down_proj)
    factors = {"gate_up_A": gate_up_A, "gate_up_B": gate_up_B, "down_A": down_A, "down_B": down_B}
    check_floats(operation, x=x, **factors)
    for name, weight, A, B in (
        ("gate_up", gate_up_proj, gate_up_A, gate_up_B),
        ("down", down_proj, down_A, down_B),
    ):
        experts, rows, width = weight.shape
        if A.ndim != 3 or A.shape[::2] != (experts, width) or B.shape != (experts, rows, A.shape[1]):
            raise UserError(f"{operation}: {name}_A {shape(A)} and {name}_B {shape(B)} do not fit {shape(weight)}")
    x = autocast_input(x)
    frozen, narrow = (gate_up_proj.detach(), down_proj.detach()), (factor.to(x.dtype) for factor in factors.values())
    y: Tensor = FROZEN_GROUPED_MLP(x.device, x, expert_indices, expert_weights, *frozen, *narrow)
    return y


def reference(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, A1: Tensor, B1: Tensor, A2: Tensor,
    B2: Tensor,
) -> Tensor:  # fmt: skip
    """Add each expert's matrices, and compute one expert after the other on the tokens sent to it."""
    y = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        token, place = torch.where(indices == expert)
        gate_up_sum = gate_up[expert].to(x.dtype) + B1[expert] @ A1[expert]
        down_sum = down[expert].to(x.dtype) + B2[expert] @ A2[expert]
        gate, up = F.linear(x[token], gate_up_sum).chunk(2, dim=-1)
        out = F.linear(F.silu(gate) * up, down_sum) * weights[token, place, None]
        y = y.index_add(0, token, out.to(x.dtype))
    return y


def sorted_by_expert(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, A1: Tensor, B1: Tensor, A2: Tensor,
    B2: Tensor,
) -> Tensor:  # fmt: skip
    """Sort the tokens by expert and multiply each expert's block of rows."""
    y: Tensor = _SortedMLP.apply(x, indices, weights, gate_up, down, A1, B1, A2, B2)
    return y


class _SortedMLP(torch.autograd.Function):
    """`sorted_by_expert` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, A1: Tensor, B1: Tensor,
        A2: Tensor, B2: Tensor,
    ) -> Tensor:  # fmt: skip
        order, rank = sorted_places(indices)
        token = order // indices.shape[1]
        blocks = blocks_of(indices, len(gate_up))

        rows = x.index_select(0, token)
        hidden = x.new_empty(len(rows), gate_up.shape[1])
        for expert, block in blocks:
            torch.mm(rows[block], gate_up[expert].mT.to(x.dtype), out=hidden[block])
            hidden[block].addmm_(rows[block] @ A1[expert].mT, B1[expert].mT)
        gate, up = hidden.chunk(2, dim=1)
        inner = F.silu(gate).mul_(up)
        out = torch.empty_like(rows)
        for expert, block in blocks:
            torch.mm(inner[block], down[expert].mT.to(x.dtype), out=out[block])
            out[block].addmm_(inner[block] @ A2[expert].mT, B2[expert].mT)
        scaled = out.mul_(weights.flatten().index_select(0, order).unsqueeze(1).to(out.dtype))

        ctx.save_for_backward(x, hidden, token, order, rank, weights, gate_up, down, A1, B1, A2, B2)
        ctx.blocks = blocks
        return sum_by_token(scaled, rank, indices.shape[1])

    @staticmethod
    @once_differentiable("frozen_grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, token, order, rank, weights, gate_up, down, A1, B1, A2, B2 = ctx.saved_tensors
        rows = x.index_select(0, token)
        gate, up = hidden.chunk(2, dim=1)
        silu = F.silu(gate)
        inner = silu * up
        weight = weights.flatten().index_select(0, order).unsqueeze(1).to(rows.dtype)
        dout = grads[0].index_select(0, token)  # gradient of the weighted outputs

        # ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩ gives the weights' gradient without the experts' outputs.
        dinner = torch.empty_like(inner)
        dA2, dB2 = torch.zeros_like(A2), torch.zeros_like(B2)
        weighted = inner * weight
        for expert, block in ctx.blocks:
            torch.mm(dout[block], down[expert].to(x.dtype), out=dinner[block])
            thin = dout[block] @ B2[expert]
            dinner[block].addmm_(thin, A2[expert])
            torch.mm(thin.mT, weighted[block], out=dA2[expert])
            torch.mm(dout[block].mT, weighted[block] @ A2[expert].mT, out=dB2[expert])
        dweights = torch.empty_like(weights.flatten())
        dweights[order] = torch.linalg.vecdot(dinner, inner).to(dweights.dtype)

        dinner.mul_(weight)
        dhidden = torch.empty_like(hidden)
        dgate, dup = dhidden.chunk(2, dim=1)
        torch.mul(dinner, silu, out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dinner.mul_(up), gate))
        drows = dout  # which is no longer needed, so its memory is reused
        dA1, dB1 = torch.zeros_like(A1), torch.zeros_like(B1)
        for expert, block in ctx.blocks:
            thin = dhidden[block] @ B1[expert]
            torch.mm(thin.mT, rows[block], out=dA1[expert])
            torch.mm(dhidden[block].mT, rows[block] @ A1[expert].mT, out=dB1[expert])
            torch.mm(dhidden[block], gate_up[expert].to(x.dtype), out=drows[block])
            drows[block].addmm_(thin, A1[expert])
        dx = sum_by_token(drows, rank, weights.shape[1])
        return dx, None, dweights.view_as(weights), None, None, dA1, dB1, dA2, dB2


def native(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, A1: Tensor, B1: Tensor, A2: Tensor,
    B2: Tensor,
) -> Tensor:  # fmt: skip
    """Call the C++ kernels, as `grouped_mlp` does; weights of float32 and of bfloat16 are read as they are stored."""
    if x.dtype == torch.float64 or not runs_natively(len(gate_up)):
        return sorted_by_expert(x, indices, weights, gate_up, down, A1, B1, A2, B2)
    if gate_up.dtype != torch.bfloat16 or down.dtype != torch.bfloat16:
        gate_up, down = gate_up.float(), down.float()
    factors = (factor.float() for factor in (A1, B1, A2, B2))
    y: Tensor = _NativeMLP.apply(x.float(), indices, weights.float(), gate_up, down, *factors)
    return y.to(x.dtype)


class _NativeMLP(torch.autograd.Function):
    """The kernels of ops/native/experts.cpp for frozen weights, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *factors: Tensor
    ) -> Tensor:
        x, indices, weights, gate_up, down = (part.contiguous() for part in (x, indices, weights, gate_up, down))
        A1, B1, A2, B2 = (factor.contiguous() for factor in factors)
        experts, double_width, hidden = gate_up.shape
        order, rank = torch.empty_like(indices).flatten(), torch.empty_like(indices).flatten()
        offsets = indices.new_empty(experts + 1)
        kernels.call("sort_by_expert", indices, len(order), experts, order, rank, offsets)
        inner, outputs = x.new_empty(len(order), double_width), x.new_empty(len(order), hidden)
        y = torch.empty_like(x)
        sizes = len(x), indices.shape[1], experts, hidden, double_width // 2
        matrices = gate_up, down, kernel_arguments(gate_up)[2], A1, B1, A1.shape[1], A2, B2, A2.shape[1]
        kernels.call("frozen_experts", x, order, rank, offsets, weights, *matrices, inner, outputs, y, *sizes)
        ctx.save_for_backward(x, order, rank, offsets, weights, gate_up, down, inner, A1, B1, A2, B2)
        ctx.sizes = sizes
        return y

    @staticmethod
    @once_differentiable("frozen_grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, order, rank, offsets, weights, gate_up, down, inner, A1, B1, A2, B2 = ctx.saved_tensors
        drows, dx, dweights = x.new_empty(len(order), x.shape[1]), torch.empty_like(x), torch.empty_like(weights)
        dfactors = [torch.empty_like(factor) for factor in (A1, B1, A2, B2)]
        inputs = grads[0].contiguous(), x, order, rank, offsets, weights
        matrices = gate_up, down, kernel_arguments(gate_up)[2], A1, B1, A1.shape[1], A2, B2, A2.shape[1]
        kernels.call("frozen_experts_backward", *inputs, *matrices, inner, drows, dx, dweights, *dfactors, *ctx.sizes)
        return dx, None, dweights, None, None, *dfactors


FROZEN_GROUPED_MLP.register("native", native, kernels.obstacle)
FROZEN_GROUPED_MLP.register("sorted", sorted_by_expert)
FROZEN_GROUPED_MLP.register("reference", reference)
