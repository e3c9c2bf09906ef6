"""Triton kernels of the backward pass of the gated delta rule in chunks.

The names are those of docs/delta-rule.md, and the layouts are those of delta_rule_forward.py. The gradient of g is the
sum of the gradients of c from each position to the chunk's end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gossamer.ops.triton.delta_rule_forward import decay_matrix, state_tile, store_state, tile, unit_rows


@triton.jit
def head_rows(pointer, rows, stride, valid, columns, head, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """Load rows of a tensor by token and value head, with zeros behind the document's end: [C, COLUMNS]."""
    mask = valid[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * stride + head * WIDTH + columns[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def local(
    q_at,
    k_at,
    beta_at,
    c_at,
    A_at,
    do_at,
    W_at,
    dV_new_at,
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
    """Recompute W = A b e^c K, and compute Pᵀ dO, the part of dṼ that comes from within the chunk."""
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    positions, keys = tl.arange(0, C), tl.arange(0, BK)
    rows = tl.load(first_at + chunk).to(tl.int64) + positions
    valid = positions < tl.load(count_at + chunk)
    at = chunk * HV + head
    SCALE: tl.constexpr = DK**-0.5
    Q, _ = unit_rows(q_at, rows, q_stride, valid, keys, head // (HV // HK), DK, ACC)
    K, _ = unit_rows(k_at, rows, k_stride, valid, keys, head // (HV // HK), DK, ACC)
    b = tl.load(beta_at + rows * HV + head, mask=valid, other=0.0).to(ACC)
    c = tl.load(c_at + at * C + positions)
    A = tile(A_at + at * C * C, positions, positions, C)
    W = tl.dot(A, K * (b * tl.exp(c))[:, None], input_precision=FAST)
    tl.store(W_at + at * C * DK + positions[:, None] * DK + keys[None, :], W, mask=(keys < DK)[None, :])

    P = tl.dot(Q * SCALE, tl.trans(K), input_precision=FAST) * decay_matrix(c, positions)
    for start in range(0, DV, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        dO = head_rows(do_at, rows, HV * DV, valid, columns, head, DV, ACC)
        inside = tl.dot(tl.trans(P), dO, input_precision=FAST)
        here = dV_new_at + at * C * DV + positions[:, None] * DV + columns[None, :]
        tl.store(here, inside, mask=(columns < DV)[None, :])


@triton.jit
def scan_back(
    q_at,
    k_at,
    c_at,
    W_at,
    do_at,
    dV_new_at,
    dstates_at,
    dfinal_at,
    dinitial_at,
    first_at,
    count_at,
    edges_at,
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
    """Compute dṼ = Pᵀ dO + (r K) dS' and dS = e^(c_C) dS' + (e^c Q)ᵀ dO − Wᵀ dṼ in a document's chunks, last first."""
    document, head = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    positions, keys = tl.arange(0, C), tl.arange(0, BK)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    SCALE: tl.constexpr = DK**-0.5
    dS = state_tile(dfinal_at + (document * HV + head) * DK * DV, keys, columns, DK, DV).to(ACC)
    begin, end = tl.load(edges_at + document).to(tl.int64), tl.load(edges_at + document + 1).to(tl.int64)
    for step in range(0, end - begin):
        chunk = end - 1 - step
        at = chunk * HV + head
        store_state(dstates_at + at * DK * DV, dS, keys, columns, DK, DV)
        rows = tl.load(first_at + chunk).to(tl.int64) + positions
        valid = positions < tl.load(count_at + chunk)
        c, last = tl.load(c_at + at * C + positions), tl.load(c_at + at * C + C - 1)
        K, _ = unit_rows(k_at, rows, k_stride, valid, keys, head // (HV // HK), DK, ACC)
        K_out = K * tl.exp(last - c)[:, None]
        dV_new = tile(dV_new_at + at * C * DV, positions, columns, DV) + tl.dot(K_out, dS, input_precision=FAST)
        here = dV_new_at + at * C * DV + positions[:, None] * DV + columns[None, :]
        tl.store(here, dV_new, mask=(columns < DV)[None, :])

        Q, _ = unit_rows(q_at, rows, q_stride, valid, keys, head // (HV // HK), DK, ACC)
        Q_in = Q * (tl.exp(c) * SCALE)[:, None]
        dO = head_rows(do_at, rows, HV * DV, valid, columns, head, DV, ACC)
        W = tile(W_at + at * C * DK, positions, keys, DK)
        dS = dS * tl.exp(last) + tl.dot(tl.trans(Q_in), dO, input_precision=FAST)
        dS -= tl.dot(tl.trans(W), dV_new, input_precision=FAST)
    store_state(dinitial_at + (document * HV + head) * DK * DV, dS, keys, columns, DK, DV)


@triton.jit
def store_unit_gradient(
    pointer, gradient, unit, inverse, rows, valid, columns, head, HEADS: tl.constexpr, WIDTH: tl.constexpr
):
    """Store the gradient through x · rsqrt(Σ x² + ε), (gradient − y (y · gradient)) · rsqrt(…), which is exact in ε."""
    gradient = (gradient - unit * tl.sum(unit * gradient, 1)[:, None]) * inverse[:, None]
    here = pointer + rows[:, None] * (HEADS * WIDTH) + head * WIDTH + columns[None, :]
    tl.store(here, gradient.to(pointer.dtype.element_ty), mask=valid[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def gradients(
    q_at,
    k_at,
    v_at,
    beta_at,
    c_at,
    A_at,
    V_new_at,
    states_at,
    do_at,
    dV_new_at,
    dstates_at,
    dq_at,
    dk_at,
    dv_at,
    dg_at,
    dbeta_at,
    first_at,
    count_at,
    q_stride,
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
    """Compute the gradients of all inputs of one chunk and key head, one value head after the other."""
    chunk, key_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    positions, keys = tl.arange(0, C), tl.arange(0, BK)
    rows = tl.load(first_at + chunk).to(tl.int64) + positions
    valid = positions < tl.load(count_at + chunk)
    SCALE: tl.constexpr = DK**-0.5
    Q, q_inverse = unit_rows(q_at, rows, q_stride, valid, keys, key_head, DK, ACC)
    K, k_inverse = unit_rows(k_at, rows, k_stride, valid, keys, key_head, DK, ACC)
    Q *= SCALE
    KK = tl.dot(K, tl.trans(K), input_precision=FAST)
    QK = tl.dot(Q, tl.trans(K), input_precision=FAST)
    lower = positions[:, None] >= positions[None, :]
    dQ, dK = tl.zeros([C, BK], dtype=ACC), tl.zeros([C, BK], dtype=ACC)
    for member in range(0, HV // HK):
        head = key_head * (HV // HK) + member
        at = chunk * HV + head
        b = tl.load(beta_at + rows * HV + head, mask=valid, other=0.0).to(ACC)
        c, last = tl.load(c_at + at * C + positions), tl.load(c_at + at * C + C - 1)
        M = decay_matrix(c, positions)
        before, after = tl.exp(c), tl.exp(last - c)
        A_T = tl.trans(tile(A_at + at * C * C, positions, positions, C))

        dP, dA = tl.zeros([C, C], dtype=ACC), tl.zeros([C, C], dtype=ACC)
        O_state, dW = tl.zeros([C, BK], dtype=ACC), tl.zeros([C, BK], dtype=ACC)
        V_state, XV = tl.zeros([C, BK], dtype=ACC), tl.zeros([C], dtype=ACC)
        S_dS = tl.zeros([BK], dtype=ACC)
        for start in range(0, DV, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            dO = head_rows(do_at, rows, HV * DV, valid, columns, head, DV, ACC)
            V_new = tile(V_new_at + at * C * DV, positions, columns, DV)
            dV_new = tile(dV_new_at + at * C * DV, positions, columns, DV)
            S = state_tile(states_at + at * DK * DV, keys, columns, DK, DV)
            dS = state_tile(dstates_at + at * DK * DV, keys, columns, DK, DV)
            dP += tl.dot(dO, tl.trans(V_new), input_precision=FAST)
            O_state += tl.dot(dO, tl.trans(S), input_precision=FAST)
            dW -= tl.dot(dV_new, tl.trans(S), input_precision=FAST)
            V_state += tl.dot(V_new, tl.trans(dS), input_precision=FAST)
            S_dS += tl.sum(S * dS, 1)
            V = head_rows(v_at, rows, v_stride, valid, columns, head, DV, ACC)
            dA += tl.dot(dV_new, tl.trans(V * b[:, None]), input_precision=FAST)
            X = tl.dot(A_T, dV_new, input_precision=FAST)
            XV += tl.sum(X * V, 1)
            here = dv_at + rows[:, None] * (HV * DV) + head * DV + columns[None, :]
            mask = valid[:, None] & (columns < DV)[None, :]
            tl.store(here, (X * b[:, None]).to(dv_at.dtype.element_ty), mask=mask)

        dP = tl.where(lower, dP, 0.0)
        Y = tl.dot(A_T, dW, input_precision=FAST)
        dA += tl.dot(dW, tl.trans(K * (b * before)[:, None]), input_precision=FAST)
        dL = -tl.dot(A_T, tl.dot(dA, A_T, input_precision=FAST), input_precision=FAST)
        dL = tl.where(positions[:, None] > positions[None, :], dL, 0.0)
        G, H = dP * M, dL * M
        dQ += O_state * before[:, None] + tl.dot(G, K, input_precision=FAST)
        dK += tl.dot(tl.trans(G), Q, input_precision=FAST) + V_state * after[:, None] + Y * (b * before)[:, None]
        dK += tl.dot(H, K, input_precision=FAST) * b[:, None]
        dK += tl.dot(tl.trans(H), K * b[:, None], input_precision=FAST)

        YK = tl.sum(Y * K, 1)
        db = XV + before * YK + tl.sum(H * KK, 1)
        D = G * QK + H * KK * b[:, None]
        tail = after * tl.sum(K * V_state, 1)
        dc = tl.sum(D, 1) - tl.sum(D, 0) - tail + before * (tl.sum(O_state * Q, 1) + b * YK)
        dc += tl.where(positions == C - 1, tl.sum(tail, 0) + tl.exp(last) * tl.sum(S_dS, 0), 0.0)
        dg = tl.sum(tl.where(lower, dc[:, None], 0.0), 0)  # from each position to the end
        here = rows * HV + head
        tl.store(dbeta_at + here, db.to(dbeta_at.dtype.element_ty), mask=valid)
        tl.store(dg_at + here, dg.to(dg_at.dtype.element_ty), mask=valid)
    store_unit_gradient(dq_at, dQ * SCALE, Q / SCALE, q_inverse, rows, valid, keys, key_head, HK, DK)
    store_unit_gradient(dk_at, dK, K, k_inverse, rows, valid, keys, key_head, HK, DK)
