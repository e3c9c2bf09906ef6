"""The gated delta rule in chunks, as batched matrix products with a hand-written backward pass.

The mathematics is that of docs/delta-rule.md (Yang et al., arXiv 2412.06464, section 3, with the backward pass derived
there). This is how the code departs from the plain formulas:

- All documents of a batch advance in step, longest first. The only loop is therefore over the chunks of the longest
  document, and the states of the documents that are still active are a prefix of one tensor (`ChunkLayout`).
- K Kᵀ and Q Kᵀ are computed once for each key head and broadcast to its value heads.
- Empty slots at the end of a document hold zeros: with g = 0 and β = 0 they neither decay the state nor write to it.
- Differences of the summed gates are masked before exp, because the upper triangle would overflow.
- Only A, Ṽ, the states before each chunk and the inputs are saved for the backward pass; the rest is recomputed.

Shapes: n chunks, h key heads, r value heads per key head, C positions in a chunk, k = dk, v = dv.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.ops.checks import once_differentiable
from gossamer.ops.packing import ChunkLayout, chunk_layout

CHUNK_SIZE = 64


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Compute all chunks in batched products; the arguments are those of `delta_rule`, with lengths in tokens."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    if initial_state is None:
        initial_state = v.new_zeros(len(lengths), v.shape[2], q.shape[3], v.shape[3], dtype=dtype)
    if max(lengths) == 0:
        return torch.zeros_like(v), initial_state.to(dtype)
    if max(lengths) == min(lengths) == 1 and not torch.is_grad_enabled():
        return _one_token(q, k, v, g, beta, initial_state.to(dtype))
    chunk = min(CHUNK_SIZE, 1 << (max(lengths) - 1).bit_length())  # no larger than short documents need
    layout = chunk_layout(lengths, chunk, q.device)
    o, state = _Chunked.apply(q, k, v, g, beta, initial_state, layout)
    return o, state


def _one_token(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step of the recurrence for each document, as decoding does, without the overhead of chunks."""
    shape, repeats = v.shape, v.shape[2] // q.shape[2]
    heads = (len(state), q.shape[2], repeats)
    q, k = (_l2norm(x.flatten(0, 1).to(state.dtype))[0] for x in (q, k))  # [N, h, dk]
    q = q * q.shape[-1] ** -0.5
    values, beta = v.reshape(*heads, -1).to(state.dtype), beta.reshape(*heads, 1).to(state.dtype)
    grouped = state.view(*heads, *state.shape[2:]) * g.to(state.dtype).exp().view(*heads, 1, 1)
    delta = beta * (values - torch.einsum("nhrkv,nhk->nhrv", grouped, k))
    grouped = grouped + k[:, :, None, :, None] * delta[:, :, :, None, :]
    o = torch.einsum("nhrkv,nhk->nhrv", grouped, q)
    return o.reshape(shape).to(v.dtype), grouped.view(state.shape)


class _Decay(NamedTuple):
    """Decays that follow from the gates alone, with c the cumulative sum of g within the chunk."""

    matrix: Tensor  # [n, h, r, C, C]  M_ij = e^(c_i − c_j) for i ≥ j, else 0
    before: Tensor  # [n, h, r, C, 1]  e^c, from the chunk's start to each position
    after: Tensor  # [n, h, r, C, 1]  r = e^(c_C − c), from each position to the chunk's end
    whole: Tensor  # [n, h, r, 1, 1]  e^(c_C)


def _decay(c: Tensor) -> _Decay:
    """Exponentiate the cumulative gates and their differences."""
    difference = c.unsqueeze(-1) - c.unsqueeze(-2)
    upper = torch.ones(c.shape[-1], c.shape[-1], dtype=torch.bool, device=c.device).triu_(1)
    matrix = difference.masked_fill_(upper, float("-inf")).exp_()
    last = c[..., -1:]
    return _Decay(matrix, c.exp().unsqueeze(-1), (last - c).exp().unsqueeze(-1), last.exp().unsqueeze(-1))


