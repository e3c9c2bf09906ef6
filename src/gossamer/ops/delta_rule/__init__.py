"""The gated delta rule (arXiv 2412.06464): linear attention whose state forgets by a gate and corrects itself.

Every value head keeps a state S of shape [dk, dv]; for each token, with q and k normalized and α = e^g:

    S ← α S;   δ = β (v − Sᵀ k);   S ← S + k δᵀ;   o = Sᵀ q
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_same_dtype, not_none, once_differentiable, shape
from gossamer.ops.delta_rule.chunked import CHUNK_SIZE, chunked
from gossamer.ops.delta_rule.reference import reference
from gossamer.ops.native.layout import rows_in_place
from gossamer.ops.packing import document_lengths, lengths_tensor
from gossamer.ops.registry import Operation, deferred

__all__ = ["CHUNK_SIZE", "delta_rule"]

DELTA_RULE = Operation("delta_rule")


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule over every document of a batch.

    q and k are normalized here, x · rsqrt(Σ x² + 1e-6), and q is scaled by dk^-1/2. Value head h reads key head
    ⌊h · Hk / Hv⌋. Everything is computed in float32, or in float64 if q is.

    Args:
        q: [B, T, Hk, dk], as the convolution returns it
        k: [B, T, Hk, dk]
        v: [B, T, Hv, dv], where Hv is a multiple of Hk
        g: [B, T, Hv], the logarithm of the decay, ≤ 0, float32 or float64
        beta: [B, T, Hv], the strength of the update, 0 to 1
        initial_state: [N, Hv, dk, dv] for each of the N documents; None is zero
        cu_seqlens: [N + 1], where documents begin in the flattened batch; None makes each row a document, N = B

    Returns:
        o [B, T, Hv, dv] in v's dtype, and the final states [N, Hv, dk, dv] in the dtype of the computation.

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_floats("delta_rule", q=q, k=k, v=v, g=g, beta=beta, **not_none(initial_state=initial_state))
    check_same_dtype("delta_rule", q=q, k=k, v=v)
    fit = q.ndim == v.ndim == 4 and k.shape == q.shape and v.shape[:2] == q.shape[:2]
    if not fit or not min(*q.shape[2:], *v.shape[2:]) or v.shape[2] % q.shape[2]:
        raise UserError(f"delta_rule: q {shape(q)}, k {shape(k)} and v {shape(v)} do not fit")
    batch, length, _, key_dim = q.shape
    value_heads, value_dim = v.shape[2:]
    if g.shape != v.shape[:3] or beta.shape != v.shape[:3]:
        raise UserError(f"delta_rule: g {shape(g)} and beta {shape(beta)} must be {list(v.shape[:3])}")
    lengths = document_lengths(batch, length, cu_seqlens)
    state_shape = (len(lengths), value_heads, key_dim, value_dim)
    if initial_state is not None and initial_state.shape != state_shape:
        raise UserError(f"delta_rule: initial_state {shape(initial_state)} must be {list(state_shape)}")
    o, state = DELTA_RULE(q.device, q, k, v, g, beta, initial_state, lengths)
    return o, state


def native(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Call the C++ kernel, which keeps a head's chunks in the cache one after the other; float64 goes to `chunked`."""
    if q.dtype == torch.float64:
        return chunked(q, k, v, g, beta, initial_state, lengths)
    if initial_state is None:
        initial_state = v.new_zeros(len(lengths), v.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    floats = (x.float() for x in (q, k, v, g, beta, initial_state))
    o, state = _NativeDeltaRule.apply(*floats, lengths)
    return o.to(v.dtype), state


class _NativeDeltaRule(torch.autograd.Function):
    """The kernels of ops/native/delta_rule.cpp, forward and backward."""

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
            chunks = sum(-(-length // CHUNK_SIZE) for length in lengths)
            states = v.new_empty(chunks, value_heads, key_dim, value_dim)
        o, final = v.new_empty(v.shape), torch.empty_like(initial)
        heads = key_heads, value_heads // key_heads, key_dim, value_dim
        sizes = len(lengths), *heads, CHUNK_SIZE, q_stride, k_stride, v_stride
        documents = lengths_tensor(lengths)
        kernels.call("delta_rule", q, k, v, g, beta, initial, documents, o, final, states, *sizes)
        if states is not None:
            ctx.save_for_backward(q, k, v, g, beta, states)
            ctx.lengths, ctx.sizes = lengths, sizes
        return o, final

    @staticmethod
    @once_differentiable("delta_rule")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, states = ctx.saved_tensors
        grad_o = grads[0].contiguous()
        dstate = grads[1].clone(memory_format=torch.contiguous_format)  # becomes the initial states' gradient
        dq, dk, dv, dg, dbeta = (x.new_empty(x.shape) for x in (q, k, v, g, beta))
        inputs = q, k, v, g, beta, states, lengths_tensor(ctx.lengths), grad_o
        kernels.call("delta_rule_backward", *inputs, dstate, dq, dk, dv, dg, dbeta, *ctx.sizes)
        return dq, dk, dv, dg, dbeta, dstate, None


DELTA_RULE.register("native", native, kernels.obstacle)
DELTA_RULE.register("fla", deferred("gossamer.ops.delta_rule.fla", "fla"), devices.fla_obstacle)
DELTA_RULE.register(
    "triton", deferred("gossamer.ops.triton.delta_rule", "delta_rule"), devices.triton_obstacle, devices.is_accelerator
)
DELTA_RULE.register("chunked", chunked)
DELTA_RULE.register("reference", reference)
