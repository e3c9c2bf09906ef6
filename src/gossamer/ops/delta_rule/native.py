"""The gated delta rule by ops/native/delta_rule.cpp: a head's chunks one after the other, in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.checks import first_order
from gossamer.ops.delta_rule.chunked import CHUNK, chunked
from gossamer.ops.native.layout import rows_in_place
from gossamer.ops.packing import lengths_tensor


def native(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`. float64 takes the path of PyTorch's functions."""
    if q.dtype == torch.float64:
        return chunked(q, k, v, g, beta, initial_state, lengths)
    if initial_state is None:
        initial_state = v.new_zeros(len(lengths), v.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    wide = (x.float() for x in (q, k, v, g, beta, initial_state))
    o, state = _DeltaRule.apply(*wide, lengths)
    return o.to(v.dtype), state


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        initial: Tensor,
        lengths: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        (q, q_stride), (k, k_stride), (v, v_stride) = rows_in_place(q), rows_in_place(k), rows_in_place(v)
        g, beta, initial = g.contiguous(), beta.contiguous(), initial.contiguous()
        key_heads, key_dim = q.shape[2:]
        value_heads, value_dim = v.shape[2:]
        states = None
        if any(ctx.needs_input_grad):
            chunks = sum(-(-length // CHUNK) for length in lengths)
            states = v.new_empty(chunks, value_heads, key_dim, value_dim)
        o, final = v.new_empty(v.shape), torch.empty_like(initial)
        heads = key_heads, value_heads // key_heads, key_dim, value_dim
        sizes = len(lengths), *heads, CHUNK, q_stride, k_stride, v_stride
        documents = lengths_tensor(lengths)
        kernels.call("delta_rule", q, k, v, g, beta, initial, documents, o, final, states, *sizes)
        if states is not None:
            ctx.save_for_backward(q, k, v, g, beta, states)
            ctx.lengths, ctx.sizes = lengths, sizes
        return o, final

    @staticmethod
    @first_order("delta_rule")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, states = ctx.saved_tensors
        grad_o = grads[0].contiguous()
        dstate = grads[1].clone(memory_format=torch.contiguous_format)  # becomes the initial states' gradient
        dq, dk, dv, dg, dbeta = (x.new_empty(x.shape) for x in (q, k, v, g, beta))
        inputs = q, k, v, g, beta, states, lengths_tensor(ctx.lengths), grad_o
        kernels.call("delta_rule_backward", *inputs, dstate, dq, dk, dv, dg, dbeta, *ctx.sizes)
        return dq, dk, dv, dg, dbeta, dstate, None