def _l2norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize x; return x · rsqrt(Σ x² + 1e-6) and that factor."""
    inverse = torch.rsqrt(torch.linalg.vecdot(x, x).unsqueeze(-1) + 1e-6)
    return x * inverse, inverse


def _l2norm_backward(grad: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    """Compute the gradient of x for y = x · inverse.

    It is exact even where the ε matters, because x · inverse³ (x · grad) = inverse · y (y · grad).
    """
    return torch.addcmul(grad, y, torch.linalg.vecdot(y, grad).unsqueeze(-1), value=-1).mul_(inverse)


def _to_chunks(x: Tensor, layout: ChunkLayout, heads: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Cut rows into chunks, with zeros in empty slots: [B, T, h·r, …] → [n, h, r, C, …]."""
    flat = x.flatten(0, 1)
    if layout.slots is not None:
        rows = flat.new_zeros(layout.num_chunks * layout.chunk, *flat.shape[1:])
        flat = rows.index_copy_(0, layout.slots, flat)
    split = flat.view(layout.num_chunks, layout.chunk, *heads, *flat.shape[2:])
    return split.movedim(1, 3).to(dtype=dtype, memory_format=torch.contiguous_format, copy=False).contiguous()


class _TensorSpec(NamedTuple):
    """Shape and dtype of an input, which is all that the backward pass needs to know of it."""

    shape: torch.Size
    dtype: torch.dtype


