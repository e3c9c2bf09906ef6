"""The gated delta rule in chunks, in Triton: docs/delta-rule.md, three kernels forward and three backward.

Forward:  `prepare` computes A, U and W for all chunks at once. `scan` computes Ṽ and the state before each chunk, with
one program for each document, head and block of value columns, and the state in registers. `output` computes O for all
chunks at once.
Backward: `local` computes Pᵀ dO, and W again, for all chunks at once. `scan_back` reverses the scan. `gradients`
computes the rest for all chunks at once, with one program for each key head, so that the gradients of its value heads
add up in registers.

Everything is computed in float32. On a GPU the inputs are narrower, and products go to the matrix units where those
offer float32's range with fewer digits (TF32, three bits more than bfloat16); the inverse keeps all digits. Inputs in
float32 and float64, for which the GPU's own library is the better choice, and heads that are too large go to `chunked`.
The interpreter, which runs on the CPU for tests, takes every dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import once_differentiable
from gossamer.ops.delta_rule.chunked import CHUNK_SIZE, chunked
from gossamer.ops.packing import cached_layout
from gossamer.ops.triton import delta_rule_backward, delta_rule_forward
from gossamer.ops.triton.tiles import accumulator, padded, token_rows

MAX_HEAD_DIM = 128
# `gradients` needs 147 to 164 KiB of shared memory for heads of 128 and 64 to 104 KiB for heads of 64, as compiled for
# NVIDIA's sm_80 and sm_90. Desktop chips have 99 KiB and can run the latter.
AMPLE_MEMORY = 160 << 10
MIN_SIDE = 16  # side of the smallest tile that a `dot` takes
COLUMNS = 32  # columns of a value head in a program of the scans: more programs run at once, and S fits the registers


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Run the kernels where they pay, and `chunked` elsewhere; `lengths` are the documents' lengths in tokens."""
    is_decoding = max(lengths, default=0) <= 1 and not torch.is_grad_enabled()  # a token needs no chunk
    is_wide = q.itemsize >= 4 and devices.is_accelerator(q.device)
    is_too_large = max(q.shape[3], v.shape[3]) > _max_head_dim(q.device)
    if is_wide or is_decoding or not v.numel() or not q.numel() or is_too_large:
        return chunked(q, k, v, g, beta, initial_state, lengths)
    if initial_state is None:
        dtype = torch.promote_types(q.dtype, torch.float32)
        initial_state = v.new_zeros(len(lengths), v.shape[2], q.shape[3], v.shape[3], dtype=dtype)
    o, state = _DeltaRule.apply(q, k, v, g, beta, initial_state, lengths)
    return o, state


def _max_head_dim(device: torch.device) -> int:
    """Return the largest head for which the device has enough shared memory.

    AMD's compiler needs far less of it than NVIDIA's: 32 KiB of the 64 that there are.
    """
    is_ample = devices.triton_dot_precisions(device)[0] == "ieee" or devices.shared_memory(device) >= AMPLE_MEMORY
    return MAX_HEAD_DIM if is_ample else MAX_HEAD_DIM // 2


@dataclass(frozen=True)
class Chunks:
    """Documents cut into chunks of C tokens, one document after another.

    Attributes:
        size: C
        first: [n] int32, each chunk's first token in the flattened batch
        count: [n] int32, the number of tokens in each chunk
        edges: [N + 1] int32, where each document's chunks begin
    """

    size: int
    first: Tensor
    count: Tensor
    edges: Tensor


@cached_layout
def _chunks(lengths: tuple[int, ...], device: torch.device) -> Chunks:
    """Cut documents of these lengths into chunks, which are smaller than `CHUNK_SIZE` if all documents are."""
    size = min(CHUNK_SIZE, padded(max(lengths), MIN_SIDE))
    first, count, edges, token = [], [], [0], 0
    for length in lengths:
        offsets = range(0, length, size)
        first += [token + offset for offset in offsets]
        count += [min(size, length - offset) for offset in offsets]
        edges.append(len(first))
        token += length
    return Chunks(size, *(torch.tensor(part, dtype=torch.int32, device=device) for part in (first, count, edges)))


