"""Triton kernels of the forward pass of the gated delta rule in chunks; the names are those of docs/delta-rule.md.

Tensors by token are q, k [tokens, HK, DK] and v [tokens, HV, DV], with a stride between tokens, and g and beta
[tokens, HV]. Tensors by chunk are contiguous, for n chunks of C positions: c [n, HV, C], A [n, HV, C, C],
W [n, HV, C, DK], U and Ṽ [n, HV, C, DV], states [n, HV, DK, DV]. Positions behind a document's end hold zeros, and c
continues unchanged. Heads are padded to tiles of BK and to a multiple of COLUMNS.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unit_rows(pointer, rows, stride, valid, columns, head, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """Load rows of q or k as x · rsqrt(Σ x² + 1e-6) [C, BK], and return that factor [C] as well."""
    mask = valid[:, None] & (columns < WIDTH)[None, :]
    x = tl.load(pointer + rows[:, None] * stride + head * WIDTH + columns[None, :], mask=mask, other=0.0).to(ACC)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) + 1e-6)
    return x * inverse[:, None], inverse


@triton.jit
def tile(pointer, rows, columns, WIDTH: tl.constexpr):
    """Load a contiguous tile [rows, columns] of a matrix of width `WIDTH`, of which every row exists."""
    return tl.load(pointer + rows[:, None] * WIDTH + columns[None, :], mask=(columns < WIDTH)[None, :], other=0.0)


@triton.jit
def state_tile(pointer, keys, columns, DK: tl.constexpr, DV: tl.constexpr):
    """Load columns of a state [BK, columns], with zeros beyond its edges."""
    mask = (keys < DK)[:, None] & (columns < DV)[None, :]
    return tl.load(pointer + keys[:, None] * DV + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_state(pointer, value, keys, columns, DK: tl.constexpr, DV: tl.constexpr):
    """Store columns of a state, without those beyond its edges."""
    mask = (keys < DK)[:, None] & (columns < DV)[None, :]
    tl.store(pointer + keys[:, None] * DV + columns[None, :], value, mask=mask)


@triton.jit
def decay_matrix(c, positions):
    """Compute M_ij = e^(c_i − c_j) for i ≥ j, else 0, masked before exp, which would overflow above the diagonal."""
    lower = positions[:, None] >= positions[None, :]
    return tl.exp(tl.where(lower, c[:, None] - c[None, :], float("-inf")))


@triton.jit
def unit_lower_inverse(L, positions, C: tl.constexpr, ACC: tl.constexpr, EXACT: tl.constexpr):
    """Invert I + L for strictly lower triangular L by blocks that double in size: A ← A − A Y A.

    A is the inverse of the diagonal blocks of `half` positions, and Y is the lower left block of each pair of blocks.
    """
    A = tl.where(positions[:, None] == positions[None, :], 1.0, 0.0).to(ACC)
    half = 1
    while half < C:
        row, column = positions[:, None] // half, positions[None, :] // half
        below = tl.where((row == column + 1) & (row % 2 == 1), L, 0.0)
        A -= tl.dot(A, tl.dot(below, A, input_precision=EXACT), input_precision=EXACT)
        half *= 2
    return A


@triton.jit
def prepare(
    k_at,
    v_at,
    g_at,
    beta_at,
    c_at,
    A_at,
    W_at,
    U_at,
    first_at,
    count_at,
    k_stride,
    v_stride,
    C: tl.constexpr,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    FAST: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Compute c, A = (I + stril(b K Kᵀ ∘ M))⁻¹, W = A b e^c K and U = A b V of one chunk and value head."""
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    positions, keys = tl.arange(0, C), tl.arange(0, BK)
    rows = tl.load(first_at + chunk).to(tl.int64) + positions
    valid = positions < tl.load(count_at + chunk)
    at = chunk * HV + head
    g = tl.load(g_at + rows * HV + head, mask=valid, other=0.0).to(ACC)
    b = tl.load(beta_at + rows * HV + head, mask=valid, other=0.0).to(ACC)
    c = tl.sum(tl.where(positions[:, None] <= positions[None, :], g[:, None], 0.0), 0)  # the running sum
    tl.store(c_at + at * C + positions, c)

    K, _ = unit_rows(k_at, rows, k_stride, valid, keys, head // (HV // HK), DK, ACC)
    L = tl.dot(K, tl.trans(K), input_precision=FAST) * decay_matrix(c, positions) * b[:, None]
    L = tl.where(positions[:, None] > positions[None, :], L, 0.0)
    A = unit_lower_inverse(L, positions, C, ACC, EXACT)
    tl.store(A_at + at * C * C + positions[:, None] * C + positions[None, :], A)

    W = tl.dot(A, K * (b * tl.exp(c))[:, None], input_precision=FAST)
    tl.store(W_at + at * C * DK + positions[:, None] * DK + keys[None, :], W, mask=(keys < DK)[None, :])
    for start in range(0, DV, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (columns < DV)[None, :]
        V = tl.load(v_at + rows[:, None] * v_stride + head * DV + columns[None, :], mask=mask, other=0.0).to(ACC)
        U = tl.dot(A, V * b[:, None], input_precision=FAST)
        tl.store(U_at + at * C * DV + positions[:, None] * DV + columns[None, :], U, mask=(columns < DV)[None, :])


@triton.jit
def scan(
    k_at,
    c_at,
    W_at,
    V_new_at,
    initial_at,
    states_at,
    final_at,
    first_at,
    count_at,
    edges_at,
    k_stride,
    C: tl.constexpr,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    FAST: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Compute Ṽ = U − W S in place of U, and S' = e^(c_C) S + (r K)ᵀ Ṽ, over the chunks of a document and head."""
    document, head = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    positions, keys = tl.arange(0, C), tl.arange(0, BK)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    S = state_tile(initial_at + (document * HV + head) * DK * DV, keys, columns, DK, DV).to(ACC)
    begin, end = tl.load(edges_at + document).to(tl.int64), tl.load(edges_at + document + 1).to(tl.int64)
    for chunk in range(begin, end):
        at = chunk * HV + head
        store_state(states_at + at * DK * DV, S, keys, columns, DK, DV)
        W = tile(W_at + at * C * DK, positions, keys, DK)
        V_new = tile(V_new_at + at * C * DV, positions, columns, DV) - tl.dot(W, S, input_precision=FAST)
        here = V_new_at + at * C * DV + positions[:, None] * DV + columns[None, :]
        tl.store(here, V_new, mask=(columns < DV)[None, :])

        rows = tl.load(first_at + chunk).to(tl.int64) + positions
        valid = positions < tl.load(count_at + chunk)
        K, _ = unit_rows(k_at, rows, k_stride, valid, keys, head // (HV // HK), DK, ACC)
        c, last = tl.load(c_at + at * C + positions), tl.load(c_at + at * C + C - 1)
        K_out = K * tl.exp(last - c)[:, None]
        S = S * tl.exp(last) + tl.dot(tl.trans(K_out), V_new, input_precision=FAST)
    store_state(final_at + (document * HV + head) * DK * DV, S, keys, columns, DK, DV)


@triton.jit
def output(
    q_at,
    k_at,
    c_at,
    V_new_at,
    states_at,
    o_at,
    first_at,
    count_at,
    q_stride,
    k_stride,
    C: tl.constexpr,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    FAST: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Compute O = e^c Q S + (Q Kᵀ ∘ M) Ṽ of one chunk and value head."""
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    positions, keys = tl.arange(0, C), tl.arange(0, BK)
    rows = tl.load(first_at + chunk).to(tl.int64) + positions
    valid = positions < tl.load(count_at + chunk)
    at = chunk * HV + head
    SCALE: tl.constexpr = DK**-0.5
    Q, _ = unit_rows(q_at, rows, q_stride, valid, keys, head // (HV // HK), DK, ACC)
    K, _ = unit_rows(k_at, rows, k_stride, valid, keys, head // (HV // HK), DK, ACC)
    Q *= SCALE
    c = tl.load(c_at + at * C + positions)
    P = tl.dot(Q, tl.trans(K), input_precision=FAST) * decay_matrix(c, positions)
    Q_in = Q * tl.exp(c)[:, None]
    for start in range(0, DV, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        S = state_tile(states_at + at * DK * DV, keys, columns, DK, DV)
        V_new = tile(V_new_at + at * C * DV, positions, columns, DV)
        O = tl.dot(Q_in, S, input_precision=FAST) + tl.dot(P, V_new, input_precision=FAST)
        mask = valid[:, None] & (columns < DV)[None, :]
        here = o_at + rows[:, None] * (HV * DV) + head * DV + columns[None, :]
        tl.store(here, O.to(o_at.dtype.element_ty), mask=mask)