def _from_chunks(x: Tensor, layout: ChunkLayout, spec: _TensorSpec) -> Tensor:
    """Join chunks to rows, the inverse of `_to_chunks`: [n, h, r, C, …] → [B, T, h·r, …]."""
    flat = x.movedim(3, 1).reshape(layout.num_chunks * layout.chunk, *spec.shape[2:])
    if layout.slots is not None:
        flat = flat.index_select(0, layout.slots)
    return flat.view(spec.shape).to(spec.dtype)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices over all leading dimensions, which are the same for both operands."""
    return torch.bmm(a.flatten(0, -3), b.flatten(0, -3)).view(*a.shape[:-1], b.shape[-1])


def invert_unit_lower(lower: Tensor) -> Tensor:
    """Invert I + L for strictly lower triangular L [batch, C, C], where C is a power of two.

    The blocks double in size: the inverse of [[X, 0], [Y, Z]] is [[X⁻¹, 0], [−Z⁻¹ Y X⁻¹, Z⁻¹]]. Unlike the series
    Π (I + L^(2^i)), this never specs powers of L, which overflow float32 when keys repeat.
    """
    batch, size, _ = lower.shape
    inverse = torch.eye(size, dtype=lower.dtype, device=lower.device).repeat(batch, 1, 1)
    half = 1
    while half < size:
        blocks = size // (2 * half)
        grid = (batch, blocks, 2, half, blocks, 2, half)
        source = lower.view(grid).diagonal(dim1=1, dim2=4)  # [batch, 2, half, 2, half, blocks]
        target = inverse.view(grid).diagonal(dim1=1, dim2=4)
        below = source[:, 1, :, 0].movedim(-1, 1).reshape(-1, half, half)
        if half == 1:
            product = below
        else:
            upper_left = target[:, 0, :, 0].movedim(-1, 1).reshape(-1, half, half)
            lower_right = target[:, 1, :, 1].movedim(-1, 1).reshape(-1, half, half)
            product = torch.bmm(lower_right, torch.bmm(below, upper_left))
        target[:, 1, :, 0].copy_(product.view(batch, blocks, half, half).movedim(1, -1).neg())
        half *= 2
    return inverse


class _Chunked(torch.autograd.Function):
    """`chunked` with its gradient, by the formulas of docs/delta-rule.md."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial: Tensor, layout: ChunkLayout
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        key_heads, repeats = q.shape[2], v.shape[2] // q.shape[2]
        key_grid, value_grid = (key_heads, 1), (key_heads, repeats)
        Q, q_inverse = _l2norm(_to_chunks(q, layout, key_grid, dtype))  # [n, h, 1, C, k]
        Q = Q.mul_(q.shape[3] ** -0.5)
        K, k_inverse = _l2norm(_to_chunks(k, layout, key_grid, dtype))
        V = _to_chunks(v, layout, value_grid, dtype)  # [n, h, r, C, v]
        b = _to_chunks(beta, layout, value_grid, dtype).unsqueeze(-1)  # [n, h, r, C, 1]
        c = _to_chunks(g, layout, value_grid, dtype).cumsum(-1)  # [n, h, r, C]
        decay = _decay(c)

        lower = ((_bmm(K, K.mT) * decay.matrix).mul_(b)).tril_(-1)
        A = invert_unit_lower(lower.flatten(0, 2)).view(lower.shape)
        U = _bmm(A, V * b)
        W = _bmm(A, K * (b * decay.before))
        state = initial.to(dtype)[list(layout.order)].view(-1, *value_grid, *initial.shape[2:])
        states, V_new, final = _scan(U, W, K * decay.after, decay.whole, state, layout)
        P = _bmm(Q, K.mT) * decay.matrix
        O = _bmm(P, V_new) + _bmm(Q * decay.before, states)

        ctx.save_for_backward(Q, K, V, b, c, A, V_new, states, q_inverse, k_inverse)
        ctx.layout, ctx.specs = layout, [_TensorSpec(x.shape, x.dtype) for x in (q, k, v, g, beta, initial)]
        final_states = torch.empty_like(final)
        final_states[list(layout.order)] = final
        return _from_chunks(O, layout, _TensorSpec(v.shape, v.dtype)), final_states.view(initial.shape)

    @staticmethod
    @once_differentiable("delta_rule")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_o, grad_final = grads
        Q, K, V, b, c, A, V_new, states, q_inverse, k_inverse = ctx.saved_tensors
        layout: ChunkLayout = ctx.layout
        q, k, v, g, beta, initial = ctx.specs
        key_heads, repeats = Q.shape[1], V.shape[2]
        value_grid = (key_heads, repeats)
        decay = _decay(c)
        KK, QK = _bmm(K, K.mT), _bmm(Q, K.mT)
        P, lower = QK * decay.matrix, (KK * decay.matrix).mul_(b).tril_(-1)
        K_in = K * (b * decay.before)  # β e^c K
        W = _bmm(A, K_in)
        K_out, Q_in = K * decay.after, Q * decay.before
        dO = _to_chunks(grad_o, layout, value_grid, V.dtype)

        # The reverse scan gives the gradients of Ṽ and of the state after each chunk.
        dstate = grad_final.to(V.dtype)[list(layout.order)].view(-1, *value_grid, *initial.shape[2:])
        dV_new, dstates, dinitial = _scan_backward(
            _bmm(P.mT, dO), _bmm(Q_in.mT, dO), W, K_out, decay.whole, dstate, layout
        )

        # Everything else is computed for all chunks at once.
        dP = _bmm(dO, V_new.mT).tril_()
        O_state = _bmm(dO, states.mT)  # dO Sᵀ
        G = dP * decay.matrix
        X = _bmm(A.mT, dV_new)
        Y = _bmm(X, states.mT).neg_()
        dlower = _bmm(X, V_new.mT).neg_().tril_(-1)
        H = dlower * decay.matrix
        bH = H * b
        V_state = _bmm(V_new, dstates.mT)  # Ṽ dS'ᵀ
        # The value heads of a key head are summed before products with Q and K, which they share.
        shared_G, shared_H = G.sum(2, keepdim=True), (bH + bH.mT).sum(2, keepdim=True)
        dQ = (O_state * decay.before).sum(2, keepdim=True) + _bmm(shared_G, K)
        dK = (V_state * decay.after + Y * (b * decay.before)).sum(2, keepdim=True)
        dK += _bmm(shared_G.mT, Q) + _bmm(shared_H, K)
        Y_dot_K = (Y * K).sum(-1, keepdim=True)
        db = (X * V).sum(-1, keepdim=True) + decay.before * Y_dot_K + (H * KK).sum(-1, keepdim=True)
        dmatrix = dP.mul_(P) + dlower.mul_(lower)
        tail = (decay.after * (K * V_state).sum(-1, keepdim=True)).squeeze(-1)
        dc = dmatrix.sum(-1) - dmatrix.sum(-2) - tail
        dc += (decay.before * ((O_state * Q).sum(-1, keepdim=True) + b * Y_dot_K)).squeeze(-1)
        dc[..., -1] += tail.sum(-1) + (decay.whole * states * dstates).sum((-2, -1))
        dg = dc.flip(-1).cumsum(-1).flip(-1)

        scale = q.shape[3] ** -0.5
        dq = _l2norm_backward(dQ.mul_(scale), Q / scale, q_inverse)
        dk = _l2norm_backward(dK, K, k_inverse)
        dinitial_states = torch.empty_like(dinitial)
        dinitial_states[list(layout.order)] = dinitial
        return (
            _from_chunks(dq, layout, q),
            _from_chunks(dk, layout, k),
            _from_chunks(X * b, layout, v),
            _from_chunks(dg, layout, g),
            _from_chunks(db.squeeze(-1), layout, beta),
            dinitial_states.view(initial.shape).to(initial.dtype),
            None,
        )