class _DeltaRule(torch.autograd.Function):
    """The three kernels forward and the three backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        chunks, shape = _chunks(lengths, q.device), _shape(q, v)
        q_rows, k_rows, v_rows = token_rows(q), token_rows(k), token_rows(v)
        g_rows, b_rows = g.flatten(0, 1).contiguous(), beta.flatten(0, 1).contiguous()
        n, heads, size, dtype = len(chunks.first), v.shape[2], chunks.size, torch.promote_types(q.dtype, torch.float32)
        key_dim, value_dim = q.shape[3], v.shape[3]

        def empty(*last: int) -> Tensor:
            return torch.empty(n, heads, *last, dtype=dtype, device=q.device)

        c, A = empty(size), empty(size, size)
        W, V_new, states = empty(size, key_dim), empty(size, value_dim), empty(key_dim, value_dim)
        final = torch.empty(initial.shape, dtype=dtype, device=q.device)
        o = torch.empty(v.shape, dtype=v.dtype, device=q.device)
        table, compiled = (chunks.first, chunks.count), {"C": size, **shape}
        strides = (q_rows.stride(0), k_rows.stride(0), v_rows.stride(0))
        with devices.device_context(q.device):
            delta_rule_forward.prepare[(n, heads)](
                k_rows, v_rows, g_rows, b_rows, c, A, W, V_new, *table, *strides[1:], **compiled, num_stages=1
            )
            grid = (len(lengths) * heads, triton.cdiv(value_dim, shape["COLUMNS"]))
            S = (initial.contiguous(), states, final)
            delta_rule_forward.scan[grid](
                k_rows, c, W, V_new, *S, *table, chunks.edges, strides[1], **compiled, num_stages=1
            )
            delta_rule_forward.output[(n, heads)](
                q_rows, k_rows, c, V_new, states, o, *table, *strides[:2], **compiled, num_stages=1
            )
        ctx.save_for_backward(q_rows, k_rows, v_rows, b_rows, c, A, V_new, states)
        ctx.chunks, ctx.shape, ctx.like = chunks, shape, [(x.shape, x.dtype) for x in (q, k, v, g, beta, initial)]
        return o, final

    @staticmethod
    @once_differentiable("delta_rule")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_rows, k_rows, v_rows, b_rows, c, A, V_new, states = ctx.saved_tensors
        chunks, shape = ctx.chunks, ctx.shape
        n, heads, size = c.shape
        key_heads = q_rows.shape[1]
        dq, dk, dv, dg, dbeta = (torch.empty(kind, dtype=dtype, device=c.device) for kind, dtype in ctx.like[:5])
        W, dV_new, dstates = c.new_empty(n, heads, size, shape["DK"]), torch.empty_like(V_new), torch.empty_like(states)
        dinitial = torch.empty(ctx.like[5][0], dtype=c.dtype, device=c.device)
        do, dfinal = grads[0].contiguous(), grads[1].contiguous()
        table, compiled = (chunks.first, chunks.count), {"C": size, **shape}
        strides = (q_rows.stride(0), k_rows.stride(0), v_rows.stride(0))
        with devices.device_context(c.device):
            delta_rule_backward.local[(n, heads)](
                q_rows, k_rows, b_rows, c, A, do, W, dV_new, *table, *strides[:2], **compiled, num_stages=1
            )
            grid = (len(dinitial) * heads, triton.cdiv(shape["DV"], shape["COLUMNS"]))
            dS = (dstates, dfinal, dinitial)
            delta_rule_backward.scan_back[grid](
                q_rows, k_rows, c, W, do, dV_new, *dS, *table, chunks.edges, *strides[:2], **compiled, num_stages=1
            )
            rows, saved = (q_rows, k_rows, v_rows, b_rows), (c, A, V_new, states)
            grads_in, grads_out = (do, dV_new, dstates), (dq, dk, dv, dg, dbeta)
            delta_rule_backward.gradients[(n, key_heads)](
                *rows, *saved, *grads_in, *grads_out, *table, *strides, **compiled, num_warps=8, num_stages=1
            )
        return dq, dk, dv, dg, dbeta, dinitial.to(ctx.like[5][1]), None


def _shape(q: Tensor, v: Tensor) -> dict[str, Any]:
    """Choose the constants for which the kernels are compiled, except the chunk's size."""
    fast, exact = devices.triton_dot_precisions(q.device)
    key_dim, value_dim = q.shape[3], v.shape[3]
    return {
        "HK": q.shape[2],
        "HV": v.shape[2],
        "DK": key_dim,
        "DV": value_dim,
        "BK": padded(key_dim, MIN_SIDE),
        "COLUMNS": min(COLUMNS, padded(value_dim, MIN_SIDE)),
        "ACC": accumulator(q.dtype),
        "FAST": fast,
        "EXACT": exact,
    }
