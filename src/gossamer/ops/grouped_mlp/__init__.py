"""The routed experts: SwiGLU networks to which tokens are sent, and whose outputs are summed by weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_indices, once_differentiable, shape
from gossamer.ops.grouped_mlp.grouped_mm import grouped_mm
from gossamer.ops.grouped_mlp.sorted import sorted_by_expert
from gossamer.ops.matrix import kernel_arguments
from gossamer.ops.registry import Operation, autocast_input

__all__ = ["check_experts", "grouped_mlp", "runs_natively"]

GROUPED_MLP = Operation("grouped_mlp")


def grouped_mlp(
    x: Tensor, expert_indices: Tensor, expert_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Compute y_n = Σ_j expert_weights_nj · D_e (SiLU(G_e x_n) ⊙ U_e x_n) with e = expert_indices_nj.

    Tokens are independent of each other, so the boundaries of packed documents do not matter here.

    Args:
        x: [N, hidden]
        expert_indices: [N, top_k] integers, each in 0 … E − 1
        expert_weights: [N, top_k]
        gate_up_proj: [E, 2·I, hidden], the rows of G before those of U
        down_proj: [E, hidden, I]

    Returns:
        y [N, hidden] in x's dtype, or in autocast's dtype under autocast.

    Raises:
        UserError: the shapes, dtypes or devices do not fit, or an index belongs to no expert.
    """
    expert_indices = check_experts("grouped_mlp", x, expert_indices, expert_weights, gate_up_proj, down_proj)
    y: Tensor = GROUPED_MLP(x.device, autocast_input(x), expert_indices, expert_weights, gate_up_proj, down_proj)
    return y


def check_experts(
    operation: str, x: Tensor, expert_indices: Tensor, expert_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Return the indices in int64, or refuse tokens and experts that do not fit; the arguments are `grouped_mlp`'s.

    Raises:
        UserError: the shapes, dtypes or devices do not fit, or an index belongs to no expert.
    """
    check_floats(operation, x=x, expert_weights=expert_weights, gate_up_proj=gate_up_proj, down_proj=down_proj)
    if gate_up_proj.ndim != 3 or gate_up_proj.shape[1] % 2 or not min(gate_up_proj.shape):
        raise UserError(f"{operation}: gate_up_proj {shape(gate_up_proj)} must be [experts, 2 * width, hidden]")
    experts, double_width, hidden = gate_up_proj.shape
    expert_indices = check_indices(operation, "expert_indices", expert_indices, experts, x.device, of="experts")
    fit = x.ndim == expert_indices.ndim == 2 and x.shape[1] == hidden and len(expert_indices) == len(x)
    if not fit or expert_indices.shape != expert_weights.shape or not expert_indices.shape[1]:
        raise UserError(
            f"{operation}: x {shape(x)}, expert_indices {shape(expert_indices)} and expert_weights "
            f"{shape(expert_weights)} do not fit experts of width {hidden}"
        )
    if down_proj.shape != (experts, hidden, double_width // 2):
        raise UserError(f"{operation}: down_proj {shape(down_proj)} must be {[experts, hidden, double_width // 2]}")
    return expert_indices


def reference(
    x: Tensor, expert_indices: Tensor, expert_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Compute one expert after the other, each on the tokens sent to it."""
    y = torch.zeros_like(x)
    for expert in range(len(gate_up_proj)):
        token, place = torch.where(expert_indices == expert)
        gate, up = F.linear(x[token], gate_up_proj[expert].to(x.dtype)).chunk(2, dim=-1)
        out = F.linear(F.silu(gate) * up, down_proj[expert].to(x.dtype)) * expert_weights[token, place, None]
        y = y.index_add(0, token, out.to(x.dtype))
    return y


def native(
    x: Tensor, expert_indices: Tensor, expert_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Call the C++ kernels, which compute experts in parallel and each product on a single thread.

    float64, and experts that are too few to keep the threads busy, go to `sorted_by_expert`.
    """
    if x.dtype == torch.float64 or not runs_natively(len(gate_up_proj)):
        return sorted_by_expert(x, expert_indices, expert_weights, gate_up_proj, down_proj)
    if torch.is_grad_enabled() or gate_up_proj.dtype != torch.bfloat16 or down_proj.dtype != torch.bfloat16:
        gate_up_proj, down_proj = gate_up_proj.float(), down_proj.float()
    y: Tensor = _NativeGroupedMLP.apply(x.float(), expert_indices, expert_weights.float(), gate_up_proj, down_proj)
    return y.to(x.dtype)


def runs_natively(experts: int) -> bool:
    """Whether so many experts keep the threads busy, so that the native kernels compute them."""
    return experts >= 2 * torch.get_num_threads()


class _NativeGroupedMLP(torch.autograd.Function):
    """The kernels of ops/native/experts.cpp, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        x, indices, weights, gate_up, down = (part.contiguous() for part in (x, indices, weights, gate_up, down))
        experts, double_width, hidden = gate_up.shape
        order, rank = torch.empty_like(indices).flatten(), torch.empty_like(indices).flatten()
        offsets = indices.new_empty(experts + 1)
        kernels.call("sort_by_expert", indices, len(order), experts, order, rank, offsets)
        inner, outputs = x.new_empty(len(order), double_width), x.new_empty(len(order), hidden)
        y = torch.empty_like(x)
        sizes = len(x), indices.shape[1], experts, hidden, double_width // 2
        matrices = gate_up, down, kernel_arguments(gate_up)[2]
        kernels.call("experts", x, order, rank, offsets, weights, *matrices, inner, outputs, y, *sizes)
        ctx.save_for_backward(x, order, rank, offsets, weights, gate_up, down, inner)
        ctx.sizes = sizes
        return y

    @staticmethod
    @once_differentiable("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, order, rank, offsets, weights, gate_up, down, inner = ctx.saved_tensors
        dy = grads[0].contiguous()
        drows, dx, dweights = x.new_empty(len(order), x.shape[1]), torch.empty_like(x), torch.empty_like(weights)
        dgate_up, ddown = torch.empty_like(gate_up), torch.empty_like(down)
        inputs = dy, x, order, rank, offsets, weights, gate_up, down, inner
        kernels.call("experts_backward", *inputs, drows, dx, dweights, dgate_up, ddown, *ctx.sizes)
        return dx, None, dweights, dgate_up, ddown


GROUPED_MLP.register("native", native, kernels.obstacle)
GROUPED_MLP.register("grouped_mm", grouped_mm, devices.grouped_mm_obstacle, devices.is_accelerator)
GROUPED_MLP.register("sorted", sorted_by_expert)
GROUPED_MLP.register("reference", reference)