def _scan(
    U: Tensor, W: Tensor, K_out: Tensor, whole: Tensor, state: Tensor, layout: ChunkLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk the chunks in order: Ṽ = U − W S, S' = e^(c_C) S + (r K)ᵀ Ṽ.

    Returns:
        The state before each chunk [n, h, r, k, v], Ṽ [n, h, r, C, v] and the final states [N, h, r, k, v].
    """
    states = U.new_empty(len(U), *state.shape[1:])
    V_new, final, first = torch.empty_like(U), state.clone(), 0
    for active in layout.active:
        now, first = slice(first, first + active), first + active
        S = states[now].copy_(final[:active])
        new = torch.baddbmm(U[now].flatten(0, 2), W[now].flatten(0, 2), S.flatten(0, 2), alpha=-1)
        V_new[now] = new.view_as(U[now])
        decayed = (S * whole[now]).flatten(0, 2)
        final[:active] = torch.baddbmm(decayed, K_out[now].flatten(0, 2).mT, new).view_as(S)
    return states, V_new, final


def _scan_backward(
    dV_inside: Tensor, dS_inside: Tensor, W: Tensor, K_out: Tensor, whole: Tensor, dstate: Tensor, layout: ChunkLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk the chunks backwards: dṼ = Pᵀ dO + (r K) dS', dS = e^(c_C) dS' + (e^c Q)ᵀ dO − Wᵀ dṼ.

    Returns:
        dṼ, the gradient of the state after each chunk, and that of the initial states.
    """
    dV_new, dstates, end = torch.empty_like(dV_inside), torch.empty_like(dS_inside), len(W)
    dS_all = dstate.clone()
    for active in reversed(layout.active):
        now, end = slice(end - active, end), end - active
        dS = dstates[now].copy_(dS_all[:active])
        dV = torch.baddbmm(dV_inside[now].flatten(0, 2), K_out[now].flatten(0, 2), dS.flatten(0, 2))
        dV_new[now] = dV.view_as(dV_inside[now])
        carried = (dS * whole[now]).add_(dS_inside[now]).flatten(0, 2)
        dS_all[:active] = torch.baddbmm(carried, W[now].flatten(0, 2).mT, dV, alpha=-1).view_as(dS)
    return dV_new, dstates, dS_all
