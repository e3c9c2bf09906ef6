"""The gated norm in one Triton kernel per direction, which reads input and gate once and stores nothing in between."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import once_differentiable
from gossamer.ops.triton.tiles import accumulator, padded

TILE = 4096  # elements that a program holds at once


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute the gated norm; the arguments are those of `gossamer.ops.gated_rms_norm`."""
    y: Tensor = _GatedRMSNorm.apply(x, gate, weight, eps)
    return y


class _GatedRMSNorm(torch.autograd.Function):
    """The two kernels below, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, gate = x.contiguous(), gate.contiguous()
        y = torch.empty_like(gate)
        ctx.save_for_backward(x, gate, weight)
        ctx.eps = eps
        if y.numel():
            grid, shape = _launch(x, eps)
            with devices.device_context(x.device):
                _forward[grid](x, gate, weight.contiguous(), y, x.numel() // x.shape[-1], **shape)
        return y

    @staticmethod
    @once_differentiable("gated_rms_norm")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        dx, dgate = torch.empty_like(x), torch.empty_like(gate)
        if not x.numel():
            return dx, dgate, torch.zeros_like(weight), None
        grid, shape = _launch(x, ctx.eps)
        dtype = torch.promote_types(x.dtype, torch.float32)
        parts = torch.empty(*grid, x.shape[-1], dtype=dtype, device=x.device)
        with devices.device_context(x.device):
            _backward[grid](
                x, gate, weight.contiguous(), grads[0].contiguous(), dx, dgate, parts, x.numel() // x.shape[-1], **shape
            )
        return dx, dgate, parts.sum(0).to(weight.dtype), None


def _launch(x: Tensor, eps: float) -> tuple[tuple[int], dict[str, Any]]:
    """Choose the grid over blocks of rows and the constants for which the kernels are compiled."""
    width = x.shape[-1]
    block = padded(width)
    rows = max(1, TILE // block)
    shape = {"EPS": eps, "WIDTH": width, "BLOCK": block, "ROWS": rows, "ACC": accumulator(x.dtype)}
    return (triton.cdiv(x.numel() // width, rows),), shape


@triton.jit
def _load_rows(pointer, rows, columns, mask, WIDTH: tl.constexpr, ACC: tl.constexpr):
    return tl.load(pointer + rows[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _forward(
    x_at,
    gate_at,
    weight_at,
    y_at,
    num_rows,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    x = _load_rows(x_at, rows, columns, mask, WIDTH, ACC)
    gate = _load_rows(gate_at, rows, columns, mask, WIDTH, ACC)
    weight = tl.load(weight_at + columns, mask=columns < WIDTH, other=0.0).to(ACC)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + EPS)
    y = x * inverse[:, None] * weight[None, :] * gate / (1.0 + tl.exp(-gate))
    tl.store(y_at + rows[:, None] * WIDTH + columns[None, :], y.to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    x_at,
    gate_at,
    weight_at,
    dy_at,
    dx_at,
    dgate_at,
    dweight_at,
    num_rows,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Compute dx = rsqrt(…) (dn − n · mean(n · dn)) with n = x · rsqrt(mean x² + ε), dgate, and dweight by block."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    x = _load_rows(x_at, rows, columns, mask, WIDTH, ACC)
    gate = _load_rows(gate_at, rows, columns, mask, WIDTH, ACC)
    dy = _load_rows(dy_at, rows, columns, mask, WIDTH, ACC)
    weight = tl.load(weight_at + columns, mask=columns < WIDTH, other=0.0).to(ACC)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + EPS)
    normed = x * inverse[:, None]
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    dgate = dy * normed * weight[None, :] * (sigmoid + silu * (1.0 - sigmoid))
    dnormed = dy * silu * weight[None, :]
    dx = inverse[:, None] * (dnormed - normed * (tl.sum(normed * dnormed, 1) / WIDTH)[:, None])
    offsets = rows[:, None] * WIDTH + columns[None, :]
    tl.store(dx_at + offsets, dx.to(dx_at.dtype.element_ty), mask=mask)
    tl.store(dgate_at + offsets, dgate.to(dgate_at.dtype.element_ty), mask=mask)
    part = tl.sum(dy * silu * normed, 0)
    tl.store(dweight_at + tl.program_id(0).to(tl.int64) * WIDTH + columns, part, mask=columns < WIDTH)
