"""Attention by the kernels of ops/native/attention.cpp: documents of any lengths in one call, no score matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.attention.sdpa import sdpa
from gossamer.ops.checks import first_order
from gossamer.ops.native.layout import rows_in_place
from gossamer.ops.packing import lengths_tensor


def native(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """See `attention`. float64, bfloat16, and keys from before the queries take the path of PyTorch's functions."""
    if q.dtype != torch.float32 or k.shape[1] != q.shape[1]:
        return sdpa(q, k, v, lengths)
    y: Tensor = _Attention.apply(q, k, v, lengths)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        (q, q_stride), (k, k_stride), (v, v_stride) = rows_in_place(q), rows_in_place(k), rows_in_place(v)
        kv_heads, width = k.shape[2:]
        sizes = len(lengths), kv_heads, q.shape[2] // kv_heads, width, q_stride, k_stride, v_stride
        o, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3])
        kernels.call("attention", q, k, v, lengths_tensor(lengths), o, lse, *sizes)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.lengths, ctx.sizes = lengths, sizes
        return o

    @staticmethod
    @first_order("attention")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        inputs = q, k, v, o, lse, grads[0].contiguous(), lengths_tensor(ctx.lengths)
        kernels.call("attention_backward", *inputs, dq, dk, dv, *ctx.sizes)
        return dq, dk, dv, None
